from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks.errors import BadInput
from tasks.evaluation import Budget, Comparison, Items, Scores, SuiteScore, compare, decide, explain, reasons
from tasks.evaluation.statistics import counted
from tasks.evaluation.verdict import outcome
from tasks.recipe import Suite

TARGET = Suite(name="tool_call", kind="tool", role="target")
GUARD = Suite(name="chat_format", kind="chat", role="guard", margin=0.05)
LOSS = Suite(name="held_out_loss", kind="chat", role="guard", margin=0.1)
LEVEL = 0.0005
SETTINGS: dict[str, Any] = {"confidence": 0.95, "min_items": 20}
GATE: dict[str, Any] = SETTINGS | {"level": LEVEL}


def model(suite: Suite, scores: Sequence[float], settings: str = "s", first: int = 0) -> Items:
    loss = suite.name == "held_out_loss"
    about = SuiteScore(
        items=len(scores),
        mean=float(np.mean(scores)),
        unit="nats per token" if loss else "share",
        higher_is_better=not loss,
        digest="d",
        settings=settings,
    )
    manifest = Scores(
        address="a" * 64, inputs={}, files={}, made_at="", base="b", adapter=None, suites={suite.name: about}, seconds=0
    )
    items = pl.DataFrame(
        {
            "suite": suite.name,
            "item_id": [f"{first + i:05}" for i in range(len(scores))],
            "score": list(map(float, scores)),
        }
    )
    return Items(manifest, items.sample(fraction=1, shuffle=True, seed=len(scores)))


def compared(suite: Suite, reference: Sequence[float], candidate: Sequence[float]) -> Comparison:
    items = [model(suite, scores) for scores in (reference, reference, candidate)]
    return compare(suite, *items, **GATE)


def test_a_learned_suite_is_better_and_says_so() -> None:
    found = compared(TARGET, [0] * 64, [1] * 63 + [0])
    assert (found.outcome, found.wins, found.losses, found.items) == ("better", 63, 0, 64)
    assert (found.reference, found.candidate) == (0, 63 / 64)
    assert found.difference == 63 / 64


def test_a_lower_loss_is_better() -> None:
    reference = np.random.default_rng(0).normal(2, 0.1, 48)
    found = compared(LOSS, reference, reference - 0.2 + np.random.default_rng(1).normal(0, 0.02, 48))
    assert found.difference == pytest.approx(0.2, abs=0.01)
    assert found.low > 0
    assert (found.wins, found.losses, found.outcome) == (48, 0, "not worse")
    assert compared(LOSS, reference, reference + 0.3).outcome == "worse"
    assert compared(LOSS, reference, reference + 0.05).outcome == "not worse"


@pytest.mark.parametrize(
    ("suite", "losses", "expected"),
    [
        (TARGET, 0, "cannot tell"),
        (TARGET, 20, "worse"),
        (GUARD, 0, "not worse"),
        (GUARD, 3, "cannot tell"),
        (GUARD, 40, "worse"),
    ],
)
def test_outcomes(suite: Suite, losses: int, expected: str) -> None:
    assert compared(suite, [1] * 100, [0] * losses + [1] * (100 - losses)).outcome == expected


def test_only_items_that_both_answered_count() -> None:
    items = [model(TARGET, [0] * 40), model(TARGET, [0] * 40), model(TARGET, [1] * 40, first=30)]
    found = compare(TARGET, *items, **GATE)
    assert (found.items, found.outcome, found.detectable) == (10, "cannot tell", None)
    (reason,) = reasons([found], **SETTINGS)
    assert "only 10 items" in reason.text
    assert (reason.code, reason.numbers) == ("too few items", {"items": 10, "min_items": 20})
    nothing = compare(TARGET, *items[:2], model(TARGET, [1] * 40, first=100), **GATE)
    assert (nothing.items, nothing.outcome) == (0, "cannot tell")


def test_scores_under_other_settings_are_not_compared() -> None:
    with pytest.raises(BadInput, match="different generation settings"):
        compare(TARGET, model(TARGET, [0] * 40), model(TARGET, [0] * 40), model(TARGET, [1] * 40, settings="t"), **GATE)
    with pytest.raises(BadInput, match="without this suite"):
        compare(GUARD, *[model(TARGET, [0] * 40)] * 3, **GATE)


def test_decision() -> None:
    better, open_, worse = (compared(TARGET, [0] * 64, [1] * n + [0] * (64 - n)) for n in (60, 2, 0))
    worse = worse.model_copy(update={"outcome": "worse"})
    safe = compared(GUARD, [1] * 100, [1] * 100)
    unsure = compared(GUARD, [1] * 100, [0] * 3 + [1] * 97)
    assert decide([better, safe]) == "promote"
    assert decide([better, better, safe]) == "promote"
    assert decide([better, open_, safe]) == "cannot tell"
    assert decide([better, unsure]) == "cannot tell"
    assert decide([better, worse]) == "keep"
    assert decide([safe]) == "cannot tell"


def test_reasons_give_numbers_and_power() -> None:
    entries = [compare(s, *[model(s, x) for x in m], **GATE) for s, m in (
        (TARGET, ([0] * 64, [0] * 64, [1] * 63 + [0])),
        (GUARD, ([1] * 64, [1] * 64, [0] * 2 + [1] * 62)),
    )]  # fmt: skip
    found = reasons(entries, **SETTINGS)
    assert [(reason.code, reason.suite) for reason in found] == [
        ("cannot tell", "chat_format"),
        ("better", "tool_call"),
    ]
    assert found[0].numbers["detectable"] == entries[1].detectable
    assert found[1].numbers["level"] == LEVEL
    unsure, better = (reason.text for reason in found)
    assert better.startswith("tool_call (target): the candidate is better than the reference: 98.4% against 0.0% on 64")
    assert "95% interval +87.2 points to +99.7 points" in better
    assert "may be worse by more than the margin of 5.0 points" in unsure
    assert "With 64 items like these the gate sees a difference of" in unsure
    assert "8 nights in 10" in unsure


def test_a_target_has_to_be_as_sure_as_the_night_asks() -> None:
    reference, candidate = [0] * 64, [1] * 10 + [0] * 54  # one-sided p: 2^-10
    items = [model(TARGET, scores) for scores in (reference, reference, candidate)]
    lax, strict = (compare(TARGET, *items, **SETTINGS, level=level) for level in (0.001, 0.0009))
    assert (lax.outcome, strict.outcome) == ("better", "cannot tell")
    assert lax.low == strict.low > 0
    assert strict.detectable > lax.detectable
    (reason,) = reasons([strict], **SETTINGS)
    assert "p = 0.00098, which is not one night of a year asks (at most 0.0009)" in reason.text


def test_stated_power_is_the_power_there_is() -> None:
    """Of 4,000 nights with a true gain of what is said to be seen 8 times in 10, so many are called better."""
    n, level = 200, 0.0005
    detectable = counted(20, 20, n, 0.95, level).detectable
    share = 41 / 201  # of items that differ, as the power takes it
    win, lose = (share + detectable) / 2, (share - detectable) / 2
    draws = np.random.default_rng(2).multinomial(n, [win, lose, 1 - win - lose], size=4000)
    better = sum(
        outcome("target", counted(wins, losses, n, 0.95, level), 0, level) == "better"
        for wins, losses, _ in draws.tolist()
    )
    print(f"said to be seen 8 nights in 10 on {n} items: {detectable:.3f}; seen in {better / 4000:.3f}")
    assert 0.74 < better / 4000 < 0.86


def test_the_page_is_for_people() -> None:
    entries = [compare(s, *[model(s, x) for x in m], **GATE) for s, m in (
        (TARGET, ([0] * 64, [0] * 64, [1] * 63 + [0])),
        (GUARD, ([1] * 64, [1] * 64, [0] * 2 + [1] * 62)),
        (LOSS, ([2.0] * 64, [2.0] * 64, [1.9, 2.0] * 32)),
    )]  # fmt: skip
    left = Budget(year_error=0.04, level=0.0005, left=0.9, spent=0.1, hypotheses=1)
    page = explain("cannot tell", None, entries, reasons(entries, **SETTINGS), left)
    assert page.startswith("# Cannot tell\n\nThe evidence does not suffice, either way. The base model stays.")
    assert "| tool_call | better | 0 % | 98.4 % | +98.4 | better |" in page
    assert "| held_out_loss | within 0.100 nats per token | 2 | 1.95 | +0.05 | not worse |" in page
    assert "about once in 2,000 nights" in page
    assert "At most 4% of all years see any promotion of a candidate that is no better; 1 candidate was" in page
    assert len(page.split()) < 500
