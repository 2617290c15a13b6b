"""`postgresql://` against a real server."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.errors import BadInput, WorldFailed
from tasks.fetch import fetch, source_inputs, verify
from tasks.recipe import Source
from tasks.sources import Snapshot, read_batches
from tasks.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def source(database: Any, **fields: Any) -> Source:
    given = {"uri": database.uri, "query": "SELECT * FROM log", "cursor": ("id",), **fields}
    return Source(name="own", kind="chat", share=1, **given)


def rows(store: Store, snapshot: Snapshot) -> list[dict[str, Any]]:
    frames = [batch.frame() for batch in read_batches(store.folder(snapshot), snapshot)]
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


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"query": "DELETE FROM log RETURNING *"}, BadInput, "begins with DELETE"),
        ({"query": "WITH d AS (DELETE FROM log RETURNING *) SELECT * FROM d"}, BadInput, "sources are only read"),
        ({"query": "SELECT 1 AS id; DROP TABLE log"}, BadInput, "several statements"),
        ({"query": "SELECT * FROM absent"}, BadInput, "is refused by the server"),
        ({"query": "SELECT prompt FROM log"}, BadInput, r"cursor: 'id' is not a column of the query.*prompt"),
        ({"cursor": ("completion_length",), "query": "SELECT 1.5 AS completion_length"}, BadInput, "type numeric"),
        ({"cursor": ("day",), "query": "SELECT date '2026-01-01' AS day FROM log"}, BadInput, "of two rows"),
        ({"query": "SELECT * FROM log WHERE false"}, BadInput, "yields no rows"),
        ({"query": "SELECT * FROM closed"}, WorldFailed, "may not read this"),
    ],
)
def test_what_cannot_be_read_is_one_clear_error(
    log: Any, store: Store, fields: dict[str, Any], error: type[Exception], message: str
) -> None:
    log("CREATE TABLE closed (id int)")
    log("REVOKE ALL ON closed FROM reader")
    with pytest.raises(error, match=f"(?s){message}"):
        fetch(source(log, **fields), store)
    assert log("SELECT count(*) FROM log") == [(250,)]
    assert store.all(Snapshot) == []


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda uri: uri.replace("reader@", "nobody@"), WorldFailed, "refuses the user or the password"),
        (lambda uri: uri.rpartition("/")[0] + "/absent", BadInput, "a database that is not there"),
        (lambda uri: "postgresql://reader@127.0.0.1:9/x", WorldFailed, "cannot be reached"),
        (lambda uri: uri.replace("reader@", "reader:hunter2@"), BadInput, "carries a secret"),
    ],
)
def test_a_server_that_refuses_is_one_clear_error_without_the_password(
    log: Any, store: Store, change: Any, error: type[Exception], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.hub.FIRST_WAIT", 0.01)
    with pytest.raises(error, match=message) as raised:
        fetch(source(log, uri=change(log.uri)), store)
    assert "hunter2" not in str(raised.value)
    assert "reader secret" not in str(raised.value)


def test_late_and_changed_rows_within_the_overlap_are_taken_and_deleted_ones_stay(log: Any, store: Store) -> None:
    by_time = {"cursor": ("at", "id"), "overlap": 600}
    fetch(source(log, **by_time), store)
    log("UPDATE log SET completion = 'better' WHERE id = 248")
    log("DELETE FROM log WHERE id = 249")
    log("INSERT INTO log SELECT 1000, at + interval '1 second', 'late', 'x' FROM log WHERE id = 247")
    log("DELETE FROM log WHERE id = 5")
    second = fetch(source(log, **by_time), store)
    held = {row["id"]: row for row in rows(store, second)}
    assert (second.rows, held[248]["completion"], held[1000]["prompt"]) == (251, "better", "late")
    assert {5, 249} <= held.keys()
    followed = {row["id"] for row in rows(store, fetch(source(log, **by_time, recheck=True), store))}
    assert not {5, 249} & followed


@pytest.mark.parametrize("cursor", [("at", "id"), ("id",)])
@pytest.mark.parametrize("overlap", [0, 5])
def test_rows_that_come_later_than_the_overlap_are_noticed_and_taken(
    log: Any, store: Store, cursor: tuple[str, ...], overlap: float, caplog: pytest.LogCaptureFixture
) -> None:
    log("ALTER TABLE log DROP CONSTRAINT log_pkey")
    log("UPDATE log SET id = id * 10, at = at - interval '1 year'")
    own = source(log, cursor=cursor, overlap=overlap)
    first = fetch(own, store)
    log("INSERT INTO log VALUES (3000, now(), 'on time', 'x')")
    second = fetch(own, store)
    assert (second.rows, caplog.text) == (251, "")
    log("INSERT INTO log SELECT id + 1, at + interval '1 second', 'too late', 'x' FROM log WHERE id IN (30, 1200)")
    third = fetch(own, store)
    assert "2 rows came later than `overlap` allows for" in caplog.text
    ids = [row["id"] for row in rows(store, third)]
    assert ids == sorted(ids)
    assert (len(ids), {31, 1201} <= set(ids)) == (253, True)
    caplog.clear()
    assert fetch(own, store) == third
    log("INSERT INTO log VALUES (4000, now(), 'on time', 'x')")
    assert (fetch(own, store).rows, caplog.text) == (254, "")
    assert first.rows == 250


def test_a_row_of_the_future_does_not_hide_those_that_come_after_it(log: Any, store: Store) -> None:
    by_time = {"cursor": ("at", "id"), "overlap": 0}
    log("INSERT INTO log VALUES (900, '2099-01-01', 'skewed', 'x')")
    fetch(source(log, **by_time), store)
    log("INSERT INTO log VALUES (901, now(), 'after it', 'x')")
    assert "after it" in [row["prompt"] for row in rows(store, fetch(source(log, **by_time), store))]


def test_rows_without_consent_and_too_old_ones_are_counted_and_never_stored(log: Any, store: Store) -> None:
    log("ALTER TABLE log ADD consent boolean")
    log("UPDATE log SET consent = (id % 2 = 0), at = now() - CASE WHEN id <= 100 THEN 40 ELSE 1 END * interval '1 day'")
    log("UPDATE log SET at = NULL WHERE id = 250")
    own = source(log, consent="consent", time="at", max_age=30)
    first = fetch(own, store)
    assert (first.rows_in, first.rows) == (250, 74)
    assert first.set_aside == {"no_consent": 125, "expired": 50, "no_time": 1}
    log("UPDATE log SET consent = false WHERE id = 102")
    assert 102 not in [row["id"] for row in rows(store, fetch(own, store))]
    assert fetch(own, store) == fetch(own, store)
