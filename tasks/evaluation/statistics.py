"""What the difference between two models on the same items amounts to.

Everything is paired by item. Binary scores: Tango's score interval (Statistics in Medicine 17, 1998),
which keeps its coverage at the edges (0.00 against 0.98, or no difference at all on 64 items, where
mean and standard error give an interval of no width), and McNemar's exact test. Other scores: an
interval of Student's t on the paired differences and a sign-flip permutation test, both held to
Hall's correction for skewness (JRSS B 54, 1992): a permutation of signs is exact where a difference
is as likely as its opposite, and a model that is a little better on most items and much worse on a
few is not such a case. Items of one
cluster share what they measure: standard errors are then clustered (Miller 2024, arXiv 2411.00640),
the binary interval is taken at the effective number of items (Rao and Scott, Biometrics 48, 1992),
and permutation flips whole clusters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
_ENUMERATED = 18  # groups whose 2^18 patterns of signs are all counted
_POWER = 0.8


class Difference(NamedTuple):
    """Mean paired difference with its interval; `p` tests that there is none, two-sided.

    `detectable`: the true gain that a test at the night's level sees 8 times in 10 on this many items, this noisy.
    """

    mean: float
    low: float
    high: float
    p: float
    detectable: float


def difference(
    differences: Sequence[float], confidence: float, clusters: Sequence[str] | None = None, level: float | None = None
) -> Difference:
    """The mean of paired differences, candidate minus reference; at least two.

    `confidence`: of the interval, two-sided. `level`: of the one-sided test that decides; None: the interval's.
    Differences that are all -1, 0 or 1 are taken for those of binary scores.
    """
    level = (1 - confidence) / 2 if level is None else level
    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2 or not np.isfinite(d).all():
        raise ValueError("at least two finite differences are needed")
    groups = _groups(clusters, len(d))
    if np.isin(d, (-1.0, 0.0, 1.0)).all():
        return _binary(d, confidence, groups, level)
    return _continuous(d, confidence, groups, level)


def counted(wins: int, losses: int, n: int, confidence: float, level: float) -> Difference:
    """The same of binary scores on independent items, from how many were won and lost."""
    low, high = tango_interval(wins, losses, n, confidence)
    # One discordant item more than was seen: no noise seen is not no noise.
    detectable = _detectable_share((wins + losses + 1) / (n + 1), n, level)
    return Difference((wins - losses) / n, low, high, mcnemar_p(wins, losses), detectable)


def mcnemar_p(wins: int, losses: int) -> float:
    """Two-sided, exact: of the items on which two models differ, each is as likely to be won as lost."""
    from scipy.special import bdtr

    return min(1.0, 2 * float(bdtr(min(wins, losses), wins + losses, 0.5))) if wins + losses else 1.0


def _binary(d: Floats, confidence: float, groups: NDArray[np.intp], level: float) -> Difference:
    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    if groups.max() + 1 == len(d):
        return counted(wins, losses, len(d), confidence, level)
    effect = _design_effect(d, groups)
    n = len(d) / effect
    low, high = tango_interval(wins / effect, losses / effect, n, confidence)
    p = max(float(sign_flip_p(np.bincount(groups, weights=d).astype(np.float64))), _skewed_p(d, groups))
    detectable = _detectable_share((wins + losses + effect) / (len(d) + effect), n, level)
    return Difference(float(d.mean()), low, high, p, detectable)


def _continuous(d: Floats, confidence: float, groups: NDArray[np.intp], level: float) -> Difference:
    from scipy.stats import norm, t

    sums = np.bincount(groups, weights=d).astype(np.float64)
    count = len(sums)
    mean = float(d.mean())
    error = _standard_error(d, groups)
    if count < 2:
        return Difference(mean, -math.inf, math.inf, 1.0, math.inf)
    reach = float(t.ppf((1 + confidence) / 2, count - 1))
    skewness = _skewness(d, groups)
    below, above = (max(reach, side * _unskewed(side * reach, skewness, count)) for side in (1, -1))
    p = max(float(sign_flip_p(sums)), _skewed_p(d, groups))
    detectable = (float(t.isf(level, count - 1)) + float(norm.ppf(_POWER))) * error
    return Difference(mean, mean - below * error, mean + above * error, p, detectable)


def tango_interval(wins: float, losses: float, n: float, confidence: float) -> tuple[float, float]:
    """Score interval of a paired difference of proportions, (wins - losses) / n.

    The difference is in the interval where the score test, with the discordant share that is most
    likely under it, does not reject it. Counts may be fractional (effective items).
    """
    from scipy.optimize import brentq
    from scipy.stats import norm

    z = float(norm.ppf((1 + confidence) / 2))
    estimate = (wins - losses) / n

    def statistic(delta: float) -> float:
        if abs(delta) >= 1:
            return math.copysign(math.inf, estimate - delta) if estimate != delta else 0.0
        b = (2 * n - wins + losses) * delta - wins - losses
        c = -losses * delta * (1 - delta)
        lost = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
        variance = n * (2 * lost + delta * (1 - delta))
        if variance <= 0:
            return 0.0 if estimate == delta else math.copysign(math.inf, estimate - delta)
        return (wins - losses - n * delta) / math.sqrt(variance)

    def bound(edge: float) -> float:
        want = z if edge < 0 else -z
        edge *= 1 - 1e-12
        if (statistic(edge) - want) * (statistic(estimate) - want) >= 0:
            return math.copysign(1.0, edge)
        return float(brentq(lambda delta: max(-1e9, min(1e9, statistic(delta))) - want, edge, estimate, xtol=1e-10))

    if abs(estimate) == 1:
        # The statistic is undefined at the estimate itself: step inside.
        inner = estimate * (1 - 1e-9)
        other = float(
            brentq(lambda delta: statistic(delta) - math.copysign(z, estimate), -estimate * (1 - 1e-9), inner)
        )
        return (other, 1.0) if estimate > 0 else (-1.0, other)
    return bound(-1.0), bound(1.0)


def sign_flip_p(sums: Floats) -> Floats:
    """Two-sided p of the sum under random signs of independent groups, along the last axis.

    Exact for up to 18 groups. For more, the saddlepoint approximation of the permutation distribution (Robinson,
    JRSS B 44, 1982; tail by Lugannani and Rice, on a lattice for whole numbers as in Daniels, International
    Statistical Review 55, 1987): within a few per cent of the true p however small that is, where random
    permutations would have to be counted by the million.
    """
    rows = np.atleast_2d(np.asarray(sums, dtype=np.float64))
    rows = rows[:, (rows != 0).any(axis=0)]
    if rows.shape[-1] <= _ENUMERATED:
        found = [_enumerated_p(row) for row in rows]
    else:
        step = max(1, 2**20 // rows.shape[-1])
        found = [_saddlepoint_p(rows[at : at + step]) for at in range(0, len(rows), step)]
    return np.hstack(found).reshape(np.shape(sums)[:-1])


def _enumerated_p(row: Floats) -> Floats:
    totals = np.zeros(1)
    for value in row:
        totals = np.concatenate([totals + value, totals - value])
    return np.mean(np.abs(totals) >= abs(row.sum()) * (1 - 1e-12))


def _saddlepoint_p(rows: Floats) -> Floats:
    """Two-sided, of rows by groups; the cumulants of a sum under random signs are those of log cosh."""
    from scipy.special import log_ndtr
    from scipy.stats import norm

    sizes = np.abs(rows)
    most, observed = sizes.sum(axis=1), np.abs(rows.sum(axis=1))
    whole = bool((rows == np.rint(rows)).all())  # sums then lie 2 apart
    at = np.maximum(0.0, observed - 1) if whole else observed
    alone = np.exp2(1.0 - (sizes > 0).sum(axis=1))  # p where every group has the same sign
    at = np.minimum(at, most * (1 - 1e-9))
    t = at / np.maximum((sizes**2).sum(axis=1), 1e-300)
    low, high = np.zeros_like(t), np.full_like(t, np.inf)
    for _ in range(60):
        slope = np.tanh(t[:, None] * sizes)
        gap = (sizes * slope).sum(axis=1) - at
        low, high = np.where(gap < 0, t, low), np.where(gap < 0, high, t)
        curve = (sizes**2 * (1 - slope**2)).sum(axis=1)
        aimed = t - gap / np.maximum(curve, 1e-300)
        outside = (aimed <= low) | (aimed >= high)
        aimed = np.where(outside, np.where(np.isinf(high), 2 * t, (low + high) / 2), aimed)
        if np.allclose(aimed, t, rtol=1e-10, atol=0):
            break
        t = aimed
    products = t[:, None] * sizes
    log_cosh = products + np.log1p(np.exp(-2 * products)) - math.log(2)
    curve = np.maximum((sizes**2 / np.cosh(np.minimum(products, 300)) ** 2).sum(axis=1), 1e-300)
    w = np.sqrt(np.maximum(0.0, 2 * (t * at - log_cosh.sum(axis=1))))
    u = (np.sinh(np.minimum(t, 300)) if whole else t) * np.sqrt(curve)
    near = (w < 1e-3) | (u < 1e-3)  # at the centre the two terms cancel: the normal tail will do
    correction = norm.pdf(w) * (1 / np.where(near, 1, u) - 1 / np.where(near, 1, w))
    one_sided = np.exp(log_ndtr(-w)) + np.where(near, 0, correction)
    return np.where(observed >= most * (1 - 1e-12), alone, np.clip(2 * one_sided, alone, 1.0))


def _groups(clusters: Sequence[str] | None, n: int) -> NDArray[np.intp]:
    if clusters is None:
        return np.arange(n)
    if len(clusters) != n:
        raise ValueError("one cluster for each item is needed")
    return np.unique(np.asarray(clusters), return_inverse=True)[1]


def _standard_error(d: Floats, groups: NDArray[np.intp]) -> float:
    """Of the mean, clustered, with the usual small-sample factor of G / (G - 1)."""
    residuals = np.bincount(groups, weights=d - d.mean())
    count = len(residuals)
    if count < 2:
        return math.inf
    return float(math.sqrt(count / (count - 1) * (residuals**2).sum()) / len(d))


def _skewness(d: Floats, groups: NDArray[np.intp]) -> float:
    residuals = np.bincount(groups, weights=d - d.mean())
    spread = float(np.sqrt((residuals**2).mean()))
    return float((residuals**3).mean()) / spread**3 if spread else 0.0


def _skewed_p(d: Floats, groups: NDArray[np.intp]) -> float:
    """Two-sided p of a mean of zero by Student's t, corrected for skewness; 0 where nothing varies."""
    from scipy.stats import t

    count = int(groups.max()) + 1
    error = _standard_error(d, groups)
    if not error or count < 3:
        return 0.0
    # In the direction of the mean, so that its skewness counts where the mean is tested.
    size, skewness = abs(float(d.mean())) / error, math.copysign(1, d.mean()) * _skewness(d, groups)
    share = skewness / math.sqrt(count)
    return min(1.0, 2 * float(t.sf(size + share * size**2 / 3 + share**2 * size**3 / 27 + share / 6, count - 1)))


def _unskewed(quantile: float, skewness: float, count: int) -> float:
    """What a Studentised mean of skewed differences exceeds as often as Student's t does this quantile."""
    share = skewness / math.sqrt(count)
    if abs(share) < 1e-6:
        return quantile
    return 3 / share * (float(np.cbrt(1 + share * (quantile - share / 6))) - 1)


def _design_effect(d: Floats, groups: NDArray[np.intp]) -> float:
    """Variance of the mean with clusters over that without: items divided by effective items, at least 1."""
    count = int(groups.max()) + 1
    if count == len(d):
        return 1.0
    simple = _standard_error(d, np.arange(len(d)))
    if simple == 0 or count < 2:
        return len(d) / count  # nothing to estimate it from: a cluster counts as one item
    return min(max(1.0, (_standard_error(d, groups) / simple) ** 2), len(d) / 2)


def _detectable_share(discordant: float, n: float, level: float) -> float:
    """The true difference of two shares that is told from zero 8 times in 10 (Connor, Biometrics 43, 1987)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z_alpha, z_power = float(norm.isf(level)), float(norm.ppf(_POWER))

    def short(delta: float) -> float:
        # A difference takes at least as many discordant items.
        share = max(discordant, delta)
        return delta * math.sqrt(n) - z_alpha * math.sqrt(share) - z_power * math.sqrt(max(0.0, share - delta**2))

    return float(brentq(short, 0.0, 1.0)) if short(1.0) > 0 else 1.0
