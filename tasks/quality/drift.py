"""What has changed about a source since the last night that passed: measures, each with a bound and how it is meant.

Shares of rows by bin or by name are compared by two statistics. The population stability index (Siddiqi, Credit
Risk Scorecards, 2006: from 0.25 a population has shifted) sees any change of shape. The Kolmogorov-Smirnov
statistic, the largest difference of cumulative shares, sees lengths that moved one way, and over fixed bins is
never more than over the lengths themselves. Both are large by chance where rows are few, so a bound is the greater
of the recipe's and what chance alone exceeds with the recipe's `significance`: for the index (1/n + 1/m) times a
quantile of chi squared (Yurdakul and Naranjo, Journal of Risk Model Validation, 2020), for the other Smirnov's
(Annals of Mathematical Statistics, 1948).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from statistics import NormalDist
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.conversations import Finding
from tasks.quality.profile import LENGTHS, Profile, edge
from tasks.quality.rules import NIGHT_RULES, Rule
from tasks.recipe import Drift, Severity
from tasks.store import Manifest

GROUPS = 10  # of about as many rows each, which the index of a length is taken over
FEWEST = 10  # rows of both nights below which a name is counted among the others
BY_NAME = {rule.name: rule for rule in NIGHT_RULES}


class Measure(BaseModel):
    """One thing compared: `value` must lie between `low` and `high` (null: no bound).

    `statistic`: what the value is (share of rows, count, PSI, KS); `before` and `now`: in words.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    statistic: Literal["rows", "count", "PSI", "KS"]
    severity: Severity
    before: str
    now: str
    value: float
    low: float | None = None
    high: float | None = None

    @property
    def column(self) -> str:
        """A name for the measure: the rule's, and the statistic where the rule has two."""
        return f"{self.rule}_{self.statistic.lower()}" if self.statistic in ("PSI", "KS") else self.rule

    @property
    def holds(self) -> bool:
        """Whether the value is within its bounds."""
        return (self.low is None or self.value >= self.low) and (self.high is None or self.value <= self.high)

    def told(self) -> str:
        """In words: what was measured, its bound, before and now."""
        bounds = [f"at least {self.low:.2g}"] if self.low is not None else []
        bounds += [f"at most {self.high:.2g}"] if self.high is not None else []
        named = {"rows": "rows now per row then", "count": "how many"}.get(self.statistic, self.statistic)
        return f"{named} {self.value:.2g} ({' and '.join(bounds)}); then {self.before}, now {self.now}"


class Change(Manifest):
    """A source held against the last night that passed.

    `before`: address of that night's conversations, null on a first night, which has nothing to compare with.
    Files, where there was something to compare: `docs/` (Great Expectations Data Docs), `drift.png`, `drift.svg`.
    """

    kind = "change"

    source: str
    conversations: str
    before: str | None
    before_made_at: str | None
    measures: tuple[Measure, ...]

    @property
    def passed(self) -> bool:
        """Whether the night may go on."""
        return not any(finding.stops for finding in self.findings)

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What is out of bounds, one finding a rule."""
        broken: dict[str, list[Measure]] = {}
        for measure in self.measures:
            if not measure.holds:
                broken.setdefault(measure.rule, []).append(measure)
        return tuple(
            Finding(
                rule=rule,
                severity=measures[0].severity,
                rows=0,
                share=0.0,
                mostly=1.0,
                stops=measures[0].severity == "critical",
                explanation=BY_NAME[rule].explanation,
                example="; ".join(measure.told() for measure in measures),
            )
            for rule, measures in broken.items()
        )


class Passed(Manifest):
    """A night of a recipe of which every source passed the gate: by source, its conversations and its Change."""

    kind = "passed"

    conversations: dict[str, str]
    changes: dict[str, str]


def compared(before: Profile, now: Profile, bounds: Drift, rules: Sequence[Rule]) -> list[Measure]:
    """Every measure that the rules ask for and both profiles have."""
    asked = {rule.name: rule.severity for rule in rules}
    measures = [*_rows(before, now, bounds), *_columns(before, now), *_kinds(before, now, bounds)]
    for name in ("roles", "languages"):
        measures += _names(f"{name}_moved", getattr(before, name), getattr(now, name), bounds)
    for name in LENGTHS:
        # Another tokenizer counts otherwise, whatever the rows.
        if name != "tokens" or before.tokenizer == now.tokenizer:
            measures += _lengths(f"{name}_moved", getattr(before, name), getattr(now, name), bounds)
    return [
        measure.model_copy(update={"severity": asked[measure.rule]}) for measure in measures if measure.rule in asked
    ]


def _rows(before: Profile, now: Profile, bounds: Drift) -> Iterator[Measure]:
    if before.rows:
        yield Measure(
            rule="rows_moved",
            statistic="rows",
            severity="critical",
            before=f"{before.rows:,}",
            now=f"{now.rows:,}",
            value=now.rows / before.rows,
            low=1 - bounds.fewer_rows,
            high=None if bounds.more_rows is None else 1 + bounds.more_rows,
        )


def _columns(before: Profile, now: Profile) -> Iterator[Measure]:
    for rule, one, other in (("column_vanished", before, now), ("column_new", now, before)):
        names = [name for name in one.columns if name not in other.columns]
        yield Measure(
            rule=rule,
            statistic="count",
            severity="warning",
            before=_listed(before.columns),
            now=f"{_listed(now.columns)}{f' ({_listed(names)})' if names else ''}",
            value=len(names),
            high=0,
        )


def _kinds(before: Profile, now: Profile, bounds: Drift) -> Iterator[Measure]:
    """Kinds that are gone, and so frequent before that chance alone does not leave them out."""
    gone = [
        kind
        for kind, rows in before.kinds.items()
        if not now.kinds.get(kind) and math.exp(-now.rows * rows / before.rows) < bounds.significance
    ]
    yield Measure(
        rule="kind_vanished",
        statistic="count",
        severity="critical",
        before=_shares(before.kinds),
        now=_shares(now.kinds),
        value=len(gone),
        high=0,
    )


def _names(rule: str, before: Mapping[str, int], now: Mapping[str, int], bounds: Drift) -> Iterator[Measure]:
    if sum(before.values()) and sum(now.values()):
        seldom = {name for name in {*before, *now} if before.get(name, 0) + now.get(name, 0) < FEWEST}
        groups = [*([name] for name in sorted({*before, *now} - seldom)), *([sorted(seldom)] if seldom else [])]
        value, high = _psi(_grouped(before, groups), _grouped(now, groups), bounds)
        told = {"before": _shares(before), "now": _shares(now)}
        yield Measure(rule=rule, statistic="PSI", severity="warning", value=value, high=high, **told)


def _lengths(rule: str, before: Mapping[int, int], now: Mapping[int, int], bounds: Drift) -> Iterator[Measure]:
    if sum(before.values()) and sum(now.values()):
        told = {"before": f"median about {median(before):,.0f}", "now": f"median about {median(now):,.0f}"}
        groups = _tenths(before, now)
        value, high = _psi(_grouped(before, groups), _grouped(now, groups), bounds)
        yield Measure(rule=rule, statistic="PSI", severity="warning", value=value, high=high, **told)
        value, high = _ks(before, now, bounds)
        yield Measure(rule=rule, statistic="KS", severity="warning", value=value, high=high, **told)


def _grouped(counts: Mapping, groups: Sequence[Sequence]) -> list[int]:
    return [sum(counts.get(name, 0) for name in group) for group in groups]


def _tenths(before: Mapping[int, int], now: Mapping[int, int]) -> list[list[int]]:
    """Neighbouring bins put together until each group has a tenth of the rows of both nights, or more."""
    both = {bin: before.get(bin, 0) + now.get(bin, 0) for bin in sorted({*before, *now})}
    enough = sum(both.values()) / GROUPS
    groups: list[list[int]] = []
    filled = enough
    for bin, rows in both.items():
        if filled >= enough:
            groups.append([])
            filled = 0
        groups[-1].append(bin)
        filled += rows
    return groups


def _psi(before: Sequence[int], now: Sequence[int], bounds: Drift) -> tuple[float, float]:
    """The index over groups, half a row added to each so that none is empty; and its bound."""
    n, m, groups = sum(before), sum(now), len(before)
    value = 0.0
    for one, other in zip(before, now, strict=True):
        p, q = (one + 0.5) / (n + groups / 2), (other + 0.5) / (m + groups / 2)
        value += (q - p) * math.log(q / p)
    chance = (1 / n + 1 / m) * _chi_squared(groups - 1, 1 - bounds.significance) if groups > 1 else 0.0
    return value, max(bounds.psi, chance)


def _ks(before: Mapping[int, int], now: Mapping[int, int], bounds: Drift) -> tuple[float, float]:
    n, m = sum(before.values()), sum(now.values())
    value = one = other = 0.0
    for bin in sorted({*before, *now}):
        one, other = one + before.get(bin, 0) / n, other + now.get(bin, 0) / m
        value = max(value, abs(one - other))
    chance = math.sqrt(-math.log(bounds.significance / 2) / 2 * (1 / n + 1 / m))
    return value, max(bounds.ks, chance)


def _chi_squared(freedom: int, quantile: float) -> float:
    """A quantile of chi squared, by Wilson and Hilferty (1931): within 4 % here, and above it where it is off most."""
    spread = 2 / (9 * freedom)
    return float(freedom * (1 - spread + NormalDist().inv_cdf(quantile) * math.sqrt(spread)) ** 3)


def median(counts: Mapping[int, int]) -> float:
    """The least length of the bin that the median lies in."""
    half, seen = sum(counts.values()) / 2, 0
    for bin, rows in sorted(counts.items()):
        seen += rows
        if seen >= half:
            return edge(bin)
    return 0.0


def _shares(counts: Mapping[str, int]) -> str:
    total = sum(counts.values())
    most = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {rows / total:.0%}" for name, rows in most[:5]) or "none"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
