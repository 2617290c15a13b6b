"""The numbers of a verdict laid out by suite, for the terminal, the card and the page alike."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tasks.errors import BadInput
from tasks.evaluation import Comparison, Scores, Verdict
from tasks.store import Store

Z95 = 1.959964


@dataclass(frozen=True)
class Mean:
    """A mean with its 95 % interval and the number of items behind it."""

    value: float
    low: float
    high: float
    items: int


@dataclass(frozen=True)
class SuiteRow:
    """One suite: each model's mean by role (base, champion, candidate), and the gate's comparison."""

    name: str
    unit: str
    higher_is_better: bool
    means: dict[str, Mean]
    comparison: Comparison | None


def suite_rows(scores: Mapping[str, Scores], verdict: Verdict, store: Store) -> list[SuiteRow]:
    """Rows in the candidate's order of suites; `scores` by role: base, candidate and, where there is one, champion."""
    compared = {comparison.suite: comparison for comparison in verdict.comparisons}
    items = {role: items_of(entry, store) for role, entry in scores.items()}
    return [
        SuiteRow(
            name=name,
            unit=score.unit,
            higher_is_better=score.higher_is_better,
            means={
                role: mean_of(items[role].filter(pl.col("suite") == name)["score"])
                for role, entry in scores.items()
                if name in entry.suites
            },
            comparison=compared.get(name),
        )
        for name, score in scores["candidate"].suites.items()
    ]


def by_role(scores: Iterable[Scores], verdict: Verdict) -> dict[str, Scores]:
    """Scores as base, champion (where there is one) and candidate of a verdict.

    Raises BadInput when those of one are missing.
    """
    adapters = {"base": None, "candidate": verdict.candidate}
    if verdict.champion is not None:
        adapters = {"base": None, "champion": verdict.champion, "candidate": verdict.candidate}
    found = {entry.adapter: entry for entry in scores}
    for role, adapter in adapters.items():
        if adapter not in found:
            raise BadInput(f"scores of the {role}", adapter, "are missing", "Evaluate it first.")
    return {role: found[adapter] for role, adapter in adapters.items()}


def items_of(scores: Scores, store: Store) -> pl.DataFrame:
    """The per-item table of one model; of several samples of an item the mean score, and the first one's text."""
    items = pl.read_parquet(store.folder(scores) / "items.parquet")
    rest = pl.exclude("suite", "item_id", "score").first()
    return items.group_by("suite", "item_id", maintain_order=True).agg(pl.col("score").mean(), rest)


def mean_of(values: pl.Series) -> Mean:
    """Mean and 95 % interval of item scores: Wilson's for right-or-wrong, else from the standard error.

    Wilson, "Probable inference", JASA 22 (1927); it stays inside 0 and 1 and is not empty at either end.
    """
    n = values.len()
    if n == 0:
        return Mean(math.nan, math.nan, math.nan, 0)
    mean = float(values.cast(pl.Float64).sum()) / n
    if set(values.unique().to_list()) <= {0.0, 1.0}:
        centre = (mean + Z95**2 / (2 * n)) / (1 + Z95**2 / n)
        half = Z95 * math.sqrt(mean * (1 - mean) / n + Z95**2 / (4 * n**2)) / (1 + Z95**2 / n)
        return Mean(mean, min(mean, centre - half), max(mean, centre + half), n)
    spread: Any = values.std()
    half = Z95 * float(spread) / math.sqrt(n) if spread is not None else math.nan
    return Mean(mean, mean - half, mean + half, n)


def shown(value: float | None, unit: str) -> str:
    """A score for people: shares as percent, nats with three digits."""
    if value is None or math.isnan(value):
        return "–"
    return f"{100 * value:.1f} %" if is_share(unit) else f"{value:.3f}"


def difference_shown(value: float, unit: str) -> str:
    """A signed difference: shares in points."""
    return f"{100 * value:+.1f}" if is_share(unit) else f"{value:+.3f}"


def is_share(unit: str) -> bool:
    """Whether a unit is a fraction of items."""
    return "nat" not in unit


def score_metrics(rows: Sequence[SuiteRow]) -> dict[str, float]:
    """What is logged with the adapter: its mean with interval, and the paired difference with its own."""
    values: dict[str, float] = {}
    for row in rows:
        mean = row.means["candidate"]
        values |= {row.name: mean.value, f"{row.name}/low": mean.low, f"{row.name}/high": mean.high}
        if row.comparison:
            found = {"difference": row.comparison.difference, "difference_low": row.comparison.low}
            found |= {"difference_high": row.comparison.high, "reference": row.comparison.reference}
            values |= {f"{row.name}/{key}": value for key, value in found.items()}
    return values
