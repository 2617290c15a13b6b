"""The real clients against a hub that fails: what is fetched is right, and what cannot be is said clearly."""

from __future__ import annotations

import gzip
import json
import os
import re
import subprocess
import sys
from collections import namedtuple
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from tasks.errors import BadInput, NightowlError, WorldFailed
from tasks.fetch import fetch, fetch_base, verify
from tasks.recipe import Base, Source
from tasks.sources import Snapshot, Unreachable, read_batches, resolve
from tasks.sources.hub import Trouble, retry_after, with_retries
from tasks.store import Store

ROOT = Path(__file__).resolve().parents[2]
HUBS = pytest.mark.parametrize("scheme", ["hf", "modelscope"])
SMALL = b'{"question": "a", "answer": "b"}\n'
LARGE = b"".join(b'{"question": "%06d", "answer": "x"}\n' % n for n in range(3000))


def source(uri: str) -> Source:
    return Source(name="s", uri=uri, kind="chat", share=1)


def rows(store: Store, snapshot: Snapshot) -> pl.DataFrame:
    return pl.concat(batch.frame() for batch in read_batches(store.folder(snapshot), snapshot))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@HUBS
def test_a_branch_is_resolved_to_its_commit_and_the_files_of_that_commit_are_kept(
    hub: Any, store: Store, scheme: str
) -> None:
    repository = hub.repository("dataset", "org/data")
    first = repository.commit({"README.md": b"# x", "data/one.jsonl": SMALL, "data/two.jsonl": LARGE})
    snapshot = fetch(source(f"{scheme}://org/data"), store)
    assert (snapshot.revision, snapshot.requested, snapshot.rows) == (first, None, 3001)
    assert set(snapshot.files) == {"columns.json", "data/data/one.jsonl", "data/data/two.jsonl"}
    assert rows(store, snapshot)["source_row"].to_list() == list(range(3001))

    transfers = len(hub.asked(".jsonl"))
    assert fetch(source(f"{scheme}://org/data"), store) == snapshot
    assert len(hub.asked(".jsonl")) == transfers

    second = repository.commit({"data/one.jsonl": SMALL + SMALL})
    moved = fetch(source(f"{scheme}://org/data"), store)
    assert (moved.revision, moved.rows) == (second, 2)
    pinned = fetch(source(f"{scheme}://org/data@{first}"), store)
    assert (pinned.revision, pinned.requested, pinned.rows) == (first, None, 3001)
    named = fetch(source(f"{scheme}://org/data@{'main' if scheme == 'hf' else 'master'}"), store)
    assert (named.revision, named.requested) == (second, named.uri.partition("@")[2])


def test_modelscope_without_a_commit_in_its_answer_is_pinned_by_its_newest_file_if_the_tree_agrees(hub: Any) -> None:
    repository = hub.repository("dataset", "org/data", says_commit=False)
    first = repository.commit({"one.jsonl": SMALL})
    second = repository.commit({"one.jsonl": SMALL, "two.jsonl": LARGE})
    assert resolve("modelscope://org/data").revision == second != first
    repository.commit({"one.jsonl": SMALL})  # the newest change is a deletion, which no file tells of
    assert resolve("modelscope://org/data").revision == first
    repository.commit({"one.jsonl": SMALL, "two.jsonl": LARGE, "three.jsonl": SMALL})
    repository.commit({"two.jsonl": LARGE, "three.jsonl": SMALL})
    with pytest.raises(WorldFailed, match="does not say which commit 'master' is"):
        resolve("modelscope://org/data")


@HUBS
@pytest.mark.parametrize("fault", ["drop", "flip", "truncate", "ignore_range", "stall"])
def test_a_transfer_that_fails_once_ends_in_the_right_bytes(hub: Any, store: Store, scheme: str, fault: str) -> None:
    hub.repository("dataset", "org/data").commit({"two.jsonl": LARGE})
    if fault == "ignore_range":
        hub.fail("drop", "two.jsonl")
    if fault == "stall":
        hub.released.set()
    hub.fail(fault, "two.jsonl")
    snapshot = fetch(source(f"{scheme}://org/data"), store)
    assert (store.folder(snapshot) / "data" / "two.jsonl").read_bytes() == LARGE
    assert not [path for path in store.folder(snapshot).rglob("*") if "partial" in str(path)]


# A page in place of an answer, a connection reset, and redirects in a circle and to where nobody listens.
@HUBS
@pytest.mark.parametrize(
    ("fault", "where", "message"),
    [
        ("portal", "org/data", "answered with what is no listing.*a proxy or a login page"),
        ("portal", "two.jsonl", "of another size|another file"),
        ("reset", "org/data", "broke off|cannot be reached"),
        ("reset", "two.jsonl", "broke off"),
        ("loop", "org/data", "redirects to where no file is|not answer as it should"),
        ("loop", "two.jsonl", "redirects to where no file is|broke off"),
        ("lost", "org/data", "127.0.0.1.*cannot be reached"),
    ],
)
def test_whoever_speaks_in_place_of_the_hub_is_asked_again_and_then_named(
    hub: Any, store: Store, scheme: str, fault: str, where: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.hub.ATTEMPTS", 2)
    hub.repository("dataset", "org/data").commit({"two.jsonl": LARGE})
    hub.fail(fault, where)
    snapshot = fetch(source(f"{scheme}://org/data"), store)
    assert (store.folder(snapshot) / "data" / "two.jsonl").read_bytes() == LARGE
    store.withdraw(snapshot, list(snapshot.files))
    hub.fail(fault, where, times=1000)
    with pytest.raises(WorldFailed, match=f"sources.s.uri.*org/data.*({message})"):
        fetch(source(f"{scheme}://org/data"), store)


@HUBS
@pytest.mark.parametrize("fault", ["longer", "other_range"])
def test_more_than_is_listed_and_other_bytes_than_were_asked_for_are_never_kept(
    hub: Any, store: Store, scheme: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.hub.ATTEMPTS", 2)
    hub.repository("dataset", "org/data").commit({"two.jsonl": LARGE})
    hub.fail("drop", "two.jsonl")
    hub.fail(fault, "two.jsonl")
    snapshot = fetch(source(f"{scheme}://org/data"), store)
    assert (store.folder(snapshot) / "data" / "two.jsonl").read_bytes() == LARGE
    store.withdraw(snapshot, list(snapshot.files))
    hub.fail(fault, "two.jsonl", times=1000)
    with pytest.raises(WorldFailed, match=r"of another size|another file|fetched twice"):
        fetch(source(f"{scheme}://org/data"), store)


@HUBS
@pytest.mark.parametrize("fault", ["none", "flip"])
def test_a_process_killed_before_it_has_checked_a_whole_file_does_not_keep_the_next_from_it(
    hub: Any, store: Store, scheme: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def is_killed(path: Path, file: Any) -> bool:
        if path.exists():
            raise KeyboardInterrupt
        return False

    hub.repository("dataset", "org/data").commit({"two.jsonl": LARGE})
    hub.fail(fault, "two.jsonl")
    with monkeypatch.context() as killed:
        killed.setattr("tasks.sources.hub._is", is_killed)
        with pytest.raises(KeyboardInterrupt):
            fetch(source(f"{scheme}://org/data"), store)
    sent = len(hub.asked("/lfs/"))
    snapshot = fetch(source(f"{scheme}://org/data"), store)
    assert (store.folder(snapshot) / "data" / "two.jsonl").read_bytes() == LARGE
    assert len(hub.asked("/lfs/")) == sent + (fault == "flip")


@HUBS
def test_a_stalled_transfer_is_given_up_and_resumed(hub: Any, store: Store, scheme: str) -> None:
    hub.repository("dataset", "org/data").commit({"two.jsonl": LARGE})
    hub.fail("stall", "two.jsonl")
    snapshot = fetch(source(f"{scheme}://org/data"), store)
    assert (store.folder(snapshot) / "data" / "two.jsonl").read_bytes() == LARGE
    assert hub.asked("two.jsonl")[-1][2]["range"].startswith("bytes=")


@HUBS
def test_a_file_that_is_wrong_every_time_is_an_error_and_leaves_no_snapshot(
    hub: Any, store: Store, scheme: str
) -> None:
    hub.repository("dataset", "org/data").commit({"two.jsonl": LARGE})
    hub.fail("flip", "two.jsonl", times=100)
    with pytest.raises(WorldFailed, match=r"two\.jsonl"):
        fetch(source(f"{scheme}://org/data"), store)
    assert store.all(Snapshot) == []


@HUBS
def test_a_byte_that_flips_in_the_store_is_found_and_only_its_file_is_fetched_again(
    hub: Any, store: Store, scheme: str
) -> None:
    hub.repository("dataset", "org/data").commit({"one.jsonl": SMALL, "two.jsonl": LARGE})
    snapshot = fetch(source(f"{scheme}://org/data"), store)
    path = store.folder(snapshot) / "data" / "two.jsonl"
    path.write_bytes(b" " + LARGE[1:])
    assert verify(store, snapshot) == ["data/two.jsonl"]
    before = len(hub.requests)
    again = fetch(source(f"{scheme}://org/data"), store)
    assert path.read_bytes() == LARGE
    assert again.files == snapshot.files
    assert not [request for request in hub.requests[before:] if "one.jsonl" in request[1]]


@HUBS
def test_a_killed_download_goes_on_where_it_stopped(hub: Any, store: Store, scheme: str) -> None:
    # Two and a half of the chunks that the client hands on, of which the first half is sent.
    huge = b"".join(b'{"question": "%06d%s", "answer": "x"}\n' % (n, b"x" * 10_000) for n in range(2600))
    hub.repository("dataset", "org/data").commit({"one.jsonl": SMALL, "two.jsonl": huge})
    hub.fail("stall", "two.jsonl")
    child = _start(store, f"{scheme}://org/data")
    try:
        assert hub.stalled.wait(60)
        _wait_for_bytes(store, child)
    finally:
        child.kill()
        child.wait()
    hub.released.set()
    before = len(hub.requests)
    snapshot = fetch(source(f"{scheme}://org/data"), store)
    assert (store.folder(snapshot) / "data" / "two.jsonl").read_bytes() == huge
    resumed = [headers for _, path, headers in hub.requests[before:] if "two.jsonl" in path]
    assert int(resumed[0]["range"].removeprefix("bytes=").removesuffix("-")) > 0


@HUBS
def test_two_processes_that_fetch_the_same_transfer_it_once(hub: Any, store: Store, scheme: str) -> None:
    hub.repository("dataset", "org/data").commit({"two.jsonl": LARGE})
    children = [_start(store, f"{scheme}://org/data") for _ in range(2)]
    said = [child.communicate(timeout=120)[0] for child in children]
    assert [child.returncode for child in children] == [0, 0], said
    assert len(hub.asked("/lfs/")) == 1
    assert len(store.all(Snapshot)) == 1


@HUBS
def test_a_disk_too_small_is_found_before_a_byte_is_transferred(
    hub: Any, store: Store, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository("dataset", "org/data").commit({"two.jsonl": LARGE})
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("tasks.sources.files.shutil.disk_usage", lambda _: usage(10**9, 10**9, free))
    free = 2**24
    with pytest.raises(WorldFailed, match="are free in"):
        fetch(source(f"{scheme}://org/data"), store)
    # Enough for the file, and not for its rows to be written once more.
    free += len(LARGE)
    with pytest.raises(WorldFailed, match="are free in"):
        fetch(source(f"{scheme}://org/data").model_copy(update={"consent": "ok"}), store)
    assert not hub.asked("two.jsonl")


@HUBS
def test_a_disk_that_fills_up_is_one_clear_error_and_room_is_all_it_takes(hub: Any, store: Store, scheme: str) -> None:
    hub.repository("dataset", "org/data").commit({"two.jsonl": LARGE})
    full = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000)); "
    if scheme == "modelscope":
        full += "import modelscope_hub._download as client; client.DOWNLOAD_RETRY_MAX_DELAY_SECONDS = 0; "
    child = _start(store, f"{scheme}://org/data", full)
    said = child.communicate(timeout=120)[0]
    assert re.search(r"\ntasks\.errors\.WorldFailed: .*Free disk space there", said), said
    assert fetch(source(f"{scheme}://org/data"), store).rows == 3000


@HUBS
def test_offline_the_latest_snapshot_serves_and_the_log_says_its_commit(
    hub: Any, store: Store, scheme: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sha = hub.repository("dataset", "org/data").commit({"one.jsonl": SMALL})
    snapshot = fetch(source(f"{scheme}://org/data"), store)
    pinned = fetch(source(f"{scheme}://org/data@{sha}"), store)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("tasks.sources.hub.ATTEMPTS", 2)
    assert fetch(source(f"{scheme}://org/data"), store) == snapshot
    assert f"Going on with commit {sha}" in caplog.text
    with pytest.raises(Unreachable, match="cannot be reached"):
        fetch(source(f"{scheme}://org/other"), store)
    caplog.clear()
    assert fetch(source(f"{scheme}://org/data@{sha}"), store) == pinned
    assert not caplog.records


@HUBS
@pytest.mark.parametrize("status", [429, 503, 500])
def test_a_hub_that_recovers_is_waited_for_and_one_that_does_not_is_never_answered_from_the_store(
    hub: Any, store: Store, scheme: str, status: int
) -> None:
    hub.repository("dataset", "org/data").commit({"one.jsonl": SMALL})
    hub.fail("status", "org/data", times=2, status=status, headers={"Retry-After": "0"})
    assert fetch(source(f"{scheme}://org/data"), store).rows == 1
    hub.fail("status", "org/data", times=100, status=status, headers={"Retry-After": "0"})
    with pytest.raises(WorldFailed, match=f"{status}|asked too often") as raised:
        fetch(source(f"{scheme}://org/data"), store)
    assert not isinstance(raised.value, Unreachable)


@HUBS
def test_a_wait_longer_than_anybody_wants_is_not_waited_for(hub: Any, store: Store, scheme: str) -> None:
    hub.repository("dataset", "org/data").commit({"one.jsonl": SMALL})
    hub.fail("status", "org/data", times=100, status=429, headers={"Retry-After": "86400"})
    with pytest.raises(WorldFailed, match="asked too often"):
        fetch(source(f"{scheme}://org/data"), store)
    # ModelScope's client tries a listing four times by itself.
    assert len(hub.requests) <= (1 if scheme == "hf" else 4)


def test_waits_double_are_never_alike_and_give_way_to_what_the_server_asks_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waits: list[float] = []
    monkeypatch.setattr("tasks.sources.hub.time", SimpleNamespace(sleep=waits.append))
    asked: list[float | None] = [None, None, 7.0, None]

    class Busy:
        def explain(self, error: Exception) -> Trouble:
            return Trouble(WorldFailed("hub", "is busy", "Wait."), again=True, wait=asked[len(waits)])

    def call() -> str:
        if len(waits) < len(asked):
            raise OSError
        return "done"

    assert with_retries(Busy(), call) == "done"
    assert [0.5 <= waits[n] / 2**n <= 1 for n in (0, 1, 3)] == [True] * 3
    assert len({waits[n] / 2**n for n in (0, 1, 3)}) == 3
    assert waits[2] == 7


@HUBS
@pytest.mark.parametrize("status", [401, 403, 404, 500])
def test_a_file_that_the_hub_lists_and_does_not_give_is_one_clear_error(
    hub: Any, store: Store, scheme: str, status: int
) -> None:
    hub.repository("dataset", "org/data").commit({"one.jsonl": SMALL})
    hub.fail("status", "one.jsonl", times=100, status=status)
    with pytest.raises(NightowlError, match=r"org/data.*(40[134]|500)"):
        fetch(source(f"{scheme}://org/data"), store)
    assert len(hub.asked("one.jsonl")) <= (
        30 if status == 500 else 1
    )  # the client of ModelScope tries six times by itself
    assert store.all(Snapshot) == []


@HUBS
def test_a_transfer_that_stalls_every_time_ends_in_one_clear_error(
    hub: Any, store: Store, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.hub.ATTEMPTS", 2)
    hub.repository("dataset", "org/data").commit({"two.jsonl": LARGE})
    hub.fail("stall", "two.jsonl", times=100)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    monkeypatch.setattr("modelscope_hub._legacy_api.DOWNLOAD_TIMEOUT", 0.2)
    with pytest.raises(WorldFailed, match=r"broke off.*Run again later; what (came|was downloaded) is kept"):
        fetch(source(f"{scheme}://org/data"), store)
    assert len(hub.asked("/lfs/")) <= 20


@pytest.mark.parametrize(
    ("scheme", "settings", "token", "uri", "error", "message"),
    [
        ("hf", {}, None, "org/absent", BadInput, r"is not there.*HF_TOKEN"),
        ("hf", {"token": "t"}, None, "org/data", BadInput, r"is not there.*needs HF_TOKEN"),
        ("hf", {"token": "t"}, "other", "org/data", BadInput, r"may not be read with the token in HF_TOKEN"),
        ("hf", {}, "bad", "org/data", WorldFailed, r"refuses the token in HF_TOKEN.*settings/tokens"),
        ("hf", {"token": "t", "gated": True}, None, "org/data", WorldFailed, r"is gated.*Accept its terms.*HF_TOKEN"),
        ("hf", {"token": "t", "gated": True}, "other", "org/data", WorldFailed, r"is gated.*Accept its terms"),
        ("hf", {}, None, "org/data@nope", BadInput, r"has no revision 'nope'"),
        ("hf", {"renamed_to": "org/new"}, None, "org/data", BadInput, r"renamed to org/new.*Write hf://org/new"),
        ("modelscope", {}, None, "org/absent", BadInput, r"is not there.*MODELSCOPE_API_TOKEN"),
        ("modelscope", {"token": "t"}, None, "org/data", WorldFailed, r"403.*MODELSCOPE_API_TOKEN"),
        ("modelscope", {"token": "t"}, "other", "org/data", WorldFailed, r"403.*has no right"),
        ("modelscope", {}, "bad", "org/data", WorldFailed, r"refuses the token in MODELSCOPE_API_TOKEN"),
        ("modelscope", {}, None, "org/data@nope", BadInput, r"has no files at revision 'nope'"),
        (
            "modelscope",
            {"renamed_to": "org/new"},
            None,
            "org/data",
            BadInput,
            r"renamed to org/new.*modelscope://org/new",
        ),
        ("modelscope", {}, None, "data", BadInput, r"does not name an owner"),
    ],
)
def test_what_the_hub_refuses_is_one_clear_error(
    hub: Any,
    store: Store,
    scheme: str,
    settings: dict[str, Any],
    token: str | None,
    uri: str,
    error: type[NightowlError],
    message: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    hub.repository("dataset", "org/data", **settings).commit({"one.jsonl": SMALL})
    hub.repository("dataset", "org/new").commit({"one.jsonl": SMALL})
    if token:
        monkeypatch.setenv("HF_TOKEN" if scheme == "hf" else "MODELSCOPE_API_TOKEN", token)
    with pytest.raises(error, match=f"(?s){message}"):
        fetch(source(f"{scheme}://{uri}"), store)
    assert len(hub.requests) <= 4


@HUBS
def test_a_right_token_reads_a_private_repository_and_stays_with_its_host(
    hub: Any, store: Store, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.repository("dataset", "org/data", token="t").commit({"two.jsonl": LARGE})
    monkeypatch.setenv("HF_TOKEN" if scheme == "hf" else "MODELSCOPE_API_TOKEN", "t")
    assert fetch(source(f"{scheme}://org/data"), store).rows == 3000
    assert all("authorization" not in headers for host, _, headers in hub.requests if host.startswith("localhost"))


@HUBS
def test_an_empty_repository_and_one_without_rows_are_bad_input(hub: Any, store: Store, scheme: str) -> None:
    hub.repository("dataset", "org/empty").commit({})
    hub.repository("dataset", "org/text").commit({"README.md": b"# x", "book.txt": b"once"})
    hub.repository("dataset", "org/rowless").commit({"a.jsonl": b"\n"})
    for name, message in [("empty", "has no"), ("text", "has no data files"), ("rowless", "yields no rows")]:
        with pytest.raises(BadInput, match=message):
            fetch(source(f"{scheme}://org/{name}"), store)


@HUBS
def test_subsets_and_splits_are_the_cards_or_the_names_and_never_guessed(hub: Any, store: Store, scheme: str) -> None:
    def lines(count: int) -> bytes:
        return SMALL * count

    hub.repository("dataset", "org/plain").commit({"data/train-0.jsonl": lines(2), "data/test-0.jsonl": lines(3)})
    with pytest.raises(BadInput, match=r"several splits.*split=: train, test|several splits.*split=: test, train"):
        fetch(source(f"{scheme}://org/plain"), store)
    assert fetch(source(f"{scheme}://org/plain?split=test"), store).rows == 3
    with pytest.raises(BadInput, match="has no split 'dev'"):
        fetch(source(f"{scheme}://org/plain?split=dev"), store)

    configs = [
        {"config_name": "en", "data_files": [{"split": "train", "path": "en/*.jsonl"}]},
        {
            "config_name": "de",
            "data_files": [{"split": "train", "path": ["de/a*"]}, {"split": "test", "path": "de/b*"}],
        },
    ]
    front = f"---\nlicense: mit\nconfigs: {json.dumps(configs)}\n---\n# x\n".encode()
    files = {"README.md": front, "en/1.jsonl": lines(4), "de/a.jsonl": lines(5), "de/b.jsonl": lines(6)}
    hub.repository("dataset", "org/cards", card={"license": "mit", "configs": configs}).commit(files)
    with pytest.raises(BadInput, match=r"has no subset 'fr'.*en, de"):
        fetch(source(f"{scheme}://org/cards?subset=fr"), store)
    with pytest.raises(BadInput, match=r"several subsets.*en, de"):
        fetch(source(f"{scheme}://org/cards"), store)
    english = fetch(source(f"{scheme}://org/cards?subset=en"), store)
    assert (english.rows, english.licence) == (4, "mit")
    assert fetch(source(f"{scheme}://org/cards?subset=de&split=test"), store).rows == 6
    assert fetch(source(f"{scheme}://org/cards?files=de/*"), store).rows == 11


@HUBS
def test_subsets_by_folder_by_default_by_data_dir_and_splits_in_several_files(
    hub: Any, store: Store, scheme: str
) -> None:
    def fetched(query: str) -> int:
        return fetch(source(f"{scheme}://{query}"), store).rows

    files = {
        "math/train/0.jsonl.gz": gzip.compress(SMALL),
        "math/train/1.jsonl.gz": gzip.compress(SMALL * 2),
        "math/validation.jsonl.gz": gzip.compress(SMALL * 4),
        "chat/train.jsonl.gz": gzip.compress(SMALL * 8),
    }
    hub.repository("dataset", "org/folders").commit(files)
    assert fetched("org/folders?subset=math&split=train") == 3
    assert fetched("org/folders?subset=math&split=validation") == 4
    assert fetched("org/folders?subset=chat") == 8
    with pytest.raises(BadInput, match=r"has no subset 'code'.*chat, math"):
        fetched("org/folders?subset=code")
    configs = [
        {"config_name": "default", "data_dir": "math"},
        {"config_name": "part", "data_files": "math/train/[1-9]*"},
        {"config_name": "chat", "data_dir": "chat"},
    ]
    front = f"---\nlicense: [mit, apache-2.0]\nconfigs: {json.dumps(configs)}\n---\n".encode()
    card = {"license": ["mit", "apache-2.0"], "configs": configs}
    hub.repository("dataset", "org/dirs", card=card).commit({"README.md": front, **files})
    assert fetched("org/dirs?split=train") == 3
    assert fetched("org/dirs?subset=part") == 2
    assert fetched("org/dirs?subset=chat") == 8
    assert fetch(source(f"{scheme}://org/dirs?subset=chat"), store).licence == "mit, apache-2.0"
    with pytest.raises(BadInput, match=r"several splits.*train, validation"):
        fetched("org/dirs")
    hub.repository("dataset", "org/mixed").commit({"a.jsonl": SMALL, "b.csv": b"a,b\n1,2\n"})
    with pytest.raises(BadInput, match=r"several formats.*files="):
        fetched("org/mixed")
    assert fetched("org/mixed?files=*.csv") == 1


@HUBS
def test_rows_without_consent_or_too_old_are_not_kept_and_nothing_is_fetched_to_leave_out_more(
    hub: Any, store: Store, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = datetime(2026, 11, 24, 2, tzinfo=UTC)
    monkeypatch.setattr("tasks.sources.permission.now", lambda: now)
    days = [{"question": f"q{n}", "ok": n != 3, "at": (now - timedelta(days=n)).isoformat()} for n in range(10)]
    content = "".join(json.dumps(row) + "\n" for row in days).encode()
    hub.repository("dataset", "org/people").commit({"people.jsonl.gz": gzip.compress(content)})
    own = Source(name="s", uri=f"{scheme}://org/people", kind="chat", share=1, consent="ok", time="at", max_age=8)
    first = fetch(own, store)
    assert (first.rows_in, first.rows, first.set_aside) == (10, 7, {"no_consent": 1, "expired": 2})
    assert not [path for path in store.root.rglob("*") if path.is_file() and b'"q3"' in path.read_bytes()]
    transfers = len(hub.asked("people.jsonl"))
    now += timedelta(days=1)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("tasks.sources.hub.ATTEMPTS", 2)
    second = fetch(own, store)  # offline, and yet nothing too old is used
    assert (second.revision, second.rows, second.set_aside) == (first.revision, 6, {"expired": 1})
    assert len(hub.asked("people.jsonl")) == transfers
    with pytest.raises(Unreachable):
        fetch(own.model_copy(update={"consent": "other"}), store)


@HUBS
def test_of_a_model_config_tokenizer_and_safetensors_are_fetched_and_a_pickle_is_refused(
    hub: Any, store: Store, scheme: str
) -> None:
    files = {
        "config.json": b"{}",
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "model.safetensors": LARGE,
        "consolidated.safetensors": LARGE,
        "pytorch_model.bin": LARGE,
        "original/model.safetensors": LARGE,
        "modeling_own.py": b"print()",
    }
    sha = hub.repository("model", "org/model").commit(files)
    base = fetch_base(Base(uri=f"{scheme}://org/model"), store)
    assert base.revision == sha
    assert set(base.files) == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors"}
    shards = {"model-00001-of-00002.safetensors": LARGE, "model-00002-of-00002.safetensors": LARGE[1:]}
    index = json.dumps({"metadata": {}, "weight_map": dict(zip("ab", shards, strict=True))}).encode()
    parts = {
        "config.json": b"{}",
        "model.safetensors.index.json": index,
        "additional_chat_templates/tool_use.jinja": b"x",
    }
    hub.repository("model", "org/sharded").commit({**parts, **shards, "additional_chat_templates/x.py": b"x"})
    assert set(fetch_base(Base(uri=f"{scheme}://org/sharded"), store).files) == {*parts, *shards}
    shards.popitem()
    hub.repository("model", "org/half").commit({**parts, **shards})
    with pytest.raises(BadInput, match=r"lacks model-00002-of-00002\.safetensors, which its model"):
        fetch_base(Base(uri=f"{scheme}://org/half"), store)
    hub.repository("model", "org/pickled").commit({"config.json": b"{}", "pytorch_model.bin": LARGE})
    with pytest.raises(BadInput, match="has no safetensors weights"):
        fetch_base(Base(uri=f"{scheme}://org/pickled"), store)
    hub.repository("model", "org/adapter").commit({"adapter_config.json": b"{}", "adapter_model.safetensors": LARGE})
    with pytest.raises(BadInput, match=r"has no config\.json"):
        fetch_base(Base(uri=f"{scheme}://org/adapter"), store)
    with pytest.raises(BadInput, match="is not there"):
        fetch_base(Base(uri=f"{scheme}://org/absent"), store)
    again = fetch_base(Base(uri=f"{scheme}://org/model@{sha}"), store)
    (store.folder(again) / "model.safetensors").write_bytes(LARGE[:-1] + b"x")
    assert verify(store, fetch_base(Base(uri=f"{scheme}://org/model@{sha}"), store)) == []


def _start(store: Store, uri: str, before: str = "") -> subprocess.Popen[str]:
    code = (
        f"{before}import sys; from pathlib import Path; from tasks.fetch import fetch; "
        "from tasks.recipe import Source; from tasks.store import Store; "
        "fetch(Source(name='s', uri=sys.argv[2], kind='chat', share=1), Store(Path(sys.argv[1])))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "0"}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(store.root), uri],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _wait_for_bytes(store: Store, child: subprocess.Popen[str]) -> None:
    """Until the child has written what it was sent: the hub is stalled, so there is nothing more to come."""
    import time

    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and child.poll() is None:
        if any(path.stat().st_size > 1000 for path in store.root.rglob("partial/**/*") if path.is_file()):
            return
        time.sleep(0.02)
    pytest.fail("the child wrote nothing of what it was sent")


def test_a_server_may_say_when_to_come_back_in_seconds_or_as_a_date() -> None:
    now = datetime.now(UTC)
    assert retry_after("7") == 7
    assert 100 < (retry_after(format_datetime(now + timedelta(minutes=2), usegmt=True)) or 0) <= 120
    assert retry_after(format_datetime(now - timedelta(days=1), usegmt=True)) == 0
    assert retry_after("soon") is None
    assert retry_after(None) is None
