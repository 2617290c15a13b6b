"""From scores to a verdict: each suite compared, one decision, and reasons that a person can act on.

A target must be better and a guard must not be worse than its margin. One night's confidence is an
argument of `compare`: whoever holds the error rate of a whole year hands in what this night may spend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from tasks.errors import BadInput
from tasks.evaluation import statistics
from tasks.evaluation.schema import Comparison, Decision, Outcome, Scores
from tasks.recipe import Role, Suite


class Compared(NamedTuple):
    """A comparison, and the smallest true difference it would see 8 nights in 10 (None: too few items)."""

    comparison: Comparison
    detectable: float | None


class Items(NamedTuple):
    """A model's scores and its `items.parquet`."""

    scores: Scores
    items: pl.DataFrame


def compare(
    suite: Suite, base: Items, reference: Items, candidate: Items, *, confidence: float, min_items: int
) -> Compared:
    """Candidate against reference on a suite, on the items that both answered.

    Raises BadInput where a model has no scores on the suite or has them under other generation settings.
    """
    about = _same_settings(suite, base, reference, candidate)
    sides = [
        model.items.filter(pl.col("suite") == suite.name).select("item_id", "score", *_cluster(model.items))
        for model in (reference, candidate)
    ]
    pairs = sides[0].join(sides[1].select("item_id", candidate="score"), on="item_id", how="inner").sort("item_id")
    sign = 1.0 if about.higher_is_better else -1.0
    differences = (sign * (pairs["candidate"] - pairs["score"])).to_list()
    clusters = pairs["cluster"].to_list() if "cluster" in pairs.columns else None
    enough = len(differences) >= max(2, min_items)
    found = statistics.difference(differences, confidence, clusters) if len(differences) >= 2 else None
    difference = found.mean if found else sum(differences)
    low, high, p = (found.low, found.high, found.p) if found else (-float("inf"), float("inf"), 1.0)
    comparison = Comparison(
        suite=suite.name,
        role=suite.role,
        unit=about.unit,
        higher_is_better=about.higher_is_better,
        items=len(differences),
        base=base.scores.suites[suite.name].mean,
        reference=_mean(pairs["score"]),
        candidate=_mean(pairs["candidate"]),
        difference=difference,
        low=low,
        high=high,
        p=p,
        margin=suite.margin,
        wins=sum(d > 0 for d in differences),
        losses=sum(d < 0 for d in differences),
        outcome=outcome(suite.role, low, high, p, suite.margin, confidence) if enough else "cannot tell",
    )
    return Compared(comparison, found.detectable if found and enough else None)


def outcome(role: Role, low: float, high: float, p: float, margin: float, confidence: float) -> Outcome:
    """What an interval says: a target is held to zero, a guard to its margin.

    A target is called better only where the exact test agrees with the interval.
    """
    if role == "target":
        if low > 0 and p <= 1 - confidence:
            return "better"
        return "worse" if high < 0 else "cannot tell"
    if low > -margin:
        return "not worse"
    return "worse" if high < -margin else "cannot tell"


def decide(comparisons: Sequence[Comparison]) -> Decision:
    """Promote where every target is better and every guard not worse; keep where anything is worse."""
    if any(comparison.outcome == "worse" for comparison in comparisons):
        return "keep"
    targets = [comparison for comparison in comparisons if comparison.role == "target"]
    if targets and all(comparison.outcome in ("better", "not worse") for comparison in comparisons):
        return "promote"
    return "cannot tell"


def reasons(compared: Sequence[Compared], *, confidence: float, min_items: int) -> tuple[str, ...]:
    """One sentence or two a suite, the deciding ones first."""
    order = {"worse": 0, "cannot tell": 1, "better": 2, "not worse": 3}
    return tuple(
        _reason(entry, confidence, min_items)
        for entry in sorted(compared, key=lambda entry: order[entry.comparison.outcome])
    )


def _reason(entry: Compared, confidence: float, min_items: int) -> str:
    c, detectable = entry
    if detectable is None:
        return f"{c.suite} ({c.role}): only {c.items} items were answered by both; the gate needs {min_items}."
    says = {
        ("target", "better"): "is better than the reference",
        ("target", "worse"): "is worse than the reference",
        ("target", "cannot tell"): "may be better, equal or worse",
        ("guard", "not worse"): f"is not worse by more than the margin of {_amount(c.margin, c.unit)}",
        ("guard", "worse"): f"is worse by more than the margin of {_amount(c.margin, c.unit)}",
        ("guard", "cannot tell"): f"may be worse by more than the margin of {_amount(c.margin, c.unit)}",
    }[c.role, c.outcome]
    sentence = (
        f"{c.suite} ({c.role}): the candidate {says}: {_level(c.candidate, c.unit)} against "
        f"{_level(c.reference, c.unit)} on {c.items} items, {_signed(c.difference, c.unit)} "
        f"({confidence:.0%} interval {_signed(c.low, c.unit)} to {_signed(c.high, c.unit)}; plus is better)."
    )
    if c.outcome != "cannot tell":
        return sentence
    return (
        f"{sentence} With {c.items} items like these the gate sees a difference of "
        f"{_amount(detectable, c.unit)} 8 nights in 10; a smaller one takes more items."
    )


def _same_settings(suite: Suite, *models: Items):  # type: ignore[no-untyped-def]
    found = [model.scores.suites.get(suite.name) for model in models]
    for model, about in zip(models, found, strict=True):
        if about is None:
            raise BadInput(
                f"evaluation.suites.{suite.name}",
                model.scores.short,
                "are scores without this suite",
                "Evaluate that model again with this recipe.",
            )
    if len({about.settings for about in found if about}) > 1:
        raise BadInput(
            f"evaluation.suites.{suite.name}",
            ", ".join(model.scores.short for model in models),
            "are scores under different generation settings",
            "Evaluate all models again with this recipe.",
        )
    return found[0]


def _cluster(items: pl.DataFrame) -> list[str]:
    return ["cluster"] if "cluster" in items.columns else []


def _mean(scores: pl.Series) -> float:
    return float(scores.mean()) if len(scores) else float("nan")  # type: ignore[arg-type]


def _amount(value: float, unit: str) -> str:
    return f"{100 * value:.1f} points" if unit == "share" else f"{value:.3f} {unit}"


def _signed(value: float, unit: str) -> str:
    return f"{100 * value:+.1f} points" if unit == "share" else f"{value:+.3f} {unit}"


def _level(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "share" else f"{value:.3f} {unit}"
