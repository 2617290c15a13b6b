from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tasks.errors import BadInput
from tasks.evaluation import items_digest, suite_items
from tasks.recipe import Suite

TOOL = Suite(name="tool_call", kind="tool", role="target", items=20)


def test_items_stay_as_data_grows_and_do_not_depend_on_order(
    rows: Callable[[int], pl.DataFrame], tmp_path: Path
) -> None:
    small, large = tmp_path / "small.parquet", tmp_path / "large.parquet"
    rows(30).write_parquet(small)
    rows(60).sample(fraction=1, shuffle=True, seed=1).write_parquet(large)
    before, after = suite_items(small, TOOL).rows, suite_items(large, TOOL).rows
    assert before.height == after.height == 20
    newcomers = set(after["row_id"]) - set(rows(30)["row_id"])
    # A row gives way to a newcomer only, and about half the rows are new.
    assert len(set(before["row_id"]) & set(after["row_id"])) == 20 - len(newcomers)
    assert 3 < len(newcomers) < 17
    rows(60).write_parquet(large)
    assert items_digest(suite_items(large, TOOL).rows) == items_digest(after)


def test_a_kind_without_conversations_is_an_error(rows: Callable[[int], pl.DataFrame], tmp_path: Path) -> None:
    file = tmp_path / "test.parquet"
    rows(3).filter(pl.col("kind") != "tool").write_parquet(file)
    with pytest.raises(BadInput, match=r"evaluation\.suites\.tool_call\.kind"):
        suite_items(file, TOOL)


def test_each_turn_draws_anew_where_there_is_more_than_enough(
    rows: Callable[[int], pl.DataFrame], tmp_path: Path
) -> None:
    file = tmp_path / "test.parquet"
    rows(400).write_parquet(file)
    drawn = [set(suite_items(file, TOOL, f"state {n}").rows["row_id"]) for n in range(20)]
    assert all(len(ids) == 20 for ids in drawn)
    assert suite_items(file, TOOL, "state 3").rows.equals(suite_items(file, TOOL, "state 3").rows)
    met_again = [len(drawn[0] & ids) for ids in drawn[1:]]
    assert sum(met_again) / len(met_again) < 4  # one in twenty, and as many as there are where two turns lie together
    few = [suite_items(file, TOOL.model_copy(update={"items": 400}), f"state {n}").rows for n in range(2)]
    assert few[0].equals(few[1])
