"""`mlflow://` on a real tracking server over HTTP, which goes away, breaks off and refuses."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from loopback_mlflow import serve_mlflow

from tasks.errors import BadInput, WorldFailed
from tasks.fetch import fetch
from tasks.recipe import Source
from tasks.sources import Snapshot, Unreachable, read_batches
from tasks.store import Store


@pytest.fixture(scope="module")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of a server on a database of its own."""
    folder = tmp_path_factory.mktemp("mlflow")
    options = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/served"]
    with serve_mlflow(options, {}, folder / "log") as url:
        yield int(url.rpartition(":")[2])


@pytest.fixture
def between(mlflow_server: int, proxy: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A proxy in front of the server, which MLFLOW_TRACKING_URI names from now on."""
    made = proxy(mlflow_server)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{made.port}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("tasks.sources.hub.FIRST_WAIT", 0.01)
    return made


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def source(name: str, **fields: Any) -> Source:
    return Source(name="own", uri=f"mlflow://{name}", kind="chat", share=1, **fields)


def liked(experiment: str, *answers: str) -> list[str]:
    """Traces of chat completions that a person gave a thumbs-up; their ids."""
    import mlflow
    from mlflow.entities import AssessmentSource

    from tasks.registry import client

    client()
    mlflow.set_experiment(experiment)
    ids = []
    for answer in answers:
        with mlflow.start_span(name="completion", span_type="CHAT_MODEL") as span:
            span.set_inputs({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
            span.set_outputs({"choices": [{"index": 0, "message": {"role": "assistant", "content": answer}}]})
        ids.append(str(span.trace_id))
    mlflow.flush_trace_async_logging()
    person = AssessmentSource(source_type="HUMAN", source_id="ann")
    for trace_id in ids:
        mlflow.log_feedback(trace_id=trace_id, name="thumbs", value=True, source=person)
    return ids


def answers(store: Store, snapshot: Snapshot) -> list[str]:
    frame = pl.concat(batch.frame() for batch in read_batches(store.folder(snapshot), snapshot))
    return [text.rpartition('"content":"')[2].partition('"')[0] for text in frame["response"]]


def test_traces_of_a_server_are_read_night_by_night_in_their_order(
    between: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.mlflow_traces._PAGE", 3)
    liked("nights", *(f"first {n}" for n in range(7)))
    first = fetch(source("nights"), store)
    assert sorted(answers(store, first)) == [f"first {n}" for n in range(7)]
    assert fetch(source("nights"), store) == first
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
    liked("nights", "second")
    assert answers(store, fetch(source("nights"), store)) == [*answers(store, first), "second"]


def test_a_server_that_breaks_off_is_asked_again_and_one_that_always_does_is_one_clear_error(
    between: Any, store: Store
) -> None:
    liked("breaks", "one", "two", "three")
    between.fail("drop", 350, times=3)
    assert sorted(answers(store, fetch(source("breaks"), store))) == ["one", "three", "two"]
    between.fail("drop", 100, times=1000)
    with pytest.raises(WorldFailed, match=r"cannot be reached|broke off"):
        fetch(source("breaks", recheck=True), Store(store.root / "other"))


def test_a_server_that_is_gone_or_stalls_is_answered_from_the_store_and_the_log_says_so(
    between: Any, store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tasks.sources.hub.ATTEMPTS", 2)
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    liked("gone", "one")
    snapshot = fetch(source("gone"), store)
    between.fail("stall", 0, times=1000)
    assert fetch(source("gone"), store) == snapshot
    assert f"Going on with {snapshot.revision}" in caplog.text
    between.close()
    assert fetch(source("gone"), store) == snapshot
    with pytest.raises(Unreachable, match=r"cannot be reached.*Check MLFLOW_TRACKING_URI"):
        fetch(source("other"), store)


def test_a_liked_trace_whose_spans_are_lost_is_counted(
    between: Any, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.protos.databricks_pb2 import BAD_REQUEST
    from mlflow.tracking import MlflowClient

    lost, _ = liked("lost", "one", "two")
    get = MlflowClient.get_trace

    def without(self: Any, trace_id: str, **how: Any) -> Any:
        if trace_id == lost:
            raise MlflowException("it is missing span data", error_code=BAD_REQUEST)
        return get(self, trace_id, **how)

    monkeypatch.setattr(MlflowClient, "get_trace", without)
    snapshot = fetch(source("lost"), store)
    assert (snapshot.rows_in, snapshot.rows, snapshot.set_aside) == (2, 1, {"no_spans": 1})


def test_consent_in_a_tag_and_a_column_that_traces_do_not_have(between: Any, store: Store) -> None:
    import mlflow

    yes, _ = liked("asked", "one", "two")
    mlflow.set_trace_tag(yes, "consent", "true")
    own = source("asked", consent="tags.consent", time="timestamp", max_age=2)
    snapshot = fetch(own, store)
    assert (answers(store, snapshot), snapshot.set_aside) == (["one"], {"no_consent": 1})
    with pytest.raises(BadInput, match=r"sources\.own\.consent: 'consent' is not a column.*trace_id.*tags"):
        fetch(source("asked", consent="consent"), store)


class Refusing(BaseHTTPRequestHandler):
    status, asked = 401, 0

    def do_GET(self) -> None:
        type(self).asked += 1
        self.send_response(self.status)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.mark.parametrize(
    ("status", "message", "asked"),
    [
        (401, r"refuses to be read.*MLFLOW_TRACKING_TOKEN", 1),
        (403, r"refuses to be read.*MLFLOW_TRACKING_USERNAME", 1),
        (429, r"failed \(.*429.*Run again later", 5),
        (500, r"failed \(.*500.*Run again later", 5),
        (503, r"failed \(.*503.*Run again later", 5),
    ],
)
def test_what_a_server_refuses_is_one_clear_error(
    store: Store, monkeypatch: pytest.MonkeyPatch, status: int, message: str, asked: int
) -> None:
    answering = type("Answers", (Refusing,), {"status": status})
    server = ThreadingHTTPServer(("127.0.0.1", 0), answering)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{server.server_address[1]}")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("tasks.sources.hub.FIRST_WAIT", 0.01)
    try:
        with pytest.raises(WorldFailed, match=message) as raised:
            fetch(source("chat"), store)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
    assert not isinstance(raised.value, Unreachable)
    assert answering.asked == asked
