from __future__ import annotations

import math

import numpy as np
import pytest

from tasks.evaluation.statistics import difference, mcnemar_p, sign_flip_p, tango_interval


def paired(generator: np.random.Generator, size: tuple[int, ...], win: float, lose: float) -> np.ndarray:
    draw = generator.random(size)
    return np.where(draw < win, 1.0, np.where(draw < win + lose, -1.0, 0.0))


@pytest.mark.parametrize(
    ("wins", "losses", "n"), [(9, 3, 44), (0, 0, 30), (1, 0, 54), (12, 12, 64), (40, 2, 64), (63, 0, 64)]
)
def test_tango_bounds_are_where_the_score_test_turns(wins: int, losses: int, n: int) -> None:
    """Against the score statistic with its nuisance parameter found by search instead of by formula."""
    from scipy.optimize import minimize_scalar
    from scipy.stats import norm

    def statistic(delta: float) -> float:
        def cost(lost: float) -> float:
            won, same = lost + delta, 1 - 2 * lost - delta
            parts = ((wins, won), (losses, lost), (n - wins - losses, same))
            return -sum(k * math.log(max(p, 1e-300)) for k, p in parts if k)

        low, high = max(0.0, -delta), (1 - delta) / 2
        lost = minimize_scalar(cost, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
        return (wins - losses - n * delta) / math.sqrt(n * (2 * lost + delta * (1 - delta)))

    low, high = tango_interval(wins, losses, n, 0.95)
    assert statistic(low) == pytest.approx(norm.ppf(0.975), abs=1e-3)
    assert statistic(high) == pytest.approx(-norm.ppf(0.975), abs=1e-3)


def test_tango_matches_the_published_example() -> None:
    """Tango 1998, cross-over trial of soft contact lens disinfection: 1 against 0 discordant of 44."""
    low, high = tango_interval(1, 0, 44, 0.95)
    assert (low, high) == pytest.approx((-0.06, 0.118), abs=0.002)


def test_nothing_from_nothing_to_everything_is_sane() -> None:
    learned = difference([1.0] * 63 + [0.0], 0.95)
    assert 0.85 < learned.low < learned.mean < learned.high < 1.0
    assert learned.p < 1e-15
    for sign in (1, -1):
        everything = difference([sign * 1.0] * 64, 0.95)
        assert sign * everything.mean == 1
        assert 0.87 < min(abs(everything.low), abs(everything.high)) < 0.9
        assert max(abs(everything.low), abs(everything.high)) == 1
    same = difference([0.0] * 64, 0.95)
    assert same.p == 1
    assert same.high == -same.low == pytest.approx(0.0566, abs=1e-3)


def test_mirrored_differences_give_the_mirrored_interval() -> None:
    d = [1.0] * 11 + [-1.0] * 4 + [0.0] * 49
    one, other = difference(d, 0.9), difference([-x for x in d], 0.9)
    assert (one.low, one.high, one.p) == pytest.approx((-other.high, -other.low, other.p))


@pytest.mark.parametrize(
    ("n", "win", "lose"), [(64, 0.1, 0.1), (64, 0.02, 0.02), (200, 0.3, 0.1), (64, 0.9, 0.0), (20, 0.2, 0.2)]
)
def test_coverage_of_the_binary_interval(n: int, win: float, lose: float) -> None:
    """At least 93.5 % of nominal 95 % intervals hold the true difference, counted over 4,000 draws."""
    counts, times = np.unique(
        np.random.default_rng(n).multinomial(n, [win, lose, 1 - win - lose], size=4000), axis=0, return_counts=True
    )
    held = 0
    for (wins, losses, _), drawn in zip(counts, times, strict=True):
        low, high = tango_interval(int(wins), int(losses), n, 0.95)
        held += int(drawn) * (low <= win - lose <= high)
    print(f"n={n} win={win} lose={lose}: coverage {held / 4000:.3f}")
    assert held / 4000 > 0.935


def test_clustered_items_are_not_taken_for_independent() -> None:
    """Items in correlated clusters of 10: the clustered interval keeps its coverage, the naive one does not."""
    generator = np.random.default_rng(1)
    clusters = [str(i // 10) for i in range(300)]
    held = {"clustered": 0, "naive": 0}
    for _ in range(400):
        d = np.repeat(paired(generator, (30,), 0.2, 0.2), 10)
        d[generator.random(300) < 0.2] = 0
        for name, groups in (("clustered", clusters), ("naive", None)):
            low, high = (lambda x: (x.low, x.high))(difference(d.tolist(), 0.95, groups))
            held[name] += low <= 0 <= high
    print(held)
    assert held["clustered"] / 400 > 0.92
    assert held["naive"] / 400 < 0.7


def test_clusters_of_one_are_no_clusters() -> None:
    d = [1.0, 0, 0, -1, 1, 1, 0, 0] * 8
    assert difference(d, 0.95) == difference(d, 0.95, [str(i) for i in range(64)])


def test_identical_answers_in_few_clusters_are_few_items() -> None:
    alone, together = difference([0.0] * 64, 0.95), difference([0.0] * 64, 0.95, [str(i // 16) for i in range(64)])
    assert together.high > 5 * alone.high


def test_losses_by_t_and_permutation() -> None:
    from scipy.stats import ttest_1samp

    d = np.random.default_rng(0).normal(0.05, 0.2, 60)
    found = difference(d.tolist(), 0.95)
    t = ttest_1samp(d, 0)
    interval = t.confidence_interval(0.95)
    # Never narrower, and wider for as much skewness as there is.
    assert interval.low - 0.01 * (interval.high - interval.low) < found.low <= interval.low
    assert interval.high <= found.high < interval.high + 0.01 * (interval.high - interval.low)
    assert found.p == pytest.approx(t.pvalue, abs=0.02)
    small = difference([0.1, 0.2, 0.3], 0.95)
    assert small.p == 0.25  # two of the eight sign patterns


def test_what_is_detectable_is_detected_8_times_in_10() -> None:
    generator = np.random.default_rng(2)
    noise = paired(generator, (200,), 0.1, 0.1)
    detectable = difference(noise.tolist(), 0.95).detectable
    discordant = (np.abs(noise).sum() + 1) / 201
    win, lose = (discordant + detectable) / 2, (discordant - detectable) / 2
    counts = generator.multinomial(200, [win, lose, 1 - win - lose], size=2000)
    seen = np.mean([tango_interval(int(w), int(x), 200, 0.95)[0] > 0 for w, x, _ in counts])
    print(f"detectable {detectable:.3f}, seen {seen:.3f}")
    assert 0.74 < seen < 0.86
    spread = generator.normal(0, 1, 100)
    detectable = difference(spread.tolist(), 0.95).detectable
    draws = generator.normal(detectable, spread.std(ddof=1), (2000, 100))
    low = draws.mean(1) - 1.984 * draws.std(1, ddof=1) / 10
    assert 0.74 < (low > 0).mean() < 0.86


@pytest.mark.parametrize("bad", [[], [0.5], [0.1, float("nan")], [1.0, float("inf")]])
def test_too_few_or_broken_differences_are_refused(bad: list[float]) -> None:
    with pytest.raises(ValueError, match="two finite"):
        difference(bad, 0.95)


@pytest.mark.parametrize("groups", [19, 40, 100, 1000])
def test_tail_of_random_signs_against_the_binomial(groups: int) -> None:
    for wins in range(groups // 2, groups + 1, max(1, groups // 12)):
        signs = np.ones(groups)
        signs[wins:] = -1
        assert float(sign_flip_p(signs)) == pytest.approx(mcnemar_p(wins, groups - wins), rel=0.04)


@pytest.mark.parametrize("shift", [0.0, 0.4, 0.8])
@pytest.mark.parametrize("whole", [True, False])
def test_tail_of_random_signs_against_all_of_them(shift: float, whole: bool) -> None:
    """22 groups of unequal weight, whole numbers (clustered right-or-wrong) or not (losses)."""
    rows = np.random.default_rng(4).normal(2 * shift, 2, size=(3, 22))
    rows = np.rint(rows) if whole else rows
    for row, p in zip(rows, sign_flip_p(rows), strict=True):
        totals = np.zeros(1)
        for value in row:
            totals = np.concatenate([totals + value, totals - value])
        assert p == pytest.approx(np.mean(np.abs(totals) >= abs(row.sum()) - 1e-9), rel=0.1)


def test_exact_test_of_pairs() -> None:
    from scipy.stats import binomtest

    for wins, losses in ((0, 0), (1, 0), (10, 0), (7, 3), (50, 50), (400, 300)):
        expected = binomtest(wins, wins + losses).pvalue if wins + losses else 1.0
        assert mcnemar_p(wins, losses) == mcnemar_p(losses, wins) == pytest.approx(expected)


def test_a_few_much_worse_items_are_not_outvoted_by_many_a_little_better() -> None:
    """No gain at all, but skewed: at a night's level signs alone would be wrong ten times as often as they may."""
    generator, level = np.random.default_rng(8), 1e-3
    draws = 1 - generator.exponential(size=(40_000, 100))
    near = draws[draws.sum(axis=1) > 2.9 * np.sqrt((draws**2).sum(axis=1))]
    wrong = sum(difference(one, 0.95, None, level).p / 2 <= level for one in near) / len(draws)
    signs = float((sign_flip_p(near) / 2 <= level).sum() / len(draws))
    print(f"skewed, at {level}: {wrong:.5f}, by signs alone {signs:.5f}")
    assert wrong < 2.5 * level < 4 * level < signs
    # A guard at its margin, and the same upside down.
    let = np.mean([difference(one, 0.95).low > 0 for one in draws[:4000]])
    assert let < 0.04
    found, mirrored = difference(draws[0], 0.9), difference(-draws[0], 0.9)
    assert (found.mean, found.low, found.high) == pytest.approx((-mirrored.mean, -mirrored.high, -mirrored.low))
    assert found.p == pytest.approx(mirrored.p)


def test_a_gain_without_noise_is_a_gain() -> None:
    """Nothing varies, so nothing is skewed."""
    found = difference([0.5] * 40, 0.95)
    assert (found.low, found.high) == (0.5, 0.5)
    assert found.p < 1e-9
