from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from expectations import Outcome, Table, check, mixture

SPLITS, SOURCES = ("train", "validation", "test"), ("talk", "sums")


def written(**columns: list[object]) -> pd.DataFrame:
    """Ten rows as they should be, but for these columns."""
    types = dict.fromkeys(("split", "source", "kind"), "str")
    types |= dict.fromkeys(("tokens", "supervised", "repeat"), "int64") | {"again": "bool", "leak": "bool"}
    plain = {
        "split": ["train"] * 6 + ["validation"] * 2 + ["test"] * 2,
        "source": ["talk", "sums"] * 5,
        "kind": ["chat", "reasoning"] * 5,
        "tokens": [100] * 10,
        "supervised": [40] * 10,
        "repeat": [1] * 10,
        "again": [False] * 10,
        "leak": [False] * 10,
    }
    return pd.DataFrame({name: pd.Series(values, dtype=types[name]) for name, values in {**plain, **columns}.items()})


def checked(tmp_path: Path, frame: pd.DataFrame, rows: int = 10, max_length: int | None = 100) -> list[Outcome]:
    suite = mixture.suite("m", splits=SPLITS, sources=SOURCES, rows=rows, repeats=2, max_length=max_length)
    return check([Table(frame, suite)], history=tmp_path / "history", night="night", pages=tmp_path / "pages")


def failed(outcomes: list[Outcome]) -> set[tuple[str | None, str, int]]:
    return {(outcome.column, outcome.severity, outcome.rows) for outcome in outcomes if not outcome.success}


def test_a_mixture_as_it_should_be(tmp_path: Path) -> None:
    outcomes = checked(tmp_path, written())
    assert failed(outcomes) == set()
    assert all(outcome.description.endswith(f"({outcome.severity}).") for outcome in outcomes)
    page = (tmp_path / "pages" / "m.html").read_text(encoding="utf-8")
    assert "No training row has an exact or near twin" in page


def test_each_fault_fails_where_it_lies(tmp_path: Path) -> None:
    faults: list[tuple[dict[str, list[object]], tuple[str | None, str, int]]] = [
        ({"leak": [True, True] + [False] * 8}, ("leak", "critical", 2)),
        ({"again": [True] + [False] * 9}, ("again", "critical", 1)),
        ({"repeat": [3] + [1] * 9}, ("repeat", "critical", 0)),
        ({"tokens": [101] * 2 + [9] * 8}, ("tokens", "critical", 0)),
        ({"supervised": [0] * 4 + [9] * 6}, ("supervised", "warning", 0)),
        ({"split": ["train"] * 8 + ["validation"] * 2}, ("split", "critical", 0)),
        ({"split": ["train"] * 8 + ["test"] * 2}, ("split", "warning", 0)),
        ({"source": ["talk"] * 10}, ("source", "critical", 0)),
    ]
    for columns, expected in faults:
        assert failed(checked(tmp_path, written(**columns))) == {expected}, columns
    assert failed(checked(tmp_path, written(), rows=11)) == {(None, "critical", 0)}
    assert failed(checked(tmp_path, written(tokens=[9_999] * 10), max_length=None)) == set()


def test_no_rows_do_not_pass(tmp_path: Path) -> None:
    assert {column for column, severity, _ in failed(checked(tmp_path, written()[:0])) if severity == "critical"} == {
        None, "split", "source", "repeat", "tokens",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("reached", "columns"),
    [((0.251, 0.749), set()), ((0.26, 0.74), set()), ((0.27, 0.73), {"off"}), ((0.25, 0.74), {"reached"})],
)
def test_shares(tmp_path: Path, reached: tuple[float, float], columns: set[str]) -> None:
    frame = pd.DataFrame({"source": pd.Series(SOURCES, dtype="str"), "asked": [0.25, 0.75], "reached": reached})
    frame["off"] = (frame["reached"] - frame["asked"]).abs().round(9)
    suite = mixture.shares("s", tolerance=0.01, measure="supervised_tokens")
    outcomes = check([Table(frame, suite)], history=tmp_path / "h", night="n", pages=tmp_path / "p")
    assert {column for column, _, _ in failed(outcomes)} == columns
