"""Rules for a year of nights, side by side: how often each errs, and what it sees. Not run by pytest.

    python tests/benchmarks/bench_gate.py

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

from tests.tasks.evaluation.test_year import ERROR, YEAR, levels, on_same_items, pairs

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
        "budget that renews (this gate)": by_level(levels()[:, 0]),
    }


def late(rule: Rule, gains: np.ndarray, nulls: np.ndarray, items: int) -> float:
    """Promoted on the nights that follow 200 without a promotion."""
    quiet = ~rule(nulls, items).any(axis=1)
    if not quiet.any():
        return float("nan")
    nights = np.concatenate([nulls[quiet], gains[quiet]], axis=1)
    return float(rule(nights, items)[:, nulls.shape[1] :].any(axis=1).mean())


def main(names: Sequence[str]) -> None:
    """Print the table."""
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
