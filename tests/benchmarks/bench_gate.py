"""Rules for a year of nights, side by side: how often each errs, and what it sees. Not run by pytest.

    python tests/benchmarks/bench_gate.py [rule ...]

First what was promised, then years that are harder than that, each night through the functions that decide a real one
(statistics.difference, verdict.outcome and decide, year.budget), beside what peers do: the higher estimate wins. Then
the rules among which this one was chosen.

A/A: 1,000 years of 365 nights with candidates exactly as good as the champion, share of years with any promotion; with
1,000 fresh items each night, and with one set of items (and one champion) all year. A/B: a true gain of 5 points
(paired correlation 0.5), share of 1,000 runs promoted within 10 nights, from the first night and after 200 nights
without a promotion, on fresh items. A/A again with 50 fresh items: what is left where little can be told.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.evaluation.statistics import difference
from tasks.evaluation.verdict import outcome
from tests.tasks.evaluation.test_year import (
    CONFIDENCE,
    ERROR,
    YEAR,
    higher_wins,
    levels,
    on_same_items,
    pairs,
    promoted,
    years_with_any,
)

Rule = Callable[[np.ndarray, int], np.ndarray]  # wins and losses (runs, nights, 2), items: promoted (runs, nights)


def p_values(draws: np.ndarray) -> np.ndarray:
    """One-sided, exact."""
    from scipy.special import bdtr

    return np.asarray(bdtr(draws[..., 1], draws.sum(axis=-1), 0.5))


def by_level(level: np.ndarray) -> Rule:
    return lambda draws, items: p_values(draws) <= level[: draws.shape[1]]


def online(make: Callable[[], Any]) -> Rule:
    def rule(draws: np.ndarray, items: int) -> np.ndarray:
        promoted = np.zeros(draws.shape[:2], dtype=bool)
        for run, row in enumerate(p_values(draws)):
            test = make()
            promoted[run] = [test.test_one(float(p)) for p in row]
        return promoted

    return rule


def carried(draws: np.ndarray, items: int) -> np.ndarray:
    """Products of likelihood ratios (a won share of 0.52, 0.55 or 0.6, to 0.5), mixed over the nights they start."""
    wins, losses = draws[..., 0], draws[..., 1]
    ratios = [np.exp(wins * np.log(2 * share) + losses * np.log(2 * (1 - share))) for share in (0.52, 0.55, 0.6)]
    value = np.mean(ratios, axis=0)
    capital, promoted = np.zeros(len(draws)), np.zeros(draws.shape[:2], dtype=bool)
    for night in range(draws.shape[1]):
        capital = (capital + 1 / YEAR) * value[:, night]
        promoted[:, night] = capital >= 1 / ERROR
    return promoted


def rules() -> dict[str, Rule]:
    from online_fdr.p_values.investing.addis.addis import Addis
    from online_fdr.p_values.investing.lord.mem_decay import LORDMemoryDecay
    from online_fdr.p_values.investing.lord.plus_plus import LordPlusPlus
    from online_fdr.p_values.investing.saffron.saffron import Saffron

    return {
        "higher estimate wins (peers)": lambda draws, items: draws[..., 0] > draws[..., 1],
        "2.5 % each night": by_level(np.full(YEAR, 0.025)),
        "LORD++": online(lambda: LordPlusPlus(alpha=ERROR, wealth=ERROR / 2)),
        "SAFFRON": online(lambda: Saffron(alpha=ERROR, wealth=ERROR / 2, lambda_=0.5)),
        "ADDIS": online(lambda: Addis(alpha=ERROR, wealth=ERROR / 2, lambda_=0.25, tau=0.5)),
        "LORD, decaying memory": online(lambda: LORDMemoryDecay(alpha=ERROR)),
        "one share of the year a night": by_level(np.full(YEAR, ERROR / YEAR)),
        "evidence carried, restarts": carried,
        "budget that renews (this gate)": lambda draws, items: promoted(draws, items, levels()[: draws.shape[1], 0]),
    }


def late(rule: Rule, gains: np.ndarray, nulls: np.ndarray, items: int) -> float:
    """Promoted on the nights that follow 200 without a promotion."""
    quiet = ~rule(nulls, items).any(axis=1)
    if not quiet.any():
        return float("nan")
    nights = np.concatenate([nulls[quiet], gains[quiet]], axis=1)
    return float(rule(nights, items)[:, nulls.shape[1] :].any(axis=1).mean())


def years_of(draw: Callable[[int], np.ndarray], clusters: np.ndarray | None = None) -> tuple[float, float]:
    """Years with a promotion, of 1,000 with 365 nights each, by this gate and by the higher estimate.

    `draw` makes so many nights' differences by item. Of nights whose sum is within 2.9 of its spread none can pass.
    """
    level = levels()[:, 0]
    wrong = peers = 0
    for _ in range(1000):
        nights = draw(YEAR)
        total = nights.sum(axis=1)
        sums = (
            nights if clusters is None else np.add.reduceat(nights, np.unique(clusters, return_index=True)[1], axis=1)
        )
        near = np.flatnonzero(total > 2.9 * np.sqrt((sums**2).sum(axis=1)))
        names = None if clusters is None else [str(name) for name in clusters]
        wrong += any(
            outcome("target", difference(nights[at], CONFIDENCE, names, level[at]), 0.0, level[at]) == "better"
            for at in near
        )
        peers += bool((total > 0).any())
    return wrong / 1000, peers / 1000


def let_through(draw: Callable[[int], np.ndarray], margin: float, clusters: np.ndarray | None = None) -> float:
    """Share of 4,000 candidates that a guard lets through."""
    names = None if clusters is None else [str(name) for name in clusters]
    found = [outcome("guard", difference(one, CONFIDENCE, names), margin, 0.0) == "not worse" for one in draw(4000)]
    return float(np.mean(found))


def binary(draws: np.ndarray, items: int) -> tuple[float, float]:
    """Of wins and losses, nights along the second axis."""
    level = levels(draws.shape[1], draws.shape[2] if draws.ndim == 4 else 1)
    level = level if draws.ndim == 4 else level[:, 0]
    return years_with_any(promoted(draws, items, level)), years_with_any(higher_wins(draws))


def promised(generator: np.random.Generator) -> None:
    """The acceptance lines, and regimes beyond them."""
    ten, fifty = np.repeat(np.arange(100), 10), np.concatenate([np.zeros(500, int), np.arange(1, 501)])

    def shared(spread: np.ndarray) -> Callable[[int], np.ndarray]:
        """Differences of 0, 1 and -1 whose sign the items of a cluster share."""

        def draw(nights: int) -> np.ndarray:
            sign = generator.choice((-1.0, 1.0), (nights, int(spread.max()) + 1))[:, spread]
            own = np.where(generator.random(sign.shape) < 0.8, sign, -sign)
            return np.where(generator.random(sign.shape) < 0.25, own, 0.0)

        return draw

    def same(gain: float, items: int, first: int) -> tuple[float, float]:
        level = levels()[first : first + 10, 0]
        targets, guards = pairs(generator, items, gain, (2000, 10)), pairs(generator, items, 0.0, (2000, 10), rate=0.8)
        return years_with_any(promoted(targets, items, level, guards)), years_with_any(higher_wins(targets))

    def slow() -> tuple[float, float]:
        """Ten points in a year, against a champion that stays: how many years promote in their first half."""
        draws = np.stack([pairs(generator, 1000, 0.1 * night / YEAR, (1000,)) for night in range(YEAR // 2)], axis=1)
        return binary(draws, 1000)

    def at_once() -> tuple[float, float]:
        """Two hosts judge one candidate each every night, neither knowing of the other's night."""
        draws = pairs(generator, 1000, 0.0, (1000, YEAR, 2))
        # Both are given the level of the night's first.
        level = np.repeat(levels(YEAR, 2)[:, :1], 2, axis=1)
        return years_with_any(promoted(draws, 1000, level)), years_with_any(higher_wins(draws))

    def guard(rate: float, drop: float, items: int) -> tuple[float, float]:
        draws = pairs(generator, items, -drop, (5000, 1), rate=rate)
        targets = np.broadcast_to(np.array([6 * items // 10, items // 10]), draws.shape)
        return float(promoted(targets, items, levels()[0], draws).mean()), float(higher_wins(targets).mean())

    rows: list[tuple[str, Callable[[], tuple[float, float]]]] = [
        ("A/A 1,000 items: years with a promotion", lambda: binary(pairs(generator, 1000, 0.0, (1000, YEAR)), 1000)),
        ("A/A 100 clusters of 10", lambda: years_of(shared(ten), ten)),
        ("A/A three candidates a night", lambda: binary(pairs(generator, 1000, 0.0, (1000, YEAR, 3)), 1000)),
        ("A/B +5 on 1,000, nights 1 to 10", lambda: same(0.05, 1000, 0)),
        ("A/B +5 on 1,000, nights 201 to 210", lambda: same(0.05, 1000, 200)),
        ("A/B +3 on 3,000, nights 1 to 10", lambda: same(0.03, 3000, 0)),
        ("A/B +3 on 3,000, nights 201 to 210", lambda: same(0.03, 3000, 200)),
        ("guard 5 points down, margin 5: let through", lambda: guard(0.9, 0.05, 1000)),
        ("  beyond what was asked:", lambda: (np.nan, np.nan)),
        ("A/A 50 items", lambda: binary(pairs(generator, 50, 0.0, (1000, YEAR)), 50)),
        ("A/A 200 items, right 97 % of the time", lambda: binary(pairs(generator, 200, 0.0, (1000, YEAR), 0.97), 200)),
        ("A/A 200 items, right 2 % of the time", lambda: binary(pairs(generator, 200, 0.0, (1000, YEAR), 0.02), 200)),
        ("A/A the same 1,000 items all year", lambda: binary(on_same_items(generator, 1000, 0.0, 1000, YEAR), 1000)),
        ("A/A one cluster of 500, and 500 items", lambda: years_of(shared(fifty), fifty)),
        ("A/A losses, normal, 200", lambda: years_of(lambda nights: generator.normal(size=(nights, 200)))),
        ("A/A losses, heavy tails (t3), 200", lambda: years_of(lambda n: generator.standard_t(3, size=(n, 200)))),
        ("A/A losses, skewed to the worse, 200", lambda: years_of(lambda n: 1 - generator.exponential(size=(n, 200)))),
        ("A/A two hosts at once", at_once),
        ("+10 points over a year: promoted by July", slow),
        ("guard at margin, 100 clusters of 10", lambda: (let_through(lambda n: shared(ten)(n), 0.0, ten), np.nan)),
        (
            "guard at margin, skewed losses, 200",
            lambda: (let_through(lambda n: 1 - generator.exponential(size=(n, 200)), 0.0), np.nan),
        ),
        ("guard at margin, 50 items", lambda: guard(0.9, 0.05, 50)),
    ]
    print(f"{'':44} {'this gate':>9} {'higher wins':>12}")
    for name, row in rows:
        gate, peers = row()
        print(f"{name:44} " + (f"{gate:9.3f} {peers:12.3f}" if gate == gate else ""), flush=True)
    print()


def main(names: Sequence[str]) -> None:
    """Print the tables."""
    if not names:
        promised(np.random.default_rng(0))
    generator = np.random.default_rng(1)
    equal, few = (pairs(generator, items, 0.0, (1000, YEAR)) for items in (1000, 50))
    same = on_same_items(generator, 1000, 0.0, 1000, YEAR)
    gain, quiet = pairs(generator, 1000, 0.05, (1000, 10)), pairs(generator, 1000, 0.0, (1000, 200))
    print(f"{'rule':31} {'A/A fresh':>9} {'A/A same':>9} {'A/A 50':>7} {'A/B night 1':>11} {'10':>6} {'201-210':>8}")
    for name, rule in rules().items():
        if names and name not in names:
            continue
        wrong = [rule(draws, items).any(axis=1).mean() for draws, items in ((equal, 1000), (same, 1000), (few, 50))]
        seen = rule(gain, 1000)
        after = late(rule, gain, quiet, 1000)
        print(
            f"{name:31} {wrong[0]:9.3f} {wrong[1]:9.3f} {wrong[2]:7.3f} {seen[:, 0].mean():11.3f} "
            f"{seen.any(axis=1).mean():6.3f} {after:8.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main(sys.argv[1:])
