"""The ways to train: as PEFT takes them, or all weights; and what does not go together is refused, never left out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tasks.errors import BadInput
from tasks.recipe import OF_LORA, Training
from tasks.store import write_whole
from tasks.training.spec import TrainingSpec

_BEGINNING = "beginning"  # the folder of a PiSSA adapter before its first step


def require_possible(training: Training) -> None:
    """Raise BadInput for options that no device and no base would make go together."""
    if training.method == "full":
        _require_possible_in_full(training)
    if training.backend == "unsloth" and training.processes * training.nodes > 1:
        raise BadInput(
            "training.processes",
            training.processes * training.nodes,
            "is more than the one process that Unsloth trains in",
            "Set training.backend to transformers.",
        )
    if training.sharding != "none" and training.processes * training.nodes == 1:
        raise BadInput(
            "training.sharding",
            training.sharding,
            "splits the base over several processes, and there is one",
            "Set training.backend to transformers and training.processes to the number of GPUs, or leave it out.",
        )
    if training.packing and training.backend == "unsloth":
        raise BadInput(
            "training.packing",
            True,
            "is not done with Unsloth, whose kernels choose by themselves what to pack",
            "Set training.backend to transformers, or leave it out: rows are batched by length.",
        )
    if training.pissa and training.method == "qlora":
        raise BadInput(
            "training.pissa", True, "takes the base's singular vectors, which 4-bit weights hide", "Use method lora."
        )
    if training.pissa and training.rslora:
        raise BadInput("training.pissa", True, "can't be saved as plain LoRA with rslora", "Leave one of them out.")
    if training.pissa and training.dora:
        raise BadInput("training.pissa", True, "can't be saved as plain LoRA with dora", "Leave one of them out.")


def _require_possible_in_full(training: Training) -> None:
    if training.backend == "unsloth":
        raise BadInput(
            "training.method", "full", "is not done with Unsloth here", "Set training.backend to transformers."
        )
    if training.sharding != "none":
        raise BadInput(
            "training.sharding",
            training.sharding,
            "splits a frozen base, and method full freezes nothing",
            "Leave it out; where the GPUs are too small, use lora or qlora.",
        )
    for name in OF_LORA[2:]:  # a rank and its scale stand in each recipe that is tried with another method
        value = getattr(training, name)
        if value != Training.model_fields[name].default:
            raise BadInput(
                f"training.{name}", value, "is of LoRA, and method full trains the weights themselves", "Leave it out."
            )


def require_device(training: Training) -> None:
    """Raise BadInput for what needs a CUDA device, where there is none."""
    import torch

    if training.optimizer.startswith("paged_") and not torch.cuda.is_available():
        raise BadInput(
            "training.optimizer",
            training.optimizer,
            "pages moments out of a CUDA device's memory, and there is none here",
            "Use adamw or adamw_8bit.",
        )


def require_targets(model: Any, training: Training) -> None:
    """Raise BadInput for a name in target_modules that no linear layer of this base has, or the output layer alone:
    the loss is computed from its weights directly, so an adapter on it would never be trained."""
    if training.method == "full":
        return
    import torch
    from transformers.pytorch_utils import Conv1D  # GPT-2's linear layer

    head, targets = model.get_output_embeddings(), training.target_modules
    linear = {
        name.rpartition(".")[2]
        for name, module in model.named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D)) and module is not head
    }
    for target in () if isinstance(targets, str) else targets:
        if target not in linear:
            raise BadInput(
                "training.target_modules",
                target,
                "is no linear layer of this base that can be adapted",
                f"It has {', '.join(sorted(linear))}.",
            )


def lora_options(training: Training) -> dict[str, Any]:
    """PEFT's keyword arguments for the adapter."""
    targets = training.target_modules
    return {
        "r": training.rank,
        "lora_alpha": training.alpha,
        "lora_dropout": training.dropout,
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "use_rslora": training.rslora,
        "use_dora": training.dora,
        "init_lora_weights": "pissa" if training.pissa else True,
    }


def begin(model: Any, spec: TrainingSpec) -> None:
    """Keep what a PiSSA adapter begins with: it was taken out of the base, and goes back when it is saved."""
    if spec.training.pissa:
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(spec.work / _BEGINNING)


def half() -> Any:
    """The 16-bit type that this device computes in."""
    import torch

    return torch.float16 if torch.cuda.is_available() and not torch.cuda.is_bf16_supported() else torch.bfloat16


def precision(model: Any, training: Training) -> Any:
    """The type that a model computes in; with method full the weights are in 32 bits while they are trained, since an
    update in 16 bits would mostly be rounded away (mixed precision, arXiv 1710.03740)."""
    return half() if training.method == "full" else model.dtype


def settle(model: Any, training: Training) -> None:
    """Bring the weights into the precision that they are saved and judged in: all that were trained, rounded to 16
    bits. A LoRA matrix stays as it is."""
    if training.method == "full":
        model.to(precision(model, training))


def save(model: Any, spec: TrainingSpec, folder: Path) -> None:
    """Write the weights that were trained: PEFT's two files, of an adapter for the unchanged base, or a whole model's
    with its config."""
    if spec.training.method == "full":
        model.save_pretrained(folder)
        # The base's own, since a trainer changes what it holds (use_cache) and notes where it was loaded from.
        config = json.loads((spec.base_folder / "config.json").read_text(encoding="utf-8"))
        named = "torch_dtype" if "torch_dtype" in config else "dtype"
        config[named] = str(model.dtype).removeprefix("torch.")
        write_whole(folder / "config.json", json.dumps(config, indent=2))
        return
    beginning = str(spec.work / _BEGINNING) if spec.training.pissa else None
    model.save_pretrained(folder, path_initial_model_for_weight_conversion=beginning)
