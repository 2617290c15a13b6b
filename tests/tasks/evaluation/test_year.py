"""Years of nights, simulated through the functions that decide a real night; what they print is the evidence."""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tasks.errors import WorldFailed
from tasks.evaluation import Budget, Comparison, Ledger, Spent, budget, decide
from tasks.evaluation.statistics import Difference, counted, sign_flip_p
from tasks.evaluation.verdict import outcome
from tasks.evaluation.year import SAVED, SHARE, YEAR
from tasks.recipe import Gate, Role

ERROR = Gate.model_fields["year_error"].default
CONFIDENCE = Gate.model_fields["confidence"].default
START = datetime(2030, 1, 1, tzinfo=UTC)
NIGHT = timedelta(days=1)
MARGIN = 0.05


@cache
def levels(nights: int = YEAR, candidates: int = 1) -> np.ndarray:
    """The level of each hypothesis, nights by candidates, one night a day."""
    spent: list[Spent] = []
    for night in range(nights):
        for number in range(candidates):
            at = START + night * NIGHT
            spent.append(Spent(key=f"{night}.{number}", at=at, level=budget(spent, at, ERROR).level))
    return np.array([entry.level for entry in spent]).reshape(nights, candidates)


def pairs(generator: np.random.Generator, n: int, gain: float, shape: tuple[int, ...], rate: float = 0.5) -> np.ndarray:
    """Items won and lost of two binary scores with correlation 0.5, of which the second is better by `gain`."""
    a, b = rate, rate + gain
    both = a * b + 0.5 * np.sqrt(a * (1 - a) * b * (1 - b))
    return generator.multinomial(n, [b - both, a - both, 1 - a - b + 2 * both], size=shape)[..., :2]


def on_same_items(
    generator: np.random.Generator, n: int, gain: float, runs: int, nights: int, rate: float = 0.5
) -> np.ndarray:
    """The same, with one champion and one set of items for all nights of a run; runs by nights by 2."""
    made = np.empty((runs, nights, 2), dtype=np.int64)
    for run in range(runs):
        # Each item's chance of a right answer; this spread gives two independent models a correlation of 0.5.
        chance = generator.beta(rate, 1 - rate, n).astype(np.float32)
        champion = generator.random(n, dtype=np.float32) < chance
        better = chance + (1 - chance) * np.float32(gain / (1 - rate))
        right = generator.random((nights, n), dtype=np.float32) < better
        made[run, :, 0] = (right & ~champion).sum(axis=1)
        made[run, :, 1] = (~right & champion).sum(axis=1)
    return made


@cache
def found(wins: int, losses: int, n: int) -> Difference:
    return counted(wins, losses, n, CONFIDENCE, ERROR / YEAR)


@cache
def decision(target: str, guard: str) -> str:
    def stand_in(role: Role, said: str) -> Comparison:
        return Comparison.model_construct(role=role, outcome=said)  # type: ignore[arg-type]

    return decide([stand_in("target", target), stand_in("guard", guard)])


def promoted(targets: np.ndarray, n: int, level: np.ndarray, guards: np.ndarray | None = None) -> np.ndarray:
    """Whether each night promotes. `targets`, `guards`: (..., 2); `level`: broadcast over nights."""
    shape = targets.shape[:-1]
    at = np.broadcast_to(level, shape).reshape(-1)
    beside = (n // 4, n // 4) if guards is None else None
    rows = zip(
        targets.reshape(-1, 2).tolist(),
        at.tolist(),
        guards.reshape(-1, 2).tolist() if guards is not None else [beside] * at.size,
        strict=True,
    )
    return np.array(
        [
            decision(
                outcome("target", found(*target, n), 0.0, here),
                outcome("guard", found(*guard, n), 1.0 if guards is None else MARGIN, here),
            )
            == "promote"
            for target, here, guard in rows
        ]
    ).reshape(shape)


def years_with_any(promotions: np.ndarray) -> float:
    return float(promotions.reshape(len(promotions), -1).any(axis=1).mean())


def higher_wins(targets: np.ndarray) -> np.ndarray:
    """What peers do: the higher estimate is promoted."""
    return targets[..., 0] > targets[..., 1]


@pytest.mark.parametrize(("n", "candidates"), [(200, 1), (1000, 1), (1000, 3)])
def test_a_year_of_equals_seldom_sees_a_promotion(n: int, candidates: int) -> None:
    """A/A, fresh items each night: 1,000 years of 365 nights."""
    draws = pairs(np.random.default_rng(n + candidates), n, 0.0, (1000, YEAR, candidates))
    false = years_with_any(promoted(draws, n, levels(candidates=candidates)))
    peers = years_with_any(higher_wins(draws))
    print(f"A/A {n} items, {candidates} a night: years with a false promotion {false:.3f}, higher estimate {peers:.3f}")
    assert false <= 0.05
    assert peers == 1


def test_a_year_of_equals_on_the_same_items() -> None:
    """A/A with one champion and the same 1,000 items all year: nights depend on each other, and the bound holds."""
    draws = on_same_items(np.random.default_rng(7), 1000, 0.0, 1000, YEAR)
    false, peers = years_with_any(promoted(draws, 1000, levels()[:, 0])), years_with_any(higher_wins(draws))
    print(f"A/A same 1000 items all year: years with a false promotion {false:.3f}, higher estimate {peers:.3f}")
    assert false <= 0.05
    assert peers > 0.9


def test_a_year_of_equals_on_clustered_items() -> None:
    """A/A on 100 clusters of 10 items that agree on who is better."""
    generator = np.random.default_rng(12)
    most = 2 * levels().max()
    false = naive = 0
    for _ in range(10):
        shape = (100, YEAR, 100)
        discordant = generator.binomial(10, 0.25, shape)
        agree = generator.binomial(discordant, 0.8)
        sums = (2 * agree - discordant) * generator.choice((-1.0, 1.0), shape)
        total, spread = sums.sum(axis=2), np.sqrt((sums**2).sum(axis=2))
        # Only the exact p of nights that come near matters; of the others a sample shows that they do not.
        near = total > 2.9 * spread
        assert (sign_flip_p(sums[np.abs(total) <= 2.9 * spread][:2000]) > most).all()
        better = np.zeros(near.shape, dtype=bool)
        level = np.broadcast_to(levels()[:, 0], near.shape)[near]
        for place, p, here in zip(np.argwhere(near), sign_flip_p(sums[near]), level, strict=True):
            mean = total[tuple(place)] / 1000
            better[tuple(place)] = outcome("target", Difference(mean, -1, 1, float(p), 1), 0, here) == "better"
        false += int(better.any(axis=1).sum())
        wins, losses = ((discordant.sum(axis=2) + sign * total) / 2 for sign in (1, -1))
        naive += int(promoted(np.stack([wins, losses], axis=-1).astype(int), 1000, levels()[:, 0]).any(axis=1).sum())
    print(
        f"A/A clusters of 10: years with a false promotion {false / 1000:.3f}, taken for independent {naive / 1000:.3f}"
    )
    assert false / 1000 <= 0.05
    assert naive / 1000 > 0.5


@pytest.mark.parametrize(("n", "gain"), [(1000, 0.05), (3000, 0.03)])
@pytest.mark.parametrize("first", [0, 200], ids=["first nights", "after 200 nights"])
def test_a_true_gain_is_promoted_within_ten_nights(n: int, gain: float, first: int) -> None:
    """A/B with an unchanged guard on as many items (margin 5 points), each night with its own items."""
    generator = np.random.default_rng(n + first)
    level = levels()[first : first + 10, 0]
    targets, guards = pairs(generator, n, gain, (2000, 10)), pairs(generator, n, 0.0, (2000, 10), rate=0.8)
    fresh = promoted(targets, n, level, guards)
    same = promoted(on_same_items(generator, n, gain, 500, 10), n, level)
    print(
        f"A/B +{gain:.0%} on {n}, from night {first + 1}: within 10 nights {years_with_any(fresh):.3f}, "
        f"first night {fresh[:, 0].mean():.3f}, higher estimate {years_with_any(higher_wins(targets)):.3f}; "
        f"all ten on the same items {years_with_any(same):.3f}"
    )
    assert years_with_any(fresh) >= 0.9


def test_a_drop_of_a_guard_by_its_margin_is_seldom_let_through() -> None:
    """The targets are better beyond doubt; the guard is worse by exactly its margin of 5 points on 1,000 items."""
    generator = np.random.default_rng(5)
    guards = pairs(generator, 1000, -0.05, (5000, 1), rate=0.9)
    targets = np.broadcast_to(np.array([600, 100]), guards.shape)
    let = promoted(targets, 1000, levels()[0], guards).mean()
    peers = (promoted(targets, 1000, levels()[0]) & higher_wins(targets)).mean()
    print(f"guard at its margin: let through {let:.4f}, where guards are not asked {peers:.4f}")
    assert 0 < let <= 0.05


def test_no_year_spends_more_than_its_error_whatever_is_tried() -> None:
    """Nights in bursts, twenty on one afternoon, long pauses: any 365 days hold."""
    generator = np.random.default_rng(3)
    at, spent = START, list[Spent]()
    for number in range(1500):
        at += timedelta(days=float(generator.choice([0.0, 0.01, 0.3, 1.0, 90.0], p=[0.3, 0.3, 0.2, 0.19, 0.01])))
        spent.append(Spent(key=str(number), at=at, level=budget(spent, at, ERROR).level))
    worst = max(sum(e.level for e in spent if start.at <= e.at < start.at + YEAR * NIGHT) for start in spent[::25])
    print(f"worst 365 days spend {worst / ERROR:.3f} of the year's error")
    assert 0.5 * ERROR < worst <= ERROR
    assert min(entry.level for entry in spent) > 0


def test_the_level_settles_and_comes_back_after_a_pause() -> None:
    a_day = ERROR / (YEAR + SAVED)
    assert levels()[0, 0] == pytest.approx(SHARE * SAVED * a_day)
    assert levels()[200, 0] == pytest.approx(a_day, rel=1e-3)
    assert all(later <= earlier for earlier, later in pairwise(levels()[:, 0]))
    spent = [Spent(key=str(n), at=START + n * NIGHT, level=level) for n, level in enumerate(levels()[:, 0])]
    assert budget(spent, START + 430 * NIGHT, ERROR).level == pytest.approx(levels()[0, 0])
    assert budget(spent, START, ERROR).level > 0, "a clock that was set back"
    now = budget(spent, START + 365 * NIGHT, ERROR)
    assert (now.hypotheses, now.spent) == (364, pytest.approx(sum(levels()[1:, 0]) / ERROR))
    assert now.left == pytest.approx(now.level / levels()[0, 0])


def test_a_hypothesis_spends_once(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "demo")
    first, left = ledger.spend("a" * 64, "adapter", ERROR, START)
    again, still = Ledger(tmp_path, "demo").spend("a" * 64, "adapter", ERROR, START + NIGHT)
    assert first == again
    assert (left.hypotheses, still.hypotheses) == (1, 1)
    ledger.settle("a" * 64, "keep")
    (entry,) = Ledger(tmp_path, "demo").entries()
    assert (entry.decision, entry.level, entry.candidate) == ("keep", first.level, "adapter")
    assert Ledger(tmp_path, "other").entries() == ()
    second, _ = ledger.spend("b" * 64, "adapter", ERROR, START)
    assert second.level == pytest.approx(0.9 * first.level)


def test_what_another_machine_spent_counts_once(tmp_path: Path) -> None:
    here = Ledger(tmp_path, "demo")
    first, _ = here.spend("a" * 64, "", ERROR, START)
    theirs = Spent(key="b" * 64, at=START, level=first.level, decision="keep")
    merged = Ledger(tmp_path, "demo", [theirs, first])
    assert [entry.key for entry in merged.entries()] == ["a" * 64, "b" * 64]
    spent, left = merged.spend("c" * 64, "", ERROR, START)
    assert (left.hypotheses, spent.level) == (3, pytest.approx(0.8 * first.level))
    # Once written here, it stays without MLflow.
    assert len(here.entries()) == 3


def test_a_ledger_that_cannot_be_read_stops_the_night(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, "demo")
    ledger.spend("a" * 64, "", ERROR, START)
    ledger.file.write_text(ledger.file.read_text()[:40])
    with pytest.raises(WorldFailed, match=r"demo\.json"):
        ledger.spend("b" * 64, "", ERROR, START)


def _spend(root: Path, keys: Sequence[str]) -> None:
    for key in keys:
        Ledger(root, "demo").spend(key, "", ERROR, START)


def test_processes_at_once_lose_no_entry(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    keys = [[f"{worker % 2}.{n}" for n in range(10)] for worker in range(4)]  # every key twice
    workers = [context.Process(target=_spend, args=(tmp_path, mine)) for mine in keys]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    entries = Ledger(tmp_path, "demo").entries()
    assert sorted(entry.key for entry in entries) == sorted({key for mine in keys for key in mine})
    there = SAVED * ERROR / (YEAR + SAVED)
    assert sum(entry.level for entry in entries) == pytest.approx(there * (1 - (1 - SHARE) ** 20))
    assert isinstance(budget(entries, START, ERROR), Budget)
