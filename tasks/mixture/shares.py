"""Shares: how many rows of each source make the training split what the recipe asks for.

A share is a fraction of the training split, in supervised tokens (those that the loss is computed on), in tokens or in
rows: a share of rows lets the source with the longest answers take over. What is asked for is

* fixed: what the recipe says of each source;
* proportional: what the sources have, after filtering;
* temperature: what they have to the power of 1 / T, so that small sources get more than they have (T = 1 is
  proportional, and the larger T, the nearer to equal; Raffel et al. 2020, T5, 3.5.2; XLM-R and mT5 take T = 3.3).

A source may be repeated, up to a number of epochs. The mixture grows until one source is used up with all its
repeats, or until every source is used whole; the others are thinned, and what they have above their share is
set aside.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tasks.errors import BadInput
from tasks.mixture.schema import SharePart
from tasks.recipe import Kind, Mixture

TOLERANCE = 0.01
_TRIES = 64  # rows of each source that are left out to meet a share


def asked_shares(
    sizes: Mapping[str, int], fixed: Mapping[str, float | None], kinds: Mapping[str, Kind], mixture: Mixture
) -> dict[str, float]:
    """The share of each source that the recipe asks for; they add up to 1.

    `sizes`: what each source has, in the recipe's measure; `fixed`: the shares that the recipe gives; `kinds`: of the
    sources. With `mixture.reasoning_share`, the sources of that kind share it in their proportions, and the others
    share the rest.

    Raises BadInput when a source has nothing.
    """
    for name, size in sizes.items():
        if not size:
            raise BadInput(
                f"sources.{name}",
                size,
                f"has no {_unit(mixture)} in its rows of the training split",
                "Give the source more rows, or remove it and raise the other shares.",
            )
    if mixture.method == "fixed":
        weights = {name: float(share or 0) for name, share in fixed.items()}
    else:
        power = 1.0 if mixture.method == "proportional" else 1 / mixture.temperature
        weights = {name: float(size) ** power for name, size in sizes.items()}
    part = {name: kind == "reasoning" for name, kind in kinds.items()}
    wanted = {True: mixture.reasoning_share, False: 1 - (mixture.reasoning_share or 0)}
    wholes = {side: sum(w for name, w in weights.items() if part[name] == side) for side in (True, False)}
    if mixture.reasoning_share is None:
        whole = sum(weights.values())
        return {name: weight / whole for name, weight in weights.items()}
    return {name: (wanted[part[name]] or 0) * weight / wholes[part[name]] for name, weight in weights.items()}


def allot(
    amounts: Mapping[str, np.ndarray], asked: Mapping[str, float], mixture: Mixture
) -> tuple[dict[str, SharePart], str | None]:
    """How many rows of each source to take, and what keeps the mixture from being larger.

    `amounts`: what each training row of a source counts for, in the order in which rows are taken, and not all of them
    0; `asked`: fractions that add up to 1. The second value names the source that is used up, is "mixture.rows" when
    that is what binds, or None when everything is used.

    Raises BadInput when rows are too coarse to come within 1 % (of the whole) of the shares, and when the shares leave
    fewer rows than `mixture.min_rows`.
    """
    totals = {name: np.cumsum(amount, dtype=np.int64) for name, amount in amounts.items()}
    binding = min(asked, key=lambda name: totals[name][-1] / asked[name])
    sizes = [float(totals[name][-1] / asked[name]) for name in asked]
    size = min(min(sizes) * mixture.repeats, max(sizes))
    used_up = any(_taken(totals[n], asked[n] * size) < len(totals[n]) for n in asked)
    limit: str | None = binding if used_up else None
    if mixture.rows is not None and _rows(totals, asked, size) > mixture.rows:
        limit = "mixture.rows"
        low, high = 0.0, size
        # The row count never falls as the size grows, so halving finds the largest size that fits.
        while high - low > 0.5:
            middle = (low + high) / 2
            low, high = (middle, high) if _rows(totals, asked, middle) <= mixture.rows else (low, middle)
        size = low
    parts = next(
        (fitting for one in _sizes(totals, asked, size) if _off(fitting := _parts(totals, asked, one)) <= TOLERANCE),
        None,
    )
    if parts is None:
        raise _too_coarse(_parts(totals, asked, size), totals, limit, mixture)
    every = sum(part.rows for part in parts.values())
    if every < mixture.min_rows:
        raise BadInput(
            "mixture.min_rows",
            mixture.min_rows,
            f"cannot be reached: the shares leave {every} rows, limited by {limit or 'the rows there are'}"
            + (f" ({len(totals[limit])} rows for a share of {asked[limit]:.0%})" if limit in totals else ""),
            "Raise mixture.repeats, lower that source's share, or give it more rows.",
        )
    return parts, limit


def _sizes(totals: Mapping[str, np.ndarray], asked: Mapping[str, float], size: float) -> list[float]:
    """The size, and somewhat smaller ones at which a source of long rows comes to its share with whole rows."""
    tried = [size]
    for name, total in totals.items():
        rows = _taken(total, asked[name] * size)
        exact = [_amount(total, count) / asked[name] for count in range(max(rows - _TRIES, 1), rows + 1)]
        tried += [one for one in exact if one < size]
    return sorted(tried, reverse=True)


def _parts(totals: Mapping[str, np.ndarray], asked: Mapping[str, float], size: float) -> dict[str, SharePart]:
    """What each source comes to in a mixture of this size, in the measure."""
    rows = {name: _taken(total, asked[name] * size) for name, total in totals.items()}
    reached = {name: _amount(totals[name], count) for name, count in rows.items()}
    whole = sum(reached.values())
    return {
        name: SharePart(
            asked=asked[name],
            reached=reached[name] / whole if whole else 0.0,
            rows=rows[name],
            amount=reached[name],
            epochs=rows[name] / len(totals[name]),
        )
        for name in asked
    }


def _off(parts: Mapping[str, SharePart]) -> float:
    """How far the share farthest from what was asked for is from it; a source without a row is off altogether."""
    return max(abs(part.reached - part.asked) if part.rows else 1.0 for part in parts.values())


def _taken(total: np.ndarray, target: float) -> int:
    """Rows, in whole epochs and a part, whose running total comes nearest to a target; of two as near, the fewer."""
    epochs = int(target // total[-1])
    target -= epochs * float(total[-1])
    after = int(np.searchsorted(total, target))
    if after == len(total):
        return epochs * len(total) + after
    before = int(total[after - 1]) if after else 0
    return epochs * len(total) + (after if target - before <= total[after] - target else after + 1)


def _amount(total: np.ndarray, rows: int) -> int:
    epochs, part = divmod(rows, len(total))
    return epochs * int(total[-1]) + (int(total[part - 1]) if part else 0)


def _rows(totals: Mapping[str, np.ndarray], asked: Mapping[str, float], size: float) -> int:
    return sum(_taken(total, asked[name] * size) for name, total in totals.items())


def _too_coarse(
    parts: Mapping[str, SharePart], totals: Mapping[str, np.ndarray], limit: str | None, mixture: Mixture
) -> BadInput:
    name = max(parts, key=lambda n: abs(parts[n].reached - parts[n].asked))
    part, total = parts[name], totals[name]
    cause = "mixture.rows" if limit == "mixture.rows" else f"source {limit!r}" if limit else "the rows there are"
    whole = sum(one.amount for one in parts.values())
    return BadInput(
        f"sources.{name}.share",
        round(part.asked, 6),
        f"cannot be reached within {TOLERANCE:.0%}: the nearest is {part.reached:.4f}, with {part.rows} of its "
        f"{len(total)} rows ({part.amount} of {int(total[-1])} {_unit(mixture)}s, in a mixture of {whole} "
        f"that {cause} limits)",
        "Rows are too coarse for so small a mixture: raise mixture.rows or mixture.repeats, give the limiting source "
        "more rows, or change the shares.",
    )


def _unit(mixture: Mixture) -> str:
    return mixture.measure.removesuffix("s").replace("_", " ")
