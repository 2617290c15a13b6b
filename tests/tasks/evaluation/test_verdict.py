from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import polars as pl
import pytest

from tasks.errors import BadInput
from tasks.evaluation import Comparison, Items, Scores, SuiteScore, compare, decide, reasons
from tasks.evaluation.statistics import tango_interval
from tasks.evaluation.verdict import Compared, outcome
from tasks.recipe import Suite

TARGET = Suite(name="tool_call", kind="tool", role="target")
GUARD = Suite(name="chat_format", kind="chat", role="guard", margin=0.05)
LOSS = Suite(name="held_out_loss", kind="chat", role="guard", margin=0.1)
GATE = {"confidence": 0.95, "min_items": 20}


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
    return compare(suite, *items, **GATE).comparison  # type: ignore[arg-type]


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
    found, detectable = compare(TARGET, *items, **GATE)  # type: ignore[arg-type]
    assert (found.items, found.outcome, detectable) == (10, "cannot tell", None)
    (reason,) = reasons([Compared(found, detectable)], **GATE)  # type: ignore[arg-type]
    assert "only 10 items" in reason
    nothing = compare(TARGET, *items[:2], model(TARGET, [1] * 40, first=100), **GATE).comparison  # type: ignore[arg-type]
    assert (nothing.items, nothing.outcome) == (0, "cannot tell")


def test_scores_under_other_settings_are_not_compared() -> None:
    with pytest.raises(BadInput, match="different generation settings"):
        compare(TARGET, model(TARGET, [0] * 40), model(TARGET, [0] * 40), model(TARGET, [1] * 40, settings="t"), **GATE)  # type: ignore[arg-type]
    with pytest.raises(BadInput, match="without this suite"):
        compare(GUARD, *[model(TARGET, [0] * 40)] * 3, **GATE)  # type: ignore[arg-type]


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
    entries = [compare(s, *[model(s, x) for x in m], **GATE) for s, m in (  # type: ignore[arg-type]
        (TARGET, ([0] * 64, [0] * 64, [1] * 63 + [0])),
        (GUARD, ([1] * 64, [1] * 64, [0] * 2 + [1] * 62)),
    )]  # fmt: skip
    unsure, better = reasons(entries, **GATE)  # type: ignore[arg-type]
    assert better.startswith("tool_call (target): the candidate is better than the reference: 98.4% against 0.0% on 64")
    assert "95% interval +87.2 points to +99.7 points" in better
    assert "may be worse by more than the margin of 5.0 points" in unsure
    assert "With 64 items like these the gate sees a difference of" in unsure
    assert "8 nights in 10" in unsure


def nights(
    generator: np.random.Generator, n: int, rate: float, gain: float, correlation: float, count: int
) -> np.ndarray:
    """Wins and losses of `count` nights: two binary scores, with this correlation, the candidate's rate higher."""
    a, b = rate, rate + gain
    both = a * b + correlation * np.sqrt(a * (1 - a) * b * (1 - b))
    return generator.multinomial(n, [b - both, a - both, 1 - a - b + 2 * both], size=count)


def outcomes(draws: np.ndarray, n: int, judge: Callable[[float, float, float], str]) -> list[str]:
    from scipy.stats import binomtest

    known: dict[tuple[int, int], str] = {}
    for wins, losses, _ in np.unique(draws, axis=0).tolist():
        low, high = tango_interval(wins, losses, n, 0.95)
        p = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        known[wins, losses] = judge(low, high, p)
    return [known[wins, losses] for wins, losses, _ in draws.tolist()]


@pytest.mark.parametrize(("n", "rate"), [(64, 0.9), (64, 0.5), (200, 0.5), (1000, 0.7)])
def test_one_night_of_no_difference_is_seldom_called_better(n: int, rate: float) -> None:
    """A/A: a challenger exactly as good is called better on at most 2.5 % of nights; the naive rule on nearly half."""
    draws = nights(np.random.default_rng(n), n, rate, 0.0, 0.5, 10_000)
    found = outcomes(draws, n, lambda low, high, p: outcome("target", low, high, p, 0, 0.95))
    false = found.count("better") / len(found)
    naive = float((draws[:, 0] > draws[:, 1]).mean())
    print(f"A/A n={n} rate={rate}: better {false:.4f}, higher estimate wins {naive:.3f}")
    assert false <= 0.025 + 0.004
    assert naive > 0.3


@pytest.mark.parametrize(("n", "gain", "at_least"), [(1000, 0.05, 0.85), (3000, 0.03, 0.85), (64, 0.3, 0.9)])
def test_one_night_of_a_true_gain_is_mostly_seen(n: int, gain: float, at_least: float) -> None:
    draws = nights(np.random.default_rng(n), n, 0.5, gain, 0.5, 2_000)
    found = outcomes(draws, n, lambda low, high, p: outcome("target", low, high, p, 0, 0.95))
    print(f"A/B n={n} gain={gain}: better {found.count('better') / len(found):.3f}")
    assert found.count("better") / len(found) > at_least


def test_a_guard_that_drops_by_its_margin_is_seldom_let_through() -> None:
    draws = nights(np.random.default_rng(5), 1000, 0.9, -0.05, 0.5, 5_000)
    found = outcomes(draws, 1000, lambda low, high, p: outcome("guard", low, high, p, 0.05, 0.95))
    print(f"guard at its margin: let through {found.count('not worse') / len(found):.4f}")
    assert found.count("not worse") / len(found) <= 0.05
