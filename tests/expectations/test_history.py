from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from expectations import Bound, CheckFailed, Outcome, RowRule, Table, changes, check, conversations, history, raw

ROOT = Path(__file__).resolve().parents[2]


def rule(name: str, severity: Any = "warning", mostly: float = 0.9, rows: int = 0) -> RowRule:
    return RowRule(name=name, severity=severity, mostly=mostly, explanation=f"About {name}.", bad="That.", rows=rows)


def table(n: int = 20, broken: int = 0, mostly: float = 0.9, kept: int | None = None, name: str = "t") -> Table:
    flags = [i < broken for i in range(n)]
    frame = pd.DataFrame(
        {
            "row_id": pd.Series([f"{i:032x}" for i in range(n)], dtype="str"),
            "turns": pd.Series([2] * n, dtype="int64"),
            "kept": pd.Series([int(i < (n if kept is None else kept)) for i in range(n)], dtype="int8"),
            "odd": pd.Series(flags, dtype="bool"),
            "other": pd.Series([False] * n, dtype="bool"),
        }
    )
    rules = [rule("odd", "critical", mostly, broken), rule("other", "info", 0.0)]
    return Table(frame, conversations.suite(name, min_rows=1, rules=rules))


def run(tmp_path: Path, *tables: Table, night: str = "night") -> list[Outcome]:
    return check(tables, history=tmp_path / "history", night=night, pages=tmp_path / "pages")


def failed(outcomes: list[Outcome]) -> dict[str, int]:
    return {f"{outcome.expectation}:{outcome.column}": outcome.rows for outcome in outcomes if not outcome.success}


def test_a_rule_fails_when_too_few_rows_keep_it(tmp_path: Path) -> None:
    assert failed(run(tmp_path, table(broken=2))) == {}
    outcomes = run(tmp_path, table(broken=3))
    assert failed(outcomes) == {"expect_column_values_to_be_in_set:odd": 3}
    (odd,) = [outcome for outcome in outcomes if outcome.column == "odd"]
    assert (odd.severity, odd.table) == ("critical", "t")
    assert "3 rows break it" in odd.description


def test_an_empty_table_does_not_pass(tmp_path: Path) -> None:
    assert "expect_column_sum_to_be_between:kept" in failed(run(tmp_path, table(n=0)))
    empty = pd.DataFrame({"source_row": pd.Series(dtype="int64"), "unconvertible": pd.Series(dtype="bool")})
    empty["set_aside"] = pd.Series(dtype="bool")
    suite = raw.suite("r", rules=[rule("unconvertible"), rule("set_aside")])
    assert "expect_table_row_count_to_be_between:None" in failed(run(tmp_path, Table(empty, suite)))


def test_a_table_of_which_nothing_is_kept_does_not_pass(tmp_path: Path) -> None:
    assert "expect_column_sum_to_be_between:kept" in failed(run(tmp_path, table(kept=0)))


def test_wrong_ids_and_columns_are_found(tmp_path: Path) -> None:
    wrong = table()
    wrong.frame.loc[0, "row_id"] = "0123"
    wrong.frame["extra"] = 1
    assert failed(run(tmp_path, wrong)) == {
        "expect_column_values_to_match_regex:row_id": 1,
        "expect_table_columns_to_match_set:None": 0,
    }


def test_a_missing_column_is_no_answer(tmp_path: Path) -> None:
    lacking = table()
    del lacking.frame["odd"]
    with pytest.raises(CheckFailed, match="odd"):
        run(tmp_path, lacking)


def test_measures_are_held_to_their_bounds(tmp_path: Path) -> None:
    def bound(column: str, low: float | None, high: float | None) -> Bound:
        return Bound(column, low, high, "warning", f"{column} <b>&")

    bounds = [bound("least", 0.5, None), bound("most", None, 0.25), bound("over", None, 0.25), bound("any", None, None)]
    frame = pd.DataFrame({"least": [0.5], "most": [0.25], "over": [0.26], "any": [9.0]})
    assert failed(run(tmp_path, Table(frame, changes.suite("c", bounds)))) == {
        "expect_column_values_to_be_between:over": 1
    }
    assert "over &lt;b&gt;&amp;" in (tmp_path / "pages" / "c.html").read_text()
    doubled = pd.concat([frame, frame])
    assert "expect_table_row_count_to_equal:None" in failed(run(tmp_path, Table(doubled, changes.suite("c", bounds))))


def test_nights_are_kept_side_by_side_and_the_oldest_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "KEPT", 2)
    for night in ("first", "second", "third"):
        run(tmp_path, table(name="kept-table"), night=night)
    pages = tmp_path / "history" / history.PAGES
    nights = sorted(path.name for path in (pages / "validations" / "kept-table").iterdir() if any(path.glob("*/*")))
    assert nights == ["second", "third"]
    index = (pages / "index.html").read_text()
    assert index.index("<td>third</td>") < index.index("<td>second</td>")
    assert "<td>first</td>" not in index
    assert (tmp_path / "pages" / "kept-table.html").exists()


@pytest.mark.parametrize("what", ["configuration", "suite", "result"])
def test_a_history_that_a_killed_night_left_half_written_does_not_stop_the_next(tmp_path: Path, what: str) -> None:
    run(tmp_path, table())
    gx = tmp_path / "history" / "gx"
    hurt = {
        "configuration": gx / "great_expectations.yml",
        "suite": gx / "expectations" / "t.json",
        "result": next((gx / "uncommitted" / "validations" / "t").rglob("*.json")),
    }[what]
    hurt.write_text(hurt.read_text()[: hurt.stat().st_size // 2])
    assert failed(run(tmp_path, table(broken=3))) == {"expect_column_values_to_be_in_set:odd": 3}
    assert failed(run(tmp_path, table())) == {}


def test_two_nights_at_once_both_find_their_pages(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; sys.path.insert(0, {tests!r}); import test_history as t\n"
        "name = sys.argv[1]\n"
        "for _ in range(2):\n"
        "    pages = Path({pages!r}) / name\n"
        "    found = t.check([t.table(name=name)], history=Path({history!r}), night=name, pages=pages)\n"
        "    assert not t.failed(found)\n"
    ).format(tests=str(Path(__file__).parent), history=str(tmp_path / "history"), pages=str(tmp_path / "pages"))
    both = [
        subprocess.Popen([sys.executable, "-c", code, name], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for name in ("one", "two")
    ]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    for name in ("one", "two"):
        assert f"{name}" in (tmp_path / "pages" / name / f"{name}.html").read_text()
        results = list((tmp_path / "history" / history.RESULTS / name).rglob("*.json"))
        assert len(results) == 2
        assert all(json.loads(path.read_text())["success"] for path in results)
    assert not list((tmp_path / "history").glob("unreadable-*"))
