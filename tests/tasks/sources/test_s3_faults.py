"""`s3://` while processes are killed, transfers break, objects change and access is denied."""

from __future__ import annotations

import gzip
import json
import threading
from collections import namedtuple
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import polars as pl
import pytest
import zstandard

from tasks.errors import BadInput, NightowlError, WorldFailed
from tasks.fetch import fetch, verify
from tasks.recipe import Source
from tasks.sources import Snapshot, Unreachable, read_batches
from tasks.sources.s3 import Bucket
from tasks.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def source(uri: str, **fields: Any) -> Source:
    return Source(name="own", uri=uri, kind="chat", share=1, **fields)


def lines(*prompts: str) -> bytes:
    return b"".join(json.dumps({"prompt": prompt, "completion": "a"}).encode() + b"\n" for prompt in prompts)


LARGE = lines(*(f"{n:06d} {'x' * 100}" for n in range(30_000)))


def rows(store: Store, snapshot: Snapshot) -> pl.DataFrame:
    return pl.concat(batch.frame() for batch in read_batches(store.folder(snapshot), snapshot))


@pytest.fixture
def between(bucket: Any, proxy: Any, moto: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A proxy in front of moto, which AWS_ENDPOINT_URL names from now on."""
    made = proxy(urlsplit(moto).port)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{made.port}")
    return made


def test_a_killed_process_is_gone_on_with_even_where_the_bucket_has_grown(
    bucket: Any, store: Store, between: Any, in_a_process: Any, wait_until: Any
) -> None:
    bucket.put("logs/1.jsonl", lines("small"))
    bucket.put("logs/2.jsonl", LARGE)
    between.fail("stall", 2_000_000, times=100)
    child = in_a_process(source("s3://logs/logs"), store.root)
    assert between.stalled.wait(60)

    def kept() -> int:
        return max((path.stat().st_size for path in store.root.glob("work/bucket-*/partial/*")), default=0)

    # What the proxy has passed on is not at once what the child has written.
    wait_until(lambda: kept() > 10**6, "a megabyte on the disk")
    child.kill()
    child.wait()
    between.fail("", 0, times=0)
    kept_at_kill = kept()
    assert store.all(Snapshot) == []
    bucket.put("logs/3.jsonl", lines("new"))
    before = between.sent
    snapshot = fetch(source("s3://logs/logs"), store)
    assert rows(store, snapshot)["prompt"].n_unique() == 30_002
    assert between.sent - before < len(LARGE) - kept_at_kill + 100_000
    assert not list(store.root.glob("work/bucket-*/*"))


def test_two_processes_that_fetch_the_same_bucket_transfer_it_once(
    bucket: Any, store: Store, between: Any, in_a_process: Any
) -> None:
    bucket.put("logs/1.jsonl", LARGE)
    children = [in_a_process(source("s3://logs/logs"), store.root) for _ in range(2)]
    said = [child.communicate(timeout=120) for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert len(store.all(Snapshot)) == 1
    assert between.sent < 1.5 * len(LARGE)


@pytest.mark.parametrize("how", ["drop", "stall"])
def test_a_transfer_that_breaks_or_stalls_is_resumed(
    bucket: Any, store: Store, between: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.s3.PATIENCE", 1)
    bucket.put("logs/1.jsonl", LARGE)
    between.fail(how, 2_000_000, times=2)
    snapshot = fetch(source("s3://logs/logs/1.jsonl"), store)
    assert (store.folder(snapshot) / "data" / "1.jsonl").read_bytes() == LARGE
    assert between.sent < 2 * len(LARGE)


@pytest.mark.parametrize("how", ["drop", "stall"])
def test_a_transfer_that_breaks_every_time_is_one_clear_error(
    bucket: Any, store: Store, between: Any, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.s3.PATIENCE", 1)
    monkeypatch.setattr("tasks.sources.hub.ATTEMPTS", 2)
    bucket.put("logs/1.jsonl", LARGE)
    between.fail(how, 1000, times=1000)
    with pytest.raises(WorldFailed, match=r"broke off the answer|stopped sending"):
        fetch(source("s3://logs/logs/1.jsonl"), store)
    assert store.all(Snapshot) == []


def test_a_disk_too_small_is_found_before_a_byte_is_transferred(
    bucket: Any, store: Store, between: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("logs/1.jsonl", LARGE)
    usage = namedtuple("usage", "total used free")
    free = 2**24
    monkeypatch.setattr("tasks.sources.files.shutil.disk_usage", lambda _: usage(10**9, 10**9, free))
    with pytest.raises(WorldFailed, match="are free in"):
        fetch(source("s3://logs/logs"), store)
    # Enough for the objects, and not for their rows to be written once more.
    free += len(LARGE)
    with pytest.raises(WorldFailed, match="are free in"):
        fetch(source("s3://logs/logs", consent="ok"), store)
    assert between.sent < 10_000


def test_a_disk_that_fills_up_is_one_clear_error(bucket: Any, store: Store, in_a_process: Any) -> None:
    bucket.put("logs/1.jsonl", LARGE)
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (10**6, 10**6))"
    child = in_a_process(source("s3://logs/logs"), store.root, full)
    _, said = child.communicate(timeout=120)
    assert (child.returncode, "Traceback" in said) == (1, False), said
    assert "Free disk space there" in said
    assert fetch(source("s3://logs/logs"), store).rows == 30_000


@pytest.mark.parametrize("change", ["rewritten", "deleted", "added"])
def test_a_bucket_that_changes_while_it_is_read_is_pinned_anew(
    bucket: Any, store: Store, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bucket.put("logs/1.jsonl", lines("first"))
    bucket.put("logs/2.jsonl", lines("second"))
    listing = Bucket.listing
    changed = []

    def then_changes(self: Any, revision: Any) -> Any:
        found = listing(self, revision)
        if not changed:
            changed.append(change)
            if change == "deleted":
                bucket.delete_object(Bucket="logs", Key="logs/2.jsonl")
            else:
                bucket.put("logs/2.jsonl" if change == "rewritten" else "logs/3.jsonl", lines("third"))
        return found

    monkeypatch.setattr(Bucket, "listing", then_changes)
    # One object more is tomorrow's; what was listed and is no longer there cannot be had.
    expected = {"rewritten": ["first", "third"], "deleted": ["first"], "added": ["first", "second"]}[change]
    assert rows(store, fetch(source("s3://logs/logs"), store))["prompt"].to_list() == expected


def test_a_bucket_that_changes_at_every_look_is_one_clear_error(
    bucket: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    listing, number = Bucket.listing, iter(range(100))

    def then_changes(self: Any, revision: Any) -> Any:
        bucket.put("logs/1.jsonl", lines(f"{next(number)}"))
        found = listing(self, revision)
        bucket.put("logs/1.jsonl", lines(f"{next(number)}"))
        return found

    monkeypatch.setattr(Bucket, "listing", then_changes)
    with pytest.raises(WorldFailed, match=r"changed while it was read \(PreconditionFailed\)"):
        fetch(source("s3://logs/logs"), store)
    assert store.all(Snapshot) == []


def test_a_byte_that_flips_in_the_store_is_found_and_only_its_object_is_fetched_again(
    bucket: Any, store: Store, between: Any
) -> None:
    bucket.put("logs/1.jsonl", LARGE)
    bucket.put("logs/2.jsonl", lines("small"))
    snapshot = fetch(source("s3://logs/logs"), store)
    file = store.folder(snapshot) / "data" / "2.jsonl"
    file.write_bytes(b"x" + file.read_bytes()[1:])
    before = between.sent
    assert verify(store, snapshot) == ["data/2.jsonl"]
    again = fetch(source("s3://logs/logs"), store)
    assert (again.files, verify(store, again)) == (snapshot.files, [])
    assert between.sent - before < 10_000


def test_every_form_of_file_and_the_columns_that_folders_state(bucket: Any, store: Store) -> None:
    frame = pl.DataFrame({"prompt": ["a", "b"], "completion": ["c", "d"], "n": [1, 2]})
    parquet = BytesIO()
    frame.write_parquet(parquet)
    forms = {
        "jsonl": frame.write_ndjson().encode(),
        "jsonl.gz": gzip.compress(frame.write_ndjson().encode()),
        "jsonl.zst": zstandard.ZstdCompressor().compress(frame.write_ndjson().encode()),
        "csv": frame.write_csv().encode(),
        "csv.gz": gzip.compress(frame.write_csv().encode()),
        "parquet": parquet.getvalue(),
        "json": json.dumps(frame.to_dicts()).encode(),
    }
    for form, content in forms.items():
        bucket.put(f"{form}/date=2026-11-23/region=eu%20west/part.{form}", content)
        bucket.put(f"{form}/date=2026-11-24/region=__HIVE_DEFAULT_PARTITION__/part.{form}", content)
        found = rows(store, fetch(source(f"s3://logs/{form}"), store))
        assert found["date"].to_list() == ["2026-11-23"] * 2 + ["2026-11-24"] * 2
        assert found["region"].to_list() == ["eu west"] * 2 + [None] * 2
        assert found["prompt"].to_list() == ["a", "b", "a", "b"]
    dated = source("s3://logs/jsonl", time="date", max_age=100_000)
    assert fetch(dated, store).rows == 4


def test_rows_in_folders_that_say_something_else_are_other_rows(bucket: Any, store: Store) -> None:
    for day in ("23", "24", "24b"):
        bucket.put(f"logs/date=2026-11-{day[:2]}/{day}.jsonl", lines("same"))
    snapshot = fetch(source("s3://logs/logs"), store)
    keys = [tuple(batch.keys[0]) for batch in read_batches(store.folder(snapshot), snapshot)]
    assert (keys[0] == keys[1], keys[1] == keys[2]) == (False, True)


class Refusing(BaseHTTPRequestHandler):
    """Speaks as much of S3 as it takes to refuse."""

    status, code, headers_too, asked = 403, "AccessDenied", {}, 0  # type: ignore[var-annotated]

    def do_GET(self) -> None:
        type(self).asked += 1
        body = f"<?xml version='1.0'?><Error><Code>{self.code}</Code><Message>no</Message></Error>".encode()
        if self.status == 200:
            body = b"<html>Please log in</html>"
        self.send_response(self.status)
        for name, value in {"Content-Length": str(len(body)), "Content-Type": "application/xml"}.items():
            self.send_header(name, value)
        for name, value in self.headers_too.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    do_HEAD = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def refusing(bucket: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Refusing]]:
    answers = type("Answers", (Refusing,), {})
    server = ThreadingHTTPServer(("127.0.0.1", 0), answers)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
    yield answers
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize(
    ("status", "code", "error", "message", "asked"),
    [
        (403, "AccessDenied", WorldFailed, r"may not be read \(AccessDenied\).*s3:ListBucket and s3:GetObject", 1),
        (403, "InvalidAccessKeyId", WorldFailed, r"refuses the credentials.*AWS_ACCESS_KEY_ID", 1),
        (403, "SignatureDoesNotMatch", WorldFailed, r"refuses the credentials.*AWS_SECRET_ACCESS_KEY", 1),
        (400, "ExpiredToken", WorldFailed, r"refuses the credentials \(ExpiredToken\).*AWS_SESSION_TOKEN", 1),
        (301, "PermanentRedirect", WorldFailed, r"is in another region.*Set AWS_REGION", 9),
        (400, "AuthorizationHeaderMalformed", WorldFailed, r"is in another region.*Set AWS_REGION", 9),
        (404, "NoSuchBucket", BadInput, r"names a bucket that is not there \(logs\).*AWS_ENDPOINT_URL", 1),
        (429, "TooManyRequests", WorldFailed, r"is asked too often \(TooManyRequests\)", 5),
        (503, "SlowDown", WorldFailed, r"is asked too often \(SlowDown\)", 5),
        (500, "InternalError", WorldFailed, r"answered 500 \(InternalError\).*Run again later", 5),
        (503, "ServiceUnavailable", WorldFailed, r"answered 503", 5),
        (200, "a page of a proxy", WorldFailed, r"an answer that is no listing, such as a proxy's", 5),
    ],
)
def test_what_the_server_refuses_is_one_clear_error_never_answered_from_the_store(
    bucket: Any,
    store: Store,
    moto: str,
    refusing: type[Refusing],
    status: int,
    code: str,
    error: type[NightowlError],
    message: str,
    asked: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bucket.put("logs/1.jsonl", lines("a"))
    with monkeypatch.context() as before:
        before.setenv("AWS_ENDPOINT_URL", moto)
        fetch(source("s3://logs/logs"), store)
    refusing.status, refusing.code = status, code
    refusing.headers_too = {"x-amz-bucket-region": "eu-central-1"}
    with pytest.raises(error, match=f"(?s){message}") as raised:
        fetch(source("s3://logs/logs"), store)
    assert not isinstance(raised.value, Unreachable)
    assert refusing.asked <= asked
