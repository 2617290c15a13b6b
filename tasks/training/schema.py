"""What training reports while it runs and leaves in the store when it is done."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.store import Manifest


class Progress(BaseModel):
    """One line of a training process's report."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    steps: int
    loss: float
    learning_rate: float
    tokens_per_second: float
    seconds: float
    validation_loss: float | None = None


class Adapter(Manifest):
    """A trained adapter.

    Files: `adapter/` (adapter_model.safetensors, adapter_config.json, tokenizer, chat template,
    generation config) and `progress.jsonl`. `base` and `mixture` are addresses; memory in bytes,
    time in seconds; `losses`: mean training loss (nats per supervised token) of the last tenth of the
    steps and the validation loss; `resumed`: steps that a resumed attempt did not have to repeat.
    """

    kind = "adapter"

    base: str
    mixture: str
    base_weights: str
    steps: int
    loss: float
    validation_loss: float | None
    tokens: int
    supervised_tokens: int
    seconds: float
    peak_memory: int
    device: str
    resumed: int
    environment: dict[str, Any]
