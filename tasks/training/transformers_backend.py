"""The reference backend, with transformers, PEFT and bitsandbytes: QLoRA, LoRA or all weights, on any devices.

It runs without Unsloth in the process. Several processes are started by ranks.py and train as one.
"""

from __future__ import annotations

import json
from typing import Any

from tasks.training import method
from tasks.training.child import Attempt, serve
from tasks.training.spec import TrainingResult, TrainingSpec


def train(attempt: Attempt) -> TrainingResult | None:
    """Train one adapter with transformers; see loop.train."""
    from tasks.training import loop

    return loop.train(attempt, loop.Backend(load=_load, adapt=_adapt, trainer=_trainer))


def _load(spec: TrainingSpec, longest: int) -> Any:
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = method.half()
    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        # Codes, not numbers: kept as a float, some would be NaN, and FSDP2 has been seen to normalise those
        # (bitsandbytes issue 1945). Only the FSDP before it asked for a float.
        bnb_4bit_quant_storage=torch.uint8,
    )
    config = json.loads((spec.base_folder / "config.json").read_text(encoding="utf-8"))
    quantise = spec.training.method == "qlora" and "quantization_config" not in config
    model = AutoModelForCausalLM.from_pretrained(
        spec.base_folder,
        dtype=dtype,
        device_map={"": _place(spec)} if torch.cuda.is_available() else None,
        local_files_only=True,
        use_safetensors=True,
        # None here would overrule the config of a base that is quantised already.
        **({"quantization_config": four_bit} if quantise else {}),
    )
    return model.requires_grad_(False)


def _place(spec: TrainingSpec) -> int | str:
    """Where the base is read to: this process's GPU, or the host where the GPU is to get its part alone."""
    import torch

    return torch.cuda.current_device() if spec.training.sharding == "none" else "cpu"


def _adapt(model: Any, spec: TrainingSpec) -> Any:
    if spec.training.method == "full":
        from transformers import GenerationConfig

        # Some bases bring one that can be read and not be written (temperature without do_sample), and a checkpoint
        # would write it. The folder that leaves training gets the base's own values, as they are.
        model.generation_config = GenerationConfig()
        return model.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **method.lora_options(spec.training)))


def _trainer() -> Any:
    import torch
    import transformers

    from tasks.training.trainer import AdapterTrainer

    if torch.cuda.is_available():
        return AdapterTrainer

    class OnCpu(AdapterTrainer):
        # TRL computes its loss in Triton kernels, which no CPU runs.
        compute_loss = transformers.Trainer.compute_loss

    return OnCpu


if __name__ == "__main__":
    serve(train)
