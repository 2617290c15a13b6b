"""The default backend: QLoRA and LoRA with Unsloth, on one CUDA device or on the CPU, by the same calls."""

from __future__ import annotations

from typing import Any

from tasks.training import method
from tasks.training.child import Attempt, serve
from tasks.training.spec import TrainingResult, TrainingSpec


def train(attempt: Attempt) -> TrainingResult | None:
    """Train one adapter with Unsloth; see loop.train."""
    import unsloth  # noqa: F401 (before the libraries that it patches)

    from tasks.training import loop

    return loop.train(attempt, loop.Backend(load=_load, adapt=_adapt, trainer=_trainer))


def _load(spec: TrainingSpec, longest: int) -> Any:
    from unsloth import FastLanguageModel

    quantised = spec.training.method == "qlora"
    model, _ = FastLanguageModel.from_pretrained(
        str(spec.base_folder),
        max_seq_length=max(longest, 64),
        load_in_4bit=quantised,
        load_in_16bit=not quantised,
        use_gradient_checkpointing=False,
        local_files_only=True,
    )
    return model


def _adapt(model: Any, spec: TrainingSpec) -> Any:
    from unsloth import FastLanguageModel

    from tasks.training.trainer import recomputes

    return FastLanguageModel.get_peft_model(
        model,
        **method.lora_options(spec.training),
        random_state=spec.training.seed,
        use_gradient_checkpointing="unsloth" if recomputes(model) else False,
    )


def _trainer() -> Any:
    from tasks.training.trainer import AdapterTrainer

    return AdapterTrainer


if __name__ == "__main__":
    serve(train)
