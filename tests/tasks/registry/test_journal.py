"""Moving the champion: many processes at once, killed ones, and a journal in which no attempt is missing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from rush import Rush

from tasks.errors import WorldFailed
from tasks.registry import Decision, Move, alias_version, client, earlier_champions, ensure_model, move, moves
from tasks.registry.journal import JOURNAL_TAG, PATIENCE, _close, _dead, _write_once
from tasks.registry.process import this_machine, this_process

MODEL = "nightowl-test"


@pytest.fixture
def mlflow(embedded: Path) -> Any:
    """A client on a registry with four versions; each was judged against the next one's adapter, round and round."""
    mlflow = client()
    Rush().register(mlflow)
    return mlflow


def go(mlflow: Any, to: int, who: str = "ada") -> Any:
    return move(mlflow, MODEL, "promote", to, lambda found, previous: Decision(to, "moved"), who, "a test")


def test_two_first_nights_make_one_journal(embedded: Path) -> None:
    mlflow = client()
    ensure_model(mlflow, MODEL, "test")
    journal = mlflow.get_registered_model(MODEL).tags[JOURNAL_TAG]
    ensure_model(mlflow, MODEL, "test")
    assert mlflow.get_registered_model(MODEL).tags[JOURNAL_TAG] == journal
    assert moves(mlflow, MODEL) == []
    assert moves(mlflow, "no-such-model") == []


def test_a_claim_is_written_once(mlflow: Any) -> None:
    journal = mlflow.get_registered_model(MODEL).tags[JOURNAL_TAG]
    assert _write_once(mlflow, journal, "000001.claim", {"token": "mine"})
    assert _write_once(mlflow, journal, "000001.claim", {"token": "mine"})  # a request that was sent again
    assert not _write_once(mlflow, journal, "000001.claim", {"token": "theirs"})


@pytest.mark.parametrize("died_after", ["claim", "plan", "champion"])
def test_what_a_killed_move_left_is_closed_by_the_next(mlflow: Any, died_after: str) -> None:
    go(mlflow, 1)
    journal = mlflow.get_registered_model(MODEL).tags[JOURNAL_TAG]
    claim = {"token": "t", "machine": this_machine(), "process": "999999999@1", "kind": "promote", "wanted": 2}
    claim |= {"who": "the dead", "why": "unknown", "at": "2026-01-01T00:00:00+00:00"}
    _write_once(mlflow, journal, "000002.claim", claim)
    if died_after != "claim":
        _write_once(mlflow, journal, "000002.plan", {"found": 1, "to": 2})
    if died_after == "champion":
        mlflow.set_registered_model_alias(MODEL, "champion", "2")
    go(mlflow, 3)
    _, dead, last = moves(mlflow, MODEL)
    assert dead.moved is (died_after == "champion")
    assert "its process died" in dead.outcome
    assert last.found == (2 if died_after == "champion" else 1)
    assert alias_version(mlflow, MODEL, "champion") == 3
    assert alias_version(mlflow, MODEL, "previous") == last.found


def test_a_decision_that_raises_is_recorded_and_moves_nothing(mlflow: Any) -> None:
    go(mlflow, 1)

    def undecided(found: int | None, previous: int | None) -> Decision:
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        move(mlflow, MODEL, "promote", 2, undecided, "ada", "a test")
    assert moves(mlflow, MODEL)[-1].outcome == "abandoned before the champion moved (RuntimeError: a bug)"
    assert alias_version(mlflow, MODEL, "champion") == 1


def test_a_claim_of_another_host_is_waited_for(mlflow: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.registry.journal.PATIENCE", 0.5)
    journal = mlflow.get_registered_model(MODEL).tags[JOURNAL_TAG]
    claim = {"token": "t", "machine": "another", "process": "1@1", "kind": "rollback", "wanted": 2}
    claim |= {"who": "them", "why": "slow", "at": "2026-01-01T00:00:00+00:00"}
    _write_once(mlflow, journal, "000001.claim", claim)
    go(mlflow, 3)
    theirs, ours = moves(mlflow, MODEL)
    assert not theirs.moved
    assert ours.moved


def test_a_slow_owner_on_this_machine_is_not_taken_for_dead() -> None:
    ours = {"machine": this_machine(), "process": this_process()}
    assert not _dead(ours, 10 * PATIENCE)
    assert _dead({**ours, "process": "999999999@1"}, 0)
    theirs = {**ours, "machine": "another"}
    assert not _dead(theirs, PATIENCE / 2)
    assert _dead(theirs, 2 * PATIENCE)


def test_an_owner_that_was_taken_for_dead_moves_nothing_any_more(mlflow: Any) -> None:
    go(mlflow, 1)
    journal = mlflow.get_registered_model(MODEL).tags[JOURNAL_TAG]

    def slow(found: int | None, previous: int | None) -> Decision:
        # Meanwhile another host closes this attempt and goes on to version 3.
        _close(mlflow, journal, 2, "abandoned before the champion moved (its process died)", moved=False)
        _write_once(mlflow, journal, "000003.claim", {**claim, "wanted": 3})
        _write_once(mlflow, journal, "000003.plan", {"found": 1, "to": 3})
        mlflow.set_registered_model_alias(MODEL, "champion", "3")
        _close(mlflow, journal, 3, "moved", moved=True)
        return Decision(2, "moved")

    claim = {"machine": "another", "process": "1@1", "kind": "promote", "who": "them", "why": "", "at": ""}
    with pytest.raises(WorldFailed, match="took it for dead"):
        move(mlflow, MODEL, "promote", 2, slow, "ada", "a test")
    assert alias_version(mlflow, MODEL, "champion") == 3
    assert [entry.moved for entry in moves(mlflow, MODEL)] == [True, False, True]


def test_two_hundred_attempts_from_eight_processes_leave_one_champion_and_every_record(
    mlflow: Any, embedded: Path, tmp_path: Path
) -> None:
    go(mlflow, 1, "start")
    # Two homes share no lock file: between them only the journal keeps order, as between two hosts.
    homes, uri = [embedded, tmp_path / "second-home"], f"sqlite:///{embedded}/mlflow/mlflow.db"
    Rush()(homes, uri, workers=8, attempts=25, doomed=("before", "between", "after"))


def entry(kind: str, found: int | None, to: int, moved: bool = True) -> Move:
    words = {"outcome": "", "who": "", "why": "", "at": ""}
    return Move.model_validate({"number": 1, "kind": kind, "found": found, "to": to, "moved": moved, **words})


@pytest.mark.parametrize(
    ("journal", "champion", "expected"),
    [
        ([], None, []),
        ([], 4, []),
        ([("promote", None, 1)], 1, []),
        ([("promote", None, 1), ("promote", 1, 2), ("promote", 2, 3)], 3, [2, 1]),
        ([("promote", None, 1), ("promote", 1, 2), ("rollback", 2, 1)], 1, []),
        ([("promote", None, 1), ("promote", 1, 2), ("rollback", 2, 1), ("promote", 1, 3)], 3, [1]),
        ([("promote", None, 1), ("promote", 1, 2), ("promote", 2, 3), ("rollback", 3, 1)], 1, []),
        ([("promote", None, 1), ("promote", 1, 2), ("rollback", 2, 5)], 5, [1]),
        ([("promote", None, 1), ("promote", 1, 2), ("promote", 2, 1)], 1, [2]),
        # Moved by hand, before an entry and after the last one; and deleted.
        ([("promote", None, 1), ("promote", 7, 2)], 2, [7, 1]),
        ([("promote", None, 1), ("promote", 1, 2)], 9, [2, 1]),
        ([("promote", None, 1), ("promote", 1, 2)], 1, []),
        ([("promote", None, 1), ("promote", 1, 2)], None, [2, 1]),
    ],
)
def test_a_rollback_goes_to_champions_that_nobody_rolled_back_from(
    journal: list[tuple[str, int | None, int]], champion: int | None, expected: list[int]
) -> None:
    assert earlier_champions([entry(*told) for told in journal], champion) == expected


def test_an_entry_is_never_cut_in_the_middle(mlflow: Any) -> None:
    go(mlflow, 1)
    long = 'a "reason"\n\x00 of 世界 ' * 2000
    move(mlflow, MODEL, "promote", 2, lambda found, previous: Decision(None, long), long, long)
    go(mlflow, 3)
    assert [told.moved for told in moves(mlflow, MODEL)] == [True, False, True]
    assert moves(mlflow, MODEL)[1].outcome.startswith('a "reason"')
