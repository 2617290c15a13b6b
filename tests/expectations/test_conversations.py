from __future__ import annotations

from pathlib import Path

import pandas as pd

from expectations import RowRule, Table, check, conversations

RULE = RowRule(name="empty", severity="critical", mostly=0.5, explanation="Answers say something.", bad="''")


def failed(tmp_path: Path, **columns: list[object]) -> set[tuple[str | None, int]]:
    """What fails on four conversations as they should be, but for these columns."""
    plain = {"row_id": [f"{n:032x}" for n in range(4)], "turns": [2] * 4, "kept": [1] * 4, "empty": [False] * 4}
    suite = conversations.suite("c", min_rows=3, rules=[RULE])
    outcomes = check(
        [Table(pd.DataFrame({**plain, **columns}), suite)],
        history=tmp_path / "history",
        night="night",
        pages=tmp_path / "pages",
    )
    assert {outcome.severity for outcome in outcomes} == {"critical"}
    return {(outcome.column, outcome.rows) for outcome in outcomes if not outcome.success}


def test_conversations_as_they_should_be_and_each_fault(tmp_path: Path) -> None:
    assert failed(tmp_path) == set()
    assert failed(tmp_path, kept=[1, 1, 0, 0]) == {("kept", 0)}
    assert failed(tmp_path, turns=[2, None, 2, 2]) == {("turns", 1)}
    assert failed(tmp_path, row_id=["x", *(f"{n:032x}" for n in range(3))]) == {("row_id", 1)}
    assert failed(tmp_path, row_id=[None, *(f"{n:032x}" for n in range(3))]) == {("row_id", 1)}
    assert failed(tmp_path, empty=[True, True, True, False]) == {("empty", 3)}
    assert failed(tmp_path, kind=["chat"] * 4) == {(None, 0)}
