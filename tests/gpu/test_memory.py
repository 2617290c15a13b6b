"""The estimate of training's memory against the measured peak, on Qwen3's shapes; and a trial that runs out of it."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import WorldFailed
from tasks.recipe import Training
from tasks.training import estimate, shape_of

LENGTH = 2048
STEPS = 3


@pytest.mark.parametrize(
    ("backend", "method"), [*product(("unsloth", "transformers"), ("qlora", "lora")), ("transformers", "full")]
)
@pytest.mark.parametrize("size", ["0.6B", "4B", "8B"])
def test_the_estimate_is_within_15_percent_of_the_peak(
    size: str,
    backend: Any,
    method: Any,
    qwen3: Callable[[str], Path],
    train_on: Callable[..., Any],
    tmp_path: Path,
) -> None:
    import torch

    training = Training(backend=backend, method=method, batch_size=4, warmup_steps=0)
    base = qwen3(size)
    said = estimate(shape_of(base, training), training, length=LENGTH, micro=4, gpu=True)
    if said.total > 0.9 * torch.cuda.mem_get_info()[0]:
        pytest.skip(f"about {said.total / 1e9:.0f} GB, more than this device has free")
    found = train_on(base, training, [LENGTH] * 4 * STEPS, tmp_path / "work")
    print(f"Qwen3-{size} {backend} {method}: estimate {said.total / 1e9:.2f} GB, peak {found.peak_memory / 1e9:.2f} GB")
    print(f"  {said}")
    assert found.environment["micro_batch_size"] == 4
    # The peak is what PyTorch's allocator reserved; CUDA's own context is not in it.
    assert said.total - said.process == pytest.approx(found.peak_memory, rel=0.15)


def test_memory_that_runs_out_in_the_trial_halves_the_rows_of_a_pass(
    qwen3: Callable[[str], Path], train_on: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For real: the allocator is held to what the estimate says that half of the rows take."""
    import torch

    training = Training(method="lora", batch_size=8, warmup_steps=0)
    base = qwen3("0.6B")
    room = estimate(shape_of(base, training), training, length=LENGTH, micro=4, gpu=True)
    share = (room.total - room.process) * 1.1 / torch.cuda.get_device_properties(0).total_memory
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", f"per_process_memory_fraction:{share:.4f}")
    try:
        found = train_on(base, training, [LENGTH] * 16, tmp_path / "work")
    except WorldFailed as error:
        pytest.fail(f"not even one row fitted into {share:.1%} of the device: {error}")
    print(f"8 rows a step, {found.environment['micro_batch_size']} a pass, peak {found.peak_memory / 1e9:.2f} GB")
    assert found.environment["micro_batch_size"] in (1, 2, 4)
    assert found.steps == 2
