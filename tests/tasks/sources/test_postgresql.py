"""`postgresql://` against a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.fetch import fetch, source_inputs, verify
from tasks.recipe import Source
from tasks.sources import Snapshot, read_rows
from tasks.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def source(database: Any, **fields: Any) -> Source:
    given = {"uri": database.uri, "query": "SELECT * FROM log", "cursor": ("id",), **fields}
    return Source(name="own", kind="chat", share=1, **given)


def rows(store: Store, snapshot: Snapshot) -> list[dict[str, Any]]:
    frames = list(read_rows(store.folder(snapshot), snapshot))
    return pl.concat(frames).to_dicts() if frames else []


@pytest.fixture
def log(database: Any) -> Any:
    database("CREATE TABLE log (id bigint PRIMARY KEY, at timestamptz, prompt text, completion text)")
    database(
        "INSERT INTO log SELECT n, timestamptz '2026-01-01' + n * interval '1 minute', 'q' || n, 'a' || n"
        " FROM generate_series(1, 250) n"
    )
    return database


def test_a_query_is_read_once_and_then_only_what_came_after_the_watermark(log: Any, store: Store) -> None:
    own = source(log, overlap=0)
    first = fetch(own, store)
    assert (first.rows, first.watermark, first.rows_in, first.set_aside) == (250, "[250]", 250, {})
    assert [row["prompt"] for row in rows(store, first)] == [f"q{n}" for n in range(1, 251)]
    assert fetch(own, store) == first
    assert source_inputs(own, store) == first.inputs
    log("DELETE FROM log")
    log("INSERT INTO log VALUES (251, now(), 'new', 'one'), (252, now(), 'new', 'two')")
    second = fetch(own, store)
    assert (second.rows, second.watermark) == (252, "[252]")
    assert [row["id"] for row in rows(store, second)] == list(range(1, 253))
    # Last night's rows are the same file, not a copy of it.
    old, *_ = sorted((store.folder(first) / "data").iterdir())
    again, *_ = sorted((store.folder(second) / "data").iterdir())
    assert old.stat().st_ino == again.stat().st_ino
    assert verify(store, first) == verify(store, second) == []
