"""A base that two GPUs have between them: the losses of one that each has whole, at less memory."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from tasks.recipe import Training
from tasks.training import estimate, shape_of

LENGTH = 1024


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_a_split_base_trains_alike_at_less_memory(
    method: Literal["qlora", "lora"], qwen3: Callable[[str], Path], train_on: Callable[..., Any], tmp_path: Path
) -> None:
    import torch

    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    whole = Training(
        backend="transformers", method=method, processes=2, batch_size=4, micro_batch_size=1, warmup_steps=0
    )
    split = whole.model_copy(update={"sharding": "base"})
    base = qwen3("4B")
    peaks, losses = [], []
    for name, training in (("whole", whole), ("split", split)):
        found = train_on(base, training, [LENGTH] * 16, tmp_path / name)
        said = estimate(shape_of(base, training), training, length=LENGTH, micro=1, gpu=True)
        losses.append([json.loads(line)["loss"] for line in (tmp_path / name / "progress.jsonl").open()])
        peaks.append(found.peak_memory)
        print(f"Qwen3-4B {method} {name}: estimate {said.total / 1e9:.2f} GB, peak {found.peak_memory / 1e9:.2f} GB")
    assert losses[1] == pytest.approx(losses[0], rel=0.01)
    assert peaks[1] < peaks[0]
