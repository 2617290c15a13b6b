"""Consent and greatest age on sources of files: what may not be used is counted, and lies nowhere in the store."""

from __future__ import annotations

import gzip
import json
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import zstandard

from tasks.errors import BadInput, WorldFailed
from tasks.fetch import fetch, source_inputs
from tasks.recipe import Source
from tasks.sources import Snapshot, read_batches
from tasks.store import Store

NOW = datetime(2026, 11, 24, 2, 30, tzinfo=UTC)
ROWS: list[dict[str, Any]] = [
    {"prompt": "yes", "ok": True, "at": "2026-11-20T10:00:00Z"},
    {"prompt": "no", "ok": False, "at": "2026-11-20T10:00:00Z"},
    {"prompt": "null", "ok": None, "at": "2026-11-20T10:00:00Z"},
    {"prompt": "absent", "at": "2026-11-20T10:00:00Z"},
    {"prompt": "old", "ok": True, "at": "2026-10-25T23:59:59+00:00"},
    {"prompt": "just not old", "ok": True, "at": "2026-10-26T00:00:00+00:00"},
    {"prompt": "timeless", "ok": True, "at": "last week"},
]
USABLE = ["yes", "just not old"]
ASIDE = {"no_consent": 3, "expired": 1, "no_time": 1}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Any:
    def set_to(moment: datetime) -> None:
        monkeypatch.setattr("tasks.sources.permission.now", lambda: moment)

    set_to(NOW)
    return set_to


def source(uri: str, **fields: Any) -> Source:
    given = {"consent": "ok", "time": "at", "max_age": 30, **fields}
    return Source(name="own", uri=uri, kind="chat", share=1, **given)


def prompts(store: Store, snapshot: Snapshot) -> list[str]:
    return list(pl.concat(batch.frame() for batch in read_batches(store.folder(snapshot), snapshot))["prompt"])


def written(folder: Path, form: str) -> Path:
    """The rows as a data file of a form, in a folder that states a column."""
    path = folder / "part=1" / f"rows.{form}"
    path.parent.mkdir(parents=True)
    lines = b"".join(json.dumps(row).encode() + b"\n" for row in ROWS)
    if form == "parquet":
        pl.DataFrame(ROWS).write_parquet(path)
    elif form == "csv":
        pl.DataFrame(ROWS).write_csv(path)
    else:
        packed = {"jsonl": bytes, "jsonl.gz": gzip.compress, "jsonl.zst": zstandard.ZstdCompressor().compress}
        path.write_bytes(packed[form](lines) if form in packed else json.dumps(ROWS, indent=1).encode())
    return path


@pytest.mark.parametrize("form", ["jsonl", "jsonl.gz", "jsonl.zst", "json", "csv", "parquet"])
def test_of_every_form_only_rows_that_may_be_used_are_kept_and_all_are_counted(
    store: Store, tmp_path: Path, clock: Any, form: str
) -> None:
    written(tmp_path / "data", form)
    own = source(f"file://{tmp_path / 'data'}")
    snapshot = fetch(own, store)
    assert (snapshot.rows_in, snapshot.rows, snapshot.set_aside) == (len(ROWS), len(USABLE), ASIDE)
    assert prompts(store, snapshot) == USABLE
    assert set(next(read_batches(store.folder(snapshot), snapshot)).frame()["part"]) == {"1"}
    assert not [path for path in store.root.rglob("*") if path.is_file() and b"timeless" in path.read_bytes()]
    assert snapshot.inputs == source_inputs(own, store)


def test_a_night_does_not_change_within_a_day_and_afterwards_only_when_a_row_reaches_its_age(
    store: Store, tmp_path: Path, clock: Any
) -> None:
    file = written(tmp_path / "data", "jsonl")
    own = source(f"file://{tmp_path / 'data'}")
    first = fetch(own, store)
    clock(NOW + timedelta(hours=21))
    assert fetch(own, store) == first
    clock(NOW + timedelta(days=1))  # the last of October's rows is now of 30 days
    second = fetch(own, store)
    assert (prompts(store, second), second.set_aside) == (["yes"], {"expired": 1})
    assert second.revision == first.revision
    clock(NOW + timedelta(days=2))
    assert fetch(own, store) == second
    clock(NOW + timedelta(days=60))
    with pytest.raises(BadInput, match=r"yields no rows \(set aside: \d expired\)"):
        fetch(own, store)
    clock(NOW)
    file.write_bytes(file.read_bytes().replace(b'"ok": false', b'"ok": true'))
    assert prompts(store, fetch(own, store)) == ["yes", "no", "just not old"]


def test_another_permission_is_another_snapshot(store: Store, tmp_path: Path, clock: Any) -> None:
    written(tmp_path / "data", "jsonl")
    uri = f"file://{tmp_path / 'data'}"
    everything = fetch(source(uri, consent=None, time=None, max_age=None), store)
    assert (everything.rows, everything.rows_in) == (7, None)
    assert fetch(source(uri, time=None, max_age=None), store).rows == 4
    assert fetch(source(uri, consent=None), store).set_aside == {"expired": 1, "no_time": 1}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"consent": "okay"}, r"sources\.own\.consent: 'okay' is not a column of the source.*'ok'.*prompt, ok, at"),
        ({"time": "meta.at"}, r"sources\.own\.time: 'meta\.at' is not a column of the source"),
        ({"consent": "at"}, r"yields no rows \(set aside: 7 no_consent\)"),
    ],
)
def test_a_column_that_no_row_has_is_one_clear_error(
    store: Store, tmp_path: Path, clock: Any, fields: dict[str, Any], message: str
) -> None:
    written(tmp_path / "data", "jsonl")
    with pytest.raises(BadInput, match=message):
        fetch(source(f"file://{tmp_path / 'data' / 'part=1'}", **fields), store)
    assert store.all(Snapshot) == []


def test_consent_within_an_object_and_times_as_numbers(store: Store, tmp_path: Path, clock: Any) -> None:
    rows = [
        {"prompt": "seconds", "meta": {"ok": "TRUE", "at": NOW.timestamp()}},
        {"prompt": "text", "meta": json.dumps({"ok": True, "at": str(int(NOW.timestamp() * 1000))})},
        {"prompt": "one", "meta": {"ok": 1, "at": NOW.timestamp()}},
        {"prompt": "none", "meta": None},
    ]
    (tmp_path / "a.json").write_text(json.dumps(rows))
    snapshot = fetch(source(f"file://{tmp_path / 'a.json'}", consent="meta.ok", time="meta.at"), store)
    assert (prompts(store, snapshot), snapshot.set_aside) == (["seconds", "text"], {"no_consent": 2})


def test_two_files_that_would_be_kept_under_one_name_are_refused(store: Store, tmp_path: Path, clock: Any) -> None:
    for name, rows in (("a.csv", "prompt,ok,at\nx,true,2026-11-20\n"), ("a.csv.jsonl", json.dumps(ROWS[0]))):
        (tmp_path / name).write_text(rows)
    with pytest.raises(BadInput, match=r"two files whose rows would be kept in a\.csv\.jsonl"):
        fetch(source(f"file://{tmp_path}/a*"), store)


@pytest.mark.parametrize("uri", ["gym://chain_sum", "sample://tools"])
def test_what_is_generated_has_nobody_to_consent(uri: str) -> None:
    with pytest.raises(ValueError, match=r"consent is for file and hf .* sources, and this is"):
        source(uri, time=None, max_age=None)


def test_the_room_for_the_rows_that_are_kept_is_asked_for_beforehand(
    store: Store, tmp_path: Path, clock: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = written(tmp_path / "data", "jsonl").stat().st_size
    uri = f"file://{tmp_path / 'data'}"
    usage = namedtuple("usage", "total used free")

    def leave(times: int) -> None:
        free = 2**24 + times * size
        monkeypatch.setattr("tasks.sources.files.shutil.disk_usage", lambda _: usage(10**9, 10**9, free))

    leave(1)
    with pytest.raises(WorldFailed, match="are free in"):
        fetch(source(uri), store)
    assert not [path for path in store.root.rglob("*.jsonl") if path.stat().st_size]
    assert fetch(source(uri, consent=None, time=None, max_age=None), store).rows == len(ROWS)
    leave(2)
    assert fetch(source(uri), store).rows == len(USABLE)
