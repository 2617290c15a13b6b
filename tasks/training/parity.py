"""Does the saved adapter answer as the trained model did? Asked before anything else sees it."""

from __future__ import annotations

from typing import Any

import numpy as np

from tasks.errors import WorldFailed
from tasks.training.rows import Rows

_ROWS = 4
_TOKENS = 256
# Of the logits' spread, in the mean square. In bfloat16, changing the adapter by 1e-7 of itself moves the logits of the
# demo's base by 0.03 of their spread, and losing one of its layers by 0.08 to 0.10.
_TOLERANCE = 0.05


def prompts(training: Rows) -> list[list[int]]:
    """Token ids of a few rows spread over the split, cut to what is quick to run."""
    from datasets import Dataset

    data = Dataset.from_file(str(training.file))
    chosen = np.unique(np.linspace(0, len(data) - 1, _ROWS).astype(int))
    return [data[int(i)]["input_ids"][:_TOKENS] for i in chosen]


def logits(model: Any, asked: list[list[int]]) -> list[Any]:
    """float32 tensors of (tokens, vocabulary), one a prompt."""
    import torch

    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float().cpu() for ids in asked]


def require(expected: list[Any], found: list[Any]) -> None:
    """Raise WorldFailed unless each prompt's logits are those of the trained model, but for rounding."""
    for trained, loaded in zip(expected, found, strict=True):
        difference, spread = float((trained - loaded).square().mean().sqrt()), float(trained.std())
        if not difference <= _TOLERANCE * spread:
            raise WorldFailed(
                "training",
                f"the saved adapter answers differently from the trained one (logits differ by {difference:.3g} in the "
                f"root mean square, where they spread by {spread:.3g})",
                "Report this with the log; nothing was released.",
            )
