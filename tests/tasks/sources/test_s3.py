"""`s3://` against moto's server, a process of its own that speaks S3."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.errors import BadInput, WorldFailed
from tasks.fetch import fetch, source_inputs, verify
from tasks.recipe import Source
from tasks.sources import Snapshot, read_batches
from tasks.sources.s3 import Bucket
from tasks.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def source(uri: str, **fields: Any) -> Source:
    return Source(name="own", uri=uri, kind="chat", share=1, **fields)


def lines(*prompts: str, **fields: Any) -> bytes:
    rows = [{"prompt": prompt, "completion": "a", **fields} for prompt in prompts]
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def prompts(store: Store, snapshot: Snapshot) -> list[str]:
    return list(pl.concat(batch.frame() for batch in read_batches(store.folder(snapshot), snapshot))["prompt"])


def test_what_a_bucket_has_is_fetched_once_and_then_only_what_came(bucket: Any, store: Store, tmp_path: Path) -> None:
    bucket.put("night/dt=2026-01-01/a.jsonl", lines("a1", "a2"))
    bucket.put("night/dt=2026-01-01/_SUCCESS", b"")
    bucket.put("night/dt=2026-01-02/b.jsonl.gz", gzip.compress(lines("b1")))
    bucket.put("nightly.jsonl", lines("another"))
    own = source("s3://logs/night")
    first = fetch(own, store)
    assert prompts(store, first) == ["a1", "a2", "b1"]
    assert json.loads(first.watermark or "")[1] == "dt=2026-01-02/b.jsonl.gz"
    assert source_inputs(own, store) == first.inputs
    assert fetch(own, store) == first
    bucket.put("night/dt=2026-01-03/c.jsonl", lines("c1"))
    second = fetch(own, store)
    assert prompts(store, second) == ["a1", "a2", "b1", "c1"]
    assert second.revision != first.revision
    name = "data/dt=2026-01-01/a.jsonl"
    assert (store.folder(first) / name).stat().st_ino == (store.folder(second) / name).stat().st_ino
    bucket.delete_object(Bucket="logs", Key="night/dt=2026-01-01/a.jsonl")
    bucket.put("night/dt=2026-01-02/b.jsonl.gz", gzip.compress(lines("b2")))
    assert prompts(store, fetch(own, store)) == ["b2", "c1"]
    assert prompts(store, first) == ["a1", "a2", "b1"]
    assert verify(store, first) == []


@pytest.mark.parametrize(
    ("uri", "error", "message"),
    [
        ("s3://absent/x", BadInput, "a bucket that is not there"),
        ("s3://logs/absent", BadInput, "has no objects"),
        ("s3://logs/text", BadInput, "has no data files"),
        ("s3://logs/mixed", BadInput, "several formats"),
        ("s3://logs/table", BadInput, "is a Delta table"),
        ("s3://logs/blank.jsonl", BadInput, "yields no rows"),
    ],
)
def test_what_a_bucket_does_not_have_is_one_clear_error(
    bucket: Any, store: Store, uri: str, error: type[Exception], message: str
) -> None:
    for key, body in (("text/a.txt", b"x"), ("mixed/a.jsonl", lines("a")), ("mixed/b.csv", b"a,b\n1,2\n")):
        bucket.put(key, body)
    bucket.put("table/_delta_log/0.json", b"{}")
    bucket.put("blank.jsonl", b"\n")
    with pytest.raises(error, match=message):
        fetch(source(uri), store)
    assert store.all(Snapshot) == []


def test_without_credentials_or_a_server_the_error_says_what_to_set(
    bucket: Any, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bucket.put("a.jsonl", lines("a"))
    snapshot = fetch(source("s3://logs/a.jsonl"), store)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setattr("tasks.sources.hub.ATTEMPTS", 2)
    with pytest.raises(WorldFailed, match=r"cannot be reached.*AWS_ENDPOINT_URL"):
        fetch(source("s3://logs/other.jsonl"), store)
    assert fetch(source("s3://logs/a.jsonl"), store) == snapshot
    assert f"Going on with commit {snapshot.revision}" in caplog.text
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(WorldFailed, match="Set AWS_ACCESS_KEY_ID"):
        fetch(source("s3://logs/a.jsonl"), store)


def test_rows_without_consent_are_not_kept_and_only_what_came_is_transferred(
    bucket: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("logs/1.jsonl", lines("kept", ok=True) + lines("refused", ok=False))
    bucket.put("logs/2.jsonl.gz", gzip.compress(lines("withdrawn later", ok="true")))
    own = source("s3://logs/logs", consent="ok")
    first = fetch(own, store)
    assert (prompts(store, first), first.set_aside) == (["kept", "withdrawn later"], {"no_consent": 1})
    assert not [path for path in store.root.rglob("*") if path.is_file() and b"refused" in path.read_bytes()]
    bucket.put("logs/2.jsonl.gz", gzip.compress(lines("withdrawn later", ok=False)))
    bucket.put("logs/3.jsonl", lines("new", ok=True))
    transferred: list[str] = []
    get = Bucket.get
    monkeypatch.setattr(Bucket, "get", lambda *args: (transferred.append(args[2].name), get(*args)))
    second = fetch(own, store)
    assert (prompts(store, second), second.rows_in, second.set_aside) == (["kept", "new"], 3, {"no_consent": 1})
    assert sorted(transferred) == ["2.jsonl.gz", "3.jsonl"]
    assert (prompts(store, first), verify(store, first)) == (["kept", "withdrawn later"], [])
