"""`postgresql://` while processes are killed, connections lost, disks full and tables changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.errors import BadInput, WorldFailed
from tasks.fetch import fetch, verify
from tasks.recipe import Source
from tasks.sources import Snapshot, Unreachable, read_batches
from tasks.store import Store

ROWS = 4000
# Pages and segments as small as the table, so that there is something between its first row and its last.
SMALL = (
    "import tasks.sources.stream as s, tasks.sources.postgresql as p, tasks.sources.hub as h; "
    "s.SEGMENT_ROWS = 500; p._PAGE_ROWS = (100, 500); h.FIRST_WAIT = 0.01"
)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def log(database: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A table of rows that grow by id and time."""
    for name, value in (("stream.SEGMENT_ROWS", 500), ("postgresql._PAGE_ROWS", (100, 500)), ("hub.FIRST_WAIT", 0.01)):
        monkeypatch.setattr(f"tasks.sources.{name}", value)
    database("CREATE TABLE log (id bigint PRIMARY KEY, at timestamptz, prompt text)")
    database(
        "INSERT INTO log SELECT n, timestamptz '2026-01-01' + n * interval '1 minute', repeat('q', 200) || n"
        f" FROM generate_series(1, {ROWS}) n"
    )
    return database


def source(database: Any, port: int | None = None, **fields: Any) -> Source:
    uri = database.uri.replace(f":{database.server.port}/", f":{port}/") if port else database.uri
    given = {"uri": uri, "query": "SELECT * FROM log", "cursor": ("id",), "overlap": 0, **fields}
    return Source(name="own", kind="chat", share=1, **given)


def rows(store: Store, snapshot: Snapshot) -> pl.DataFrame:
    return pl.concat(batch.frame() for batch in read_batches(store.folder(snapshot), snapshot))


def test_a_killed_process_is_gone_on_with(
    log: Any, store: Store, proxy: Any, in_a_process: Any, wait_until: Any
) -> None:
    between = proxy(log.server.port)
    between.fail("stall", 600_000)
    own = source(log, between.port)
    child = in_a_process(own, store.root, SMALL)
    assert between.stalled.wait(60)
    wait_until(lambda: list(store.root.glob("work/stream-*/*.jsonl")), "a page on the disk")
    child.kill()
    child.wait()
    assert store.all(Snapshot) == []
    before = between.sent
    snapshot = fetch(own, store)
    assert rows(store, snapshot)["id"].to_list() == list(range(1, ROWS + 1))
    assert (snapshot.rows_in, between.sent - before < before) == (ROWS, True)
    assert snapshot == fetch(own, store)
    assert snapshot.revision == fetch(source(log), Store(store.root / "other")).revision
    assert not list(store.root.glob("work/stream-*/*"))


def test_two_processes_that_read_the_same_stream_make_one_snapshot(log: Any, store: Store, in_a_process: Any) -> None:
    children = [in_a_process(source(log), store.root) for _ in range(2)]
    said = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert {out.strip() for out, _ in said} == {snapshot.address for snapshot in store.all(Snapshot)}
    assert len(store.all(Snapshot)) == 1


def test_a_disk_that_is_full_is_one_clear_error_and_room_is_all_it_takes(
    log: Any, store: Store, in_a_process: Any
) -> None:
    full = SMALL + "; import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000))"
    child = in_a_process(source(log), store.root, full)
    _, said = child.communicate(timeout=120)
    assert child.returncode == 1
    assert "Free disk space there" in said
    assert "what was read is kept" in said
    assert "Traceback" not in said
    assert fetch(source(log), store).rows == ROWS


@pytest.mark.parametrize("after", [5_000, 300_000])
def test_a_connection_that_breaks_is_made_again_and_nothing_is_lost_or_doubled(
    log: Any, store: Store, proxy: Any, after: int
) -> None:
    between = proxy(log.server.port)
    between.fail("drop", after, times=3)
    assert rows(store, fetch(source(log, between.port), store))["id"].to_list() == list(range(1, ROWS + 1))


def test_a_connection_that_breaks_every_time_is_one_clear_error(log: Any, store: Store, proxy: Any) -> None:
    between = proxy(log.server.port)
    between.fail("drop", 5_000, times=1000)
    with pytest.raises(WorldFailed, match=r"the server broke off \(.*Run again; what was read is kept") as raised:
        fetch(source(log, between.port), store)
    assert not isinstance(raised.value, Unreachable)
    assert store.all(Snapshot) == []


def test_a_backend_that_is_shut_down_is_asked_again(log: Any, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.sources.postgresql import Query

    page = Query._page
    shut = []

    def broken(self: Any, *arguments: Any) -> Any:
        if len(shut) < 2:
            shut.append(self.connection.info.backend_pid)
            log("SELECT pg_terminate_backend(%s)", (shut[-1],))
        return page(self, *arguments)

    monkeypatch.setattr(Query, "_page", broken)
    assert fetch(source(log), store).rows == ROWS
    assert len(set(shut)) == 2


def test_a_table_that_is_locked_is_not_waited_for_without_end(
    log: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.postgresql.LOCK_WAIT", "50ms")
    monkeypatch.setattr("tasks.sources.hub.ATTEMPTS", 2)
    with log.server.connect(log.uri.rpartition("/")[2]) as other, other.transaction():
        other.execute("LOCK TABLE log")
        with pytest.raises(WorldFailed, match="lock timeout"):
            fetch(source(log), store)
    assert fetch(source(log), store).rows == ROWS


def test_offline_the_last_snapshot_serves_and_the_log_says_which(
    log: Any, store: Store, proxy: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    between = proxy(log.server.port)
    own = source(log, between.port)
    snapshot = fetch(own, store)
    between.close()
    assert fetch(own, store) == snapshot
    assert f"Going on with {snapshot.revision}, fetched" in caplog.text
    file = store.folder(snapshot) / next(name for name in snapshot.files if name.endswith(".jsonl"))
    file.write_bytes(b"x" + file.read_bytes()[1:])
    with pytest.raises(WorldFailed, match="is damaged"):
        fetch(own, store)


def test_a_flipped_byte_is_found_and_what_its_file_held_is_read_again(log: Any, store: Store) -> None:
    snapshot = fetch(source(log), store)
    name = sorted(name for name in snapshot.files if name.startswith("data/"))[2]
    (store.folder(snapshot) / name).write_bytes(b"{}\n")
    assert verify(store, snapshot) == [name]
    again = fetch(source(log), store)
    assert (again.files, verify(store, again)) == (snapshot.files, [])


def test_a_stream_that_is_empty_first_and_later_and_emptied(log: Any, store: Store) -> None:
    log("TRUNCATE log")
    for _ in range(2):
        with pytest.raises(BadInput, match="yields no rows"):
            fetch(source(log), store)
    log("INSERT INTO log VALUES (1, now(), 'one')")
    first = fetch(source(log), store)
    assert first.rows == 1
    assert fetch(source(log), store) == first  # nothing came
    log("TRUNCATE log")
    assert fetch(source(log), store) == first  # only recheck follows what is deleted
    with pytest.raises(BadInput, match="yields no rows"):
        fetch(source(log, recheck=True), store)


def test_a_column_that_came_or_went_is_null_where_it_was_not(log: Any, store: Store) -> None:
    fetch(source(log), store)
    log("ALTER TABLE log ADD answer text")
    log(f"INSERT INTO log VALUES ({ROWS + 1}, now(), 'new', 'yes')")
    grown = rows(store, fetch(source(log), store))
    assert (grown["answer"].null_count(), grown["answer"][-1]) == (ROWS, "yes")
    log("ALTER TABLE log DROP prompt")
    log(f"INSERT INTO log VALUES ({ROWS + 2}, now(), 'newer')")
    shrunk = rows(store, fetch(source(log), store))
    assert (shrunk["prompt"][0] is None, shrunk["prompt"][-1], shrunk["answer"][-1]) == (False, None, "newer")
    log("ALTER TABLE log DROP id")
    with pytest.raises(BadInput, match=r"sources\.own\.cursor: 'id' is not a column of the query.*at, answer"):
        fetch(source(log), store)


@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/St_Johns"])
@pytest.mark.parametrize("kind", ["timestamptz", "timestamp"])
def test_the_time_zone_of_a_database_loses_and_doubles_nothing(log: Any, store: Store, zone: str, kind: str) -> None:
    name = log.uri.rpartition("/")[2]
    log(f"ALTER DATABASE {name} SET timezone = '{zone}'")
    log(f"CREATE TABLE events (id bigint, at {kind}, prompt text)")
    own = source(log, query="SELECT * FROM events", cursor=("at", "id"), overlap=60)
    for night in range(3):
        log(f"INSERT INTO events SELECT {night} * 10 + n, now(), 'q' FROM generate_series(0, 9) n")
        assert sorted(rows(store, fetch(own, store))["id"]) == list(range((night + 1) * 10))
    # A day on which the clock is put back has an hour twice: rows of it are told apart by their id.
    log("INSERT INTO events SELECT 100 + n, timestamp '2026-10-25 02:30', 'q' FROM generate_series(0, 9) n")
    assert fetch(own, store).rows == 40
