"""What only a CUDA device can do: paged moments, recomputed activations, packing with its kernels."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.recipe import Training

WAYS = {
    "paged": {"optimizer": "paged_adamw_8bit"},
    "packed": {"backend": "transformers", "packing": True},
    "transformers": {"backend": "transformers"},
}


@pytest.mark.parametrize("way", WAYS)
def test_it_trains_and_is_the_same_once_loaded_again(
    way: str, qwen3: Callable[[str], Path], train_on: Callable[..., Any], tmp_path: Path
) -> None:
    """The loop itself compares the saved adapter's matrices and answers with the trained one's."""
    training = Training.model_validate({"batch_size": 4, "warmup_steps": 0, **WAYS[way]})
    found = train_on(qwen3("0.6B"), training, [64, 700, 128, 900] * 4, tmp_path / "work")
    assert found.steps == 4
    assert found.loss == pytest.approx(12, abs=3)  # random weights: about the logarithm of the vocabulary
