"""Is the saved adapter the trained one, and does it answer as that did? Asked before anything else sees it.

Two looks, since neither is enough: one matrix of hundreds that was lost moves the logits by less than rounding in
bfloat16 does, and the right matrices on the wrong base or in the wrong places are still the right matrices.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.errors import WorldFailed
from tasks.training.rows import Rows

_ROWS = 4
_TOKENS = 256
_ADVICE = "Report this with the log; nothing was released."
# Of the logits' spread, in the mean square. In bfloat16, changing the adapter by 1e-5 of itself moves the logits of the
# demo's base by 0.04 of their spread, and trained and loaded model have been 0.065 apart on rows of drawn tokens with
# every matrix the same. So this finds another base or place; what is lost of an adapter, the matrices tell.
_TOLERANCE = 0.2


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


@dataclass(frozen=True)
class Matrix:
    """One trained matrix: its shape, sha256 of its values as float32, and the scale of its update (1 where it is no
    update but the weights)."""

    shape: tuple[int, ...]
    digest: str
    scale: float


def matrices(model: Any) -> dict[str, Matrix]:
    """The trained matrices of a model, by the names of its parameters."""
    scales = _scales(model)
    return {name: _matrix(name, p, scales) for name, p in model.named_parameters() if p.requires_grad}


def require_same(trained: Mapping[str, Matrix], loaded: Any) -> None:
    """Raise WorldFailed unless a loaded model has each trained matrix, bit for bit, and no other.

    Of a PiSSA adapter, which is saved with what it began with beside it, the trained part of each is compared.
    """
    found = dict(loaded.named_parameters())
    adapters = {name for name in found if "lora_" in name}
    wrong = sorted((adapters or set(found)) ^ set(trained))
    if not wrong:
        scales = _scales(loaded)
        for name, matrix in trained.items():
            part = found[name][tuple(slice(size) for size in matrix.shape)]
            if _matrix(name, part, scales) != matrix:
                wrong.append(name)
    if wrong:
        found_out = f"{len(wrong)} of {len(trained)} matrices differ, {wrong[0]} first"
        raise WorldFailed("training", f"the saved adapter is not the trained one ({found_out})", _ADVICE)


def _scales(model: Any) -> dict[str, float]:
    """What multiplies the update of each adapted module."""
    return {name: m.scaling["default"] for name, m in model.named_modules() if hasattr(m, "lora_A")}


def _matrix(name: str, parameter: Any, scales: Mapping[str, float]) -> Matrix:
    module, of_lora, _ = name.partition(".lora_")
    return Matrix(tuple(parameter.shape), _digest(parameter), scales[module] if of_lora else 1.0)


def _digest(parameter: Any) -> str:
    return hashlib.sha256(parameter.detach().float().cpu().contiguous().numpy().data).hexdigest()


def require(expected: list[Any], found: list[Any]) -> None:
    """Raise WorldFailed unless each prompt's logits are those of the trained model, but for rounding."""
    for trained, loaded in zip(expected, found, strict=True):
        difference, spread = float((trained - loaded).square().mean().sqrt()), float(trained.std())
        if not difference <= _TOLERANCE * spread:
            raise WorldFailed(
                "training",
                f"the saved adapter answers differently from the trained one (logits differ by {difference:.3g} in the "
                f"root mean square, where they spread by {spread:.3g})",
                _ADVICE,
            )
