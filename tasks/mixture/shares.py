"""Shares: how many rows of each source make the training split what the recipe asks for.

Shares are fractions of supervised tokens, the tokens that the loss is computed on: a share of rows would let
the source with the longest answers take over. No source is repeated, so the source with the fewest tokens
for its share sets the size of the mixture; the others are thinned, and what they have above their share is
set aside.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tasks.errors import BadInput
from tasks.mixture.schema import SharePart

TOLERANCE = 0.01


def allot(
    supervised: Mapping[str, np.ndarray], asked: Mapping[str, float], most_rows: int | None = None
) -> tuple[dict[str, SharePart], str | None]:
    """How many rows of each source to take, and what keeps the mixture from being larger.

    `supervised`: supervised tokens of each training row of a source, in the order in which rows are taken.
    `asked`: fractions that add up to 1. `most_rows`: most rows in all. The second value names the source that
    is used up, is "mixture.rows" when that is what binds, or None when everything is used.

    Raises BadInput when a source has nothing, or when rows are too coarse to come within 1 % (of the whole)
    of the shares.
    """
    totals = {name: np.cumsum(tokens, dtype=np.int64) for name, tokens in supervised.items()}
    for name, total in totals.items():
        if not len(total) or not total[-1]:
            raise BadInput(
                f"sources.{name}",
                f"{len(total)} rows",
                "has no supervised token left in the training split after duplicates and held-out prompts",
                "Give the source more rows, or remove it and raise the other shares.",
            )
    binding = min(asked, key=lambda name: totals[name][-1] / asked[name])
    size = float(totals[binding][-1] / asked[binding])
    limit: str | None = binding if any(_taken(totals[n], asked[n] * size) < len(totals[n]) for n in asked) else None
    if most_rows is not None and _rows(totals, asked, size) > most_rows:
        limit = "mixture.rows"
        low, high = 0.0, size
        # The row count never falls as the size grows, so halving finds the largest size that fits.
        while high - low > 0.5:
            middle = (low + high) / 2
            low, high = (middle, high) if _rows(totals, asked, middle) <= most_rows else (low, middle)
        size = low
    rows = {name: _taken(total, asked[name] * size) for name, total in totals.items()}
    tokens = {name: int(totals[name][count - 1]) if count else 0 for name, count in rows.items()}
    whole = sum(tokens.values())
    parts = {
        name: SharePart(
            asked=asked[name],
            reached=tokens[name] / whole if whole else 0.0,
            rows=rows[name],
            supervised_tokens=tokens[name],
        )
        for name in asked
    }
    _within_tolerance(parts, totals, whole, limit)
    return parts, limit


def _taken(total: np.ndarray, target: float) -> int:
    """Rows whose running total comes nearest to a target; of two that are as near, the fewer."""
    after = int(np.searchsorted(total, target))
    if after == len(total):
        return after
    before = int(total[after - 1]) if after else 0
    return after if target - before <= total[after] - target else after + 1


def _rows(totals: Mapping[str, np.ndarray], asked: Mapping[str, float], size: float) -> int:
    return sum(_taken(total, asked[name] * size) for name, total in totals.items())


def _within_tolerance(
    parts: Mapping[str, SharePart], totals: Mapping[str, np.ndarray], whole: int, limit: str | None
) -> None:
    name = max(parts, key=lambda n: abs(parts[n].reached - parts[n].asked))
    part, total = parts[name], totals[name]
    if part.rows and abs(part.reached - part.asked) <= TOLERANCE:
        return
    cause = "mixture.rows" if limit == "mixture.rows" else f"source {limit!r}" if limit else "the rows there are"
    raise BadInput(
        f"sources.{name}.share",
        part.asked,
        f"cannot be reached within {TOLERANCE:.0%}: the nearest is {part.reached:.4f}, with {part.rows} of its "
        f"{len(total)} rows ({part.supervised_tokens} of {int(total[-1])} supervised tokens, in a mixture of {whole} "
        f"that {cause} limits)",
        "Rows are too coarse for so small a mixture: raise mixture.rows, give the limiting source more rows, or "
        "change the shares.",
    )
