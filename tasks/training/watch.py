"""What watches a training run from within: reports each step, seals checkpoints, stops what must not go on.

Imported by the training process alone, once its backend has been: Unsloth patches these libraries.
"""

from __future__ import annotations

import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch  # noqa: TID253
from transformers import TrainerCallback  # noqa: TID253

from tasks.errors import WorldFailed
from tasks.training import checkpoints
from tasks.training.child import Attempt, NotFinite
from tasks.training.schema import Progress


class Watch(TrainerCallback):
    """The callback of one run.

    `tokens`: real tokens up to and with each row in the order of training; `rates`: peak learning rate of
    each group of parameters; `before`: seconds that earlier attempts took.
    """

    def __init__(self, attempt: Attempt, tokens: np.ndarray, batch_size: int, before: float) -> None:
        self.rates: list[float] = []
        self._attempt = attempt
        self._tokens = tokens
        self._batch_size = batch_size
        self._before = before
        self._started = self._last = time.perf_counter()

    def seconds(self) -> float:
        """Seconds of training, those of earlier attempts included."""
        return self._before + time.perf_counter() - self._started

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._started = self._last = time.perf_counter()
        # A checkpoint brings the rates it was saved with; after a halving the spec's are the ones that count.
        schedule = kwargs["lr_scheduler"]
        schedule.base_lrs = list(self.rates)
        groups = kwargs["optimizer"].param_groups
        for group, rate, share in zip(groups, self.rates, schedule.lr_lambdas, strict=True):
            group["lr"] = rate * share(schedule.last_epoch)
        schedule._last_lr = [group["lr"] for group in groups]

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._attempt.agreed(self._attempt.stop.is_set()):
            control.should_save = control.should_training_stop = True
        if control.should_save or state.global_step % args.save_steps == 0:
            require_disk(self._attempt.spec.work, kwargs["model"])

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        if not logs or "loss" not in logs:
            return
        loss, gradient, step = float(logs["loss"]), float(logs["grad_norm"]), state.global_step
        if not (math.isfinite(loss) and math.isfinite(gradient)):
            raise NotFinite(
                "training",
                f"the loss is {loss:g} and its gradient {gradient:g} at step {step} of {state.max_steps}",
                "Lower training.learning_rate, or look for damaged rows or base weights.",
            )
        now = time.perf_counter()
        done = self._tokens[min(step * self._batch_size, len(self._tokens)) - 1]
        since = self._tokens[(step - 1) * self._batch_size - 1] if step > 1 else 0
        self._attempt.report(
            Progress(
                step=step,
                steps=state.max_steps,
                loss=loss,
                learning_rate=float(logs["learning_rate"]),
                tokens_per_second=float(done - since) / max(now - self._last, 1e-9),
                seconds=self._before + now - self._started,
            )
        )
        self._last = now

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._attempt.wait_for_all()  # every process writes its own random state into the checkpoint
        if self._attempt.first:
            folder = Path(args.output_dir)
            checkpoints.seal(folder / f"checkpoint-{state.global_step}")
            checkpoints.prune(folder)


def require_disk(work: Path, model: Any) -> None:
    """Raise WorldFailed when a checkpoint (weights and two moments, in float32) might not fit."""
    size = 4 * 3 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    free = shutil.disk_usage(work).free
    if free < 2 * size + 64 * 2**20:
        raise WorldFailed(
            str(work),
            f"has {free / 2**20:.0f} MB free, too little for a checkpoint of {size / 2**20:.0f} MB",
            "Free disk space; what was saved so far is kept.",
        )


def require_trained(model: Any) -> None:
    """Raise NotFinite unless every trained weight is finite, WorldFailed where all of LoRA's updates are zero."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if wrong := [name for name, p in trained.items() if not torch.isfinite(p).all()]:
        raise NotFinite("training", f"{wrong[0]} is not finite after the last step", "Lower training.learning_rate.")
    updates = [p for name, p in trained.items() if "lora_B" in name]
    if updates and not any(p.abs().max() > 0 for p in updates):
        raise WorldFailed("training", "the adapter does nothing after the last step", "Raise training.learning_rate.")
