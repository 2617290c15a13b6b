"""What the difference between two models on the same items amounts to.

Everything is paired by item. Binary scores: Tango's score interval (Statistics in Medicine 17, 1998),
which keeps its coverage at the edges (0.00 against 0.98, or no difference at all on 64 items, where
mean and standard error give an interval of no width), and McNemar's exact test. Other scores: an
interval of Student's t on the paired differences and a sign-flip permutation test. Items of one
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
_FLIPS = 19_999  # permutations: the smallest p is then 0.00005
_POWER = 0.8


class Difference(NamedTuple):
    """Mean paired difference with its interval; `p` tests that there is none, two-sided.

    `detectable`: the true difference that an interval of this many items, this noisy, would exclude
    zero for 8 times in 10.
    """

    mean: float
    low: float
    high: float
    p: float
    detectable: float


def difference(differences: Sequence[float], confidence: float, clusters: Sequence[str] | None = None) -> Difference:
    """The mean of paired differences, candidate minus reference; at least two.

    Differences that are all -1, 0 or 1 are taken for those of binary scores.
    """
    d = np.asarray(differences, dtype=np.float64)
    if len(d) < 2 or not np.isfinite(d).all():
        raise ValueError("at least two finite differences are needed")
    groups = _groups(clusters, len(d))
    if np.isin(d, (-1.0, 0.0, 1.0)).all():
        return _binary(d, confidence, groups)
    return _continuous(d, confidence, groups)


def _binary(d: Floats, confidence: float, groups: NDArray[np.intp]) -> Difference:
    from scipy.stats import binomtest

    wins, losses = int((d > 0).sum()), int((d < 0).sum())
    effect = _design_effect(d, groups)
    n = len(d) / effect
    low, high = tango_interval(wins / effect, losses / effect, n, confidence)
    independent = groups.max() + 1 == len(d)
    if not wins + losses:
        p = 1.0
    elif independent:
        p = float(binomtest(wins, wins + losses).pvalue)
    else:
        p = _sign_flip_p(np.bincount(groups, weights=d).astype(np.float64))
    # One discordant item more than was seen: no noise seen is not no noise.
    discordant = (wins + losses + effect) / (len(d) + effect)
    return Difference(float(d.mean()), low, high, p, _detectable_share(discordant, n, confidence))


def _continuous(d: Floats, confidence: float, groups: NDArray[np.intp]) -> Difference:
    from scipy.stats import norm, t

    sums = np.bincount(groups, weights=d).astype(np.float64)
    count = len(sums)
    mean = float(d.mean())
    error = _standard_error(d, groups)
    if count < 2:
        return Difference(mean, -math.inf, math.inf, 1.0, math.inf)
    reach = float(t.ppf((1 + confidence) / 2, count - 1)) * error
    detectable = reach + float(norm.ppf(_POWER)) * error
    return Difference(mean, mean - reach, mean + reach, _sign_flip_p(sums), detectable)


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


def _sign_flip_p(sums: Floats) -> float:
    """Two-sided p of the sum under random signs of independent groups; exact up to 2^14 sign patterns."""
    sums = sums[sums != 0]
    if not len(sums):
        return 1.0
    observed = abs(sums.sum()) * (1 - 1e-12)
    if len(sums) <= 14:
        signs = 1 - 2 * ((np.arange(2 ** len(sums))[:, None] >> np.arange(len(sums))) & 1)
        return float((np.abs(signs @ sums) >= observed).mean())
    generator = np.random.default_rng(0)
    hits, left = 1, _FLIPS
    while left:
        rows = min(left, max(1, 2**22 // len(sums)))
        signs = generator.integers(0, 2, size=(rows, len(sums)), dtype=np.int8) * 2 - 1
        hits += int((np.abs(signs @ sums) >= observed).sum())
        left -= rows
    return hits / (_FLIPS + 1)


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


def _design_effect(d: Floats, groups: NDArray[np.intp]) -> float:
    """Variance of the mean with clusters over that without: items divided by effective items, at least 1."""
    count = int(groups.max()) + 1
    if count == len(d):
        return 1.0
    simple = _standard_error(d, np.arange(len(d)))
    if simple == 0 or count < 2:
        return len(d) / count  # nothing to estimate it from: a cluster counts as one item
    return min(max(1.0, (_standard_error(d, groups) / simple) ** 2), len(d) / 2)


def _detectable_share(discordant: float, n: float, confidence: float) -> float:
    """The true difference of two shares that is told from zero 8 times in 10 (Connor, Biometrics 43, 1987)."""
    from scipy.optimize import brentq
    from scipy.stats import norm

    z_alpha, z_power = float(norm.ppf((1 + confidence) / 2)), float(norm.ppf(_POWER))

    def short(delta: float) -> float:
        # A difference takes at least as many discordant items.
        share = max(discordant, delta)
        return delta * math.sqrt(n) - z_alpha * math.sqrt(share) - z_power * math.sqrt(max(0.0, share - delta**2))

    return float(brentq(short, 0.0, 1.0)) if short(1.0) > 0 else 1.0
