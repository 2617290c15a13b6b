"""From scores to a verdict: each suite compared, one decision, and reasons that a person can act on.

A target must be better, by a test at the level that the year leaves this night (tasks/evaluation/year.py). A guard
must not be worse than its margin, by the interval at the gate's confidence: a candidate that is exactly at the margin
passes in 2.5 % of cases at 95 %. That error is held for each candidate that the targets would let out, not for the
year: guards at the level of a night would take four times the items before anything could be promoted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import polars as pl

from tasks.errors import BadInput
from tasks.evaluation import statistics
from tasks.evaluation.schema import Comparison, Decision, Outcome, Reason, Scores, SuiteScore
from tasks.evaluation.statistics import Difference
from tasks.recipe import Role, Suite


class Items(NamedTuple):
    """A model's scores and its `items.parquet`."""

    scores: Scores
    items: pl.DataFrame


def compare(
    suite: Suite, base: Items, reference: Items, candidate: Items, *, confidence: float, min_items: int, level: float
) -> Comparison:
    """Candidate against reference on a suite, on the items that both answered.

    `confidence`: two-sided, of the intervals, which guards are held to; `level`: one-sided, which targets are held to.
    Raises BadInput where a model has no scores on the suite or has them under other generation settings.
    """
    about = comparable(suite, base, reference, candidate)
    # Samples of an item are no items: an item's score is their mean.
    sides = [
        model.items.filter(pl.col("suite") == suite.name)
        .group_by("item_id")
        .agg(pl.col("score").mean(), *(pl.col(name).first() for name in _cluster(model.items)))
        for model in (reference, candidate)
    ]
    pairs = sides[0].join(sides[1].select("item_id", candidate="score"), on="item_id", how="inner").sort("item_id")
    sign = 1.0 if about.higher_is_better else -1.0
    differences = (sign * (pairs["candidate"] - pairs["score"])).to_list()
    clusters = pairs["cluster"].to_list() if "cluster" in pairs.columns else None
    enough = len(differences) >= max(2, min_items)
    found = Difference(sum(differences), -float("inf"), float("inf"), 1.0, float("inf"))
    if len(differences) >= 2:
        found = statistics.difference(differences, confidence, clusters, level if suite.role == "target" else None)
    return Comparison(
        suite=suite.name,
        role=suite.role,
        unit=about.unit,
        higher_is_better=about.higher_is_better,
        items=len(differences),
        base=base.scores.suites[suite.name].mean,
        reference=_mean(pairs["score"]),
        candidate=_mean(pairs["candidate"]),
        difference=found.mean,
        low=found.low,
        high=found.high,
        p=found.p,
        margin=suite.margin,
        wins=sum(d > 0 for d in differences),
        losses=sum(d < 0 for d in differences),
        outcome=outcome(suite.role, found, suite.margin, level) if enough else "cannot tell",
        level=level,
        detectable=found.detectable if enough else None,
    )


def outcome(role: Role, found: Difference, margin: float, level: float) -> Outcome:
    """What a difference says: a target is held to zero at the night's level, a guard to its margin by its interval."""
    if role == "target":
        if found.mean > 0 and found.p / 2 <= level:
            return "better"
        return "worse" if found.high < 0 else "cannot tell"
    if found.low > -margin:
        return "not worse"
    return "worse" if found.high < -margin else "cannot tell"


def decide(comparisons: Sequence[Comparison]) -> Decision:
    """Promote where every target is better and every guard not worse; keep where anything is worse."""
    if any(comparison.outcome == "worse" for comparison in comparisons):
        return "keep"
    targets = [comparison for comparison in comparisons if comparison.role == "target"]
    if targets and all(comparison.outcome in ("better", "not worse") for comparison in comparisons):
        return "promote"
    return "cannot tell"


def reasons(comparisons: Sequence[Comparison], *, confidence: float, min_items: int) -> tuple[Reason, ...]:
    """One reason a suite, the deciding ones first."""
    order = {"worse": 0, "cannot tell": 1, "better": 2, "not worse": 3}
    ordered = sorted(comparisons, key=lambda comparison: order[comparison.outcome])
    return tuple(_reason(comparison, confidence, min_items) for comparison in ordered)


def _reason(c: Comparison, confidence: float, min_items: int) -> Reason:
    if c.detectable is None:
        text = f"{c.suite} ({c.role}): only {c.items} items were answered by both; the gate needs {min_items}."
        return Reason(
            code="too few items", suite=c.suite, numbers={"items": c.items, "min_items": min_items}, text=text
        )
    names = ("items", "base", "reference", "candidate", "difference", "low", "high", "p", "margin", "wins", "losses")
    numbers: dict[str, Any] = {name: getattr(c, name) for name in (*names, "level", "detectable")}
    return Reason(
        code=c.outcome,
        suite=c.suite,
        numbers=numbers | {"confidence": confidence},
        text=" ".join([_found(c, confidence), *_strength(c)]),
    )


def _found(c: Comparison, confidence: float) -> str:
    says = {
        ("target", "better"): "is better than the reference",
        ("target", "worse"): "is worse than the reference",
        ("target", "cannot tell"): "may be better, equal or worse",
        ("guard", "not worse"): f"is not worse by more than the margin of {amount(c.margin, c.unit)}",
        ("guard", "worse"): f"is worse by more than the margin of {amount(c.margin, c.unit)}",
        ("guard", "cannot tell"): f"may be worse by more than the margin of {amount(c.margin, c.unit)}",
    }[c.role, c.outcome]
    return (
        f"{c.suite} ({c.role}): the candidate {says}: {_level(c.candidate, c.unit)} against "
        f"{_level(c.reference, c.unit)} on {c.items} items, {_signed(c.difference, c.unit)} "
        f"({confidence:.0%} interval {_signed(c.low, c.unit)} to {_signed(c.high, c.unit)}; plus is better; "
        f"{c.wins} items won, {c.losses} lost)."
    )


def _strength(c: Comparison) -> list[str]:
    """How strong a target's evidence is and has to be, and what so many items can show at all."""
    said = []
    if c.role == "target" and c.difference > 0 and c.level is not None:
        held = "as" if c.outcome == "better" else "which is not"
        said.append(f"By chance alone that much or more comes up with p = {c.p / 2:.2g}, {held} one night of a year "
                    f"asks (at most {c.level:.2g}).")  # fmt: skip
    if c.outcome == "cannot tell" and c.detectable is not None:
        said.append(
            f"With {c.items} items like these the gate sees a difference of {amount(c.detectable, c.unit)} 8 nights "
            "in 10; a smaller one takes more items."
        )
    return said


def comparable(suite: Suite, *models: Items) -> SuiteScore:
    """What the first model's scores say of a suite that all models were scored on alike.

    Raises BadInput where a model has no scores on the suite or has them under other generation settings.
    """
    found = [model.scores.suites.get(suite.name) for model in models]
    for model, entry in zip(models, found, strict=True):
        if entry is None:
            raise BadInput(
                f"evaluation.suites.{suite.name}",
                model.scores.short,
                "are scores without this suite",
                "Evaluate that model again with this recipe.",
            )
    if len({entry.settings for entry in found if entry}) > 1:
        raise BadInput(
            f"evaluation.suites.{suite.name}",
            ", ".join(model.scores.short for model in models),
            "are scores under different generation settings",
            "Evaluate all models again with this recipe.",
        )
    about = found[0]
    assert about is not None
    return about


def _cluster(items: pl.DataFrame) -> list[str]:
    return ["cluster"] if "cluster" in items.columns else []


def _mean(scores: pl.Series) -> float:
    return float(scores.mean()) if len(scores) else float("nan")  # type: ignore[arg-type]


def amount(value: float, unit: str) -> str:
    """A difference for people: shares in points, losses in their unit."""
    return f"{100 * value:.1f} points" if unit == "share" else f"{value:.3f} {unit}"


def _signed(value: float, unit: str) -> str:
    return f"{100 * value:+.1f} points" if unit == "share" else f"{value:+.3f} {unit}"


def _level(value: float, unit: str) -> str:
    return f"{value:.1%}" if unit == "share" else f"{value:.3f} {unit}"
