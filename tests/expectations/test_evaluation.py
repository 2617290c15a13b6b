from __future__ import annotations

from pathlib import Path

import pandas as pd

from expectations import Outcome, Table, check, evaluation


def items(**columns: list[object]) -> pd.DataFrame:
    """Four items as they should be, but for these columns."""
    plain = {"row_id": list("abcd"), **{name: [False] * 4 for name in evaluation.COLUMNS[1:]}}
    types = {"row_id": "str"}
    return pd.DataFrame(
        {name: pd.Series(values, dtype=types.get(name, "bool")) for name, values in {**plain, **columns}.items()}
    )


def failed(tmp_path: Path, frame: pd.DataFrame, most: int = 4) -> set[tuple[str | None, str, int]]:
    suite = evaluation.suite("e", most=most, needs="a right answer")
    outcomes: list[Outcome] = check(
        [Table(frame, suite)], history=tmp_path / "history", night="night", pages=tmp_path / "pages"
    )
    return {(outcome.column, outcome.severity, outcome.rows) for outcome in outcomes if not outcome.success}


def test_items_as_they_should_be_and_each_fault(tmp_path: Path) -> None:
    assert failed(tmp_path, items()) == set()
    assert failed(tmp_path, items(), most=3) == {(None, "critical", 0)}
    assert failed(tmp_path, items()[:0]) == {(None, "critical", 0)}
    assert failed(tmp_path, items(row_id=["a", "a", "b", "c"])) == {("row_id", "critical", 2)}
    assert failed(tmp_path, items(row_id=["a", None, "b", "c"])) == {("row_id", "critical", 1)}
    one = [False, True, False, False]
    for column, severity in (("no_prompt", "critical"), ("no_answer", "critical"), ("asked_before", "warning")):
        assert failed(tmp_path, items(**{column: one})) == {(column, severity, 1)}  # type: ignore[arg-type]
    more = items().assign(another=1)
    assert failed(tmp_path, more) == {(None, "critical", 0)}
