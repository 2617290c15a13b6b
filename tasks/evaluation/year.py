"""The year: how sure one night must be, so that a whole year of nights is seldom wrong.

Each candidate that is judged is one more hypothesis. A gate that errs in 2.5 % of nights errs in all but 1 of 10,000
years. What is held here is the chance that a year sees **any** false promotion (the family-wise error rate of any
365 days), at `gate.year_error`, by alpha-spending: a budget that renews.

    The budget holds at most 60 days' worth of error and starts full. Each day adds one day's worth, which is
    year_error / 425. Each hypothesis spends a tenth of what is there: that is the level that its p must not exceed.

In any 365 days at most 60 + 365 days' worth is spent, which is year_error, whatever is tried how often and in what
order: nights, several candidates a night, twenty runs in one afternoon. The union bound asks nothing of how nights
depend on each other, so it also holds where they share items, a champion and a training set, as they do. The first
nights, and those after a pause, get six times the level of a night in a long row, and no row of nights without a
promotion drives the level to zero.

Chosen by simulation (`tests/benchmarks/bench_gate.py`; 1,000 years of 365 nights at a year's error of 0.04; a true gain
of 5 points on 1,000 items with a paired correlation of 0.5):

    rule                              years with a false promotion    the gain promoted within 10 nights
                                      fresh items   same items        from the first   after 200 quiet nights
    higher estimate wins                 1.000         0.998              1.000            (none is quiet)
    2.5 % each night                     0.999         0.547              1.000              1.000
    LORD++                               0.004         0.001              0.975              0.592
    SAFFRON                              0.015         0.044              1.000              0.519
    ADDIS                                0.016         0.012              0.999              0.604
    LORD with decaying memory            0.061         0.021              0.982              0.976
    one 365th of the year a night        0.020         0.013              0.954              0.953
    evidence carried over nights         0.010         0.135              1.000              1.000
    the budget above                     0.026         0.012              0.990              0.940

- LORD++ (Ramdas et al. 2017, arXiv 1710.00499), SAFFRON (Ramdas et al. 2018, arXiv 1802.09098) and ADDIS (Tian and
  Ramdas 2019, arXiv 1905.11465) control a false discovery rate, which is this error where no discovery is true; in a
  long row without a promotion their level dies away.
- Decaying memory (Rebjock et al., NeurIPS 2021) keeps its level up and pays with the error: it holds a rate over the
  recent past, and a year is longer.
- One 365th a night (alpha-spending, Lan and DeMets, Biometrika 70, 1983) is half as quick on the first night, and
  nothing stops a second run on the same day from spending the day's share again.
- Evidence carried over nights (e-processes with restarts, Shin, Ramdas and Rinaldo 2022, arXiv 2203.03532) is the most
  powerful where every night brings fresh items, and fails where it does not: the luck of one champion on one set of
  items is then taken for evidence every night. How fresh the items are is for the data to say, not for a gate to hope.

The budget does not make one test set last for ever by itself: who tunes on its results finds what fits it. So the
nights' items rotate (`evaluation.rotate`, tasks/evaluation/items.py).

The ledger is a file a recipe, in the store, rewritten whole under a lock: an entry for each hypothesis, by the address
of its verdict. A hypothesis that is entered already spends nothing, so a night that is judged twice is judged at the
same level. Entries that MLflow knows and the file does not (of another machine, or of a lost file) are taken over.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from tasks.errors import WorldFailed
from tasks.store import write_whole

YEAR = 365  # days
SAVED = 60  # days' worth of error that the budget holds at most
SHARE = 0.1  # of the budget that one hypothesis spends


class Spent(BaseModel):
    """One hypothesis: `key` is its verdict's address, `level` what it spent, `at` UTC; `decision` once there is one."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    key: str
    at: datetime
    level: float
    candidate: str = ""
    decision: str = ""


class Budget(BaseModel):
    """What is left. `level`: of the next hypothesis; `left` and `spent`: of the budget, and in the last 365 days, as
    shares of `year_error`; `hypotheses`: in those days."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    year_error: float
    level: float
    left: float
    spent: float
    hypotheses: int

    def __str__(self) -> str:
        return (
            f"the next target must be better with p <= {self.level:.2g}, one-sided; {self.left:.0%} of what may be "
            f"saved up is left; judged in 365 days: {self.hypotheses}"
        )


_ENTRIES = TypeAdapter(tuple[Spent, ...])


def budget(entries: Iterable[Spent], now: datetime, year_error: float) -> Budget:
    """The budget at a time, after these hypotheses."""
    a_day = year_error / (YEAR + SAVED)
    there, last = SAVED * a_day, None
    ordered = sorted(entries, key=lambda entry: entry.at)
    for entry in ordered:
        there = _renewed(there, a_day, last, entry.at)
        # What several machines spent at once, not knowing of each other, is owed.
        there, last = there - entry.level, entry.at
    there = _renewed(there, a_day, last, now)
    recent = [entry.level for entry in ordered if entry.at > now - timedelta(days=YEAR)]
    return Budget(
        year_error=year_error,
        level=SHARE * max(0.0, there),
        left=max(0.0, there) / (SAVED * a_day),
        spent=sum(recent) / year_error,
        hypotheses=len(recent),
    )


def _renewed(there: float, a_day: float, since: datetime | None, now: datetime) -> float:
    # A clock that was set back adds nothing.
    days = max(0.0, (now - since) / timedelta(days=1)) if since else 0.0
    return min(SAVED * a_day, there + days * a_day)


class Ledger:
    """The hypotheses of one recipe, in a file. `elsewhere`: entries that are known from another place."""

    def __init__(self, root: Path, recipe: str, elsewhere: Sequence[Spent] = ()) -> None:
        self.file = root / "year" / f"{recipe}.json"
        self.elsewhere = tuple(elsewhere)

    def entries(self) -> tuple[Spent, ...]:
        """Every hypothesis, oldest first. Raises WorldFailed where the file cannot be read as a ledger."""
        try:
            kept = _ENTRIES.validate_json(self.file.read_bytes())
        except FileNotFoundError:
            kept = ()
        except (ValidationError, OSError) as error:
            raise WorldFailed(
                str(self.file),
                f"is no ledger of nights ({type(error).__name__})",
                "Put it back from a copy. Removed, MLflow's record of the nights takes its place.",
            ) from error
        known = {entry.key for entry in kept}
        return tuple(sorted([*kept, *(e for e in self.elsewhere if e.key not in known)], key=lambda entry: entry.at))

    def spend(self, key: str, candidate: str, year_error: float, now: datetime | None = None) -> tuple[Spent, Budget]:
        """Enter a hypothesis, once; its entry, and what is left after it."""
        now = now or datetime.now(UTC)
        with self._locked():
            entries = self.entries()
            found = next((entry for entry in entries if entry.key == key), None)
            if found is None:
                level = budget(entries, now, year_error).level
                found = Spent(key=key, at=now, level=level, candidate=candidate)
                entries = (*entries, found)
                self._write(entries)
            return found, budget(entries, max(now, found.at), year_error)

    def settle(self, key: str, decision: str) -> None:
        """Write the decision to its hypothesis."""
        with self._locked():
            self._write([e.model_copy(update={"decision": decision}) if e.key == key else e for e in self.entries()])

    def _write(self, entries: Sequence[Spent]) -> None:
        write_whole(self.file, _ENTRIES.dump_json(tuple(entries), indent=1).decode())

    def _locked(self) -> FileLock:
        self.file.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self.file}.lock")
