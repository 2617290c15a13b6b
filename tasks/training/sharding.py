"""The frozen base split over the processes that train (FSDP2: fully_shard), for one that fits no device whole.

Each process keeps a part of every weight, and a layer is gathered for as long as it runs. The adapter, its gradients
and its optimizer's moments are whole and the same in each process: they are what is saved, resumed and compared, as
without sharding. So DistributedDataParallel, which takes no model with split weights, is left out, and the gradients
are averaged here. A forward pass takes all processes at once, whatever it is for.
"""

from __future__ import annotations

from typing import Any

from tasks.errors import BadInput


def shard(model: Any) -> None:
    """Split the base of a PEFT model over the processes; each must call it, on the same weights.

    The weights that this process does not keep are freed, the rest moves to its device. Raises BadInput for an
    architecture that does not say what its layers are.
    """
    import torch
    from torch.distributed import broadcast
    from torch.distributed.fsdp import fully_shard

    base = model.get_base_model()
    kinds = set(base._no_split_modules or ())
    layers = [module for module in base.modules() if type(module).__name__ in kinds]
    if not layers:
        raise BadInput(
            "training.sharding",
            "base",
            f"does not go with this base: {type(base).__name__} does not say which of its modules are layers",
            "Set it to none.",
        )
    # It was loaded to the host, and PEFT, when a run goes on, would put it back where this says.
    vars(base).pop("hf_device_map", None)
    for module in base.modules():
        if type(module).__name__ == "Linear4bit":
            # In evaluation bitsandbytes lays a weight out anew for AVX-512, in place, and notes it on the quantisation
            # state. What is gathered for the next pass is in the old layout and would be read as in the new one.
            module.support_avx512bf16_for_cpu = False
    whole = [parameter for name, parameter in model.named_parameters() if "lora_" in name]
    for layer in reversed(layers):  # one inside of another first
        fully_shard(layer, ignored_params=set(whole))
    fully_shard(base, ignored_params=set(whole))
    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    for parameter in whole:
        parameter.data = parameter.data.to(device)
        broadcast(parameter.data, src=0)


def average_gradients(model: Any) -> None:
    """Give each process the mean of all processes' gradients of the adapter."""
    from torch.distributed import all_reduce, get_world_size

    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad /= get_world_size()
            all_reduce(parameter.grad)
