"""What a training process is told and what it answers: two small files, whatever the backend.

A backend is a module that is run as `python -m MODULE SPEC.json`. It reads a TrainingSpec, reports
Progress lines on the descriptor that it is given, and leaves `adapter/`, `progress.jsonl` and
`result.json` (a TrainingResult) in the work folder; or `failure.json` (a Failure) and an exit code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.recipe import Training

RESULT = "result.json"
FAILURE = "failure.json"
PROGRESS = "progress.jsonl"
ADAPTER = "adapter"
CHECKPOINTS = "checkpoints"
LOG = "training.log"
MICRO_BATCH = "micro-batch"  # rows of one forward pass, as an attempt found them to fit
RUN_ME_AGAIN = 75  # EX_TEMPFAIL of sysexits.h: stopped in good order, and another attempt goes on from there
NOT_FINITE = 76


class TrainingSpec(BaseModel):
    """All that a training process needs; it reads nothing else.

    `base_weights`: digest of the base's weight files. `rate_scale`: factor on the learning rate, less
    than 1 after a run that diverged. `validation` is None where that split is empty. `memory`: bytes that training may
    take on this machine's CPU; None where that is not known.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    work: Path
    base_folder: Path
    base_uri: str
    base_revision: str
    base_weights: str
    train: Path
    validation: Path | None
    max_length: int
    chat_template: str | None
    training: Training
    rate_scale: float = 1.0
    memory: int | None = None


class TrainingResult(BaseModel):
    """What a training process measured; fields as in Adapter."""

    model_config = ConfigDict(frozen=True, extra="forbid")

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


class Failure(BaseModel):
    """An error that the process foresaw, so that the parent can raise it as its own."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    error: Literal["BadInput", "WorldFailed"]
    message: str
    field: str | None = None
    value: str | None = None
