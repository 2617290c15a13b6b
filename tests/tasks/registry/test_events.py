"""Who is told of a move and of a night: a webhook that is signed, and whoever reads OpenLineage."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tasks.register import promote, rollback
from tasks.registry import Version, signature

pytestmark = pytest.mark.usefixtures("embedded")
Enter = Callable[[Any], Version]


class Listener(ThreadingHTTPServer):
    """An endpoint that keeps what it is sent and answers with the codes it is given, 200 when they are used up."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.heard: list[tuple[str, dict[str, str], bytes]] = []
        self.codes: list[int] = []
        self.url = f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    server: Listener

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.heard.append((self.path, dict(self.headers), body))
        self.send_response(self.server.codes.pop(0) if self.server.codes else 200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def listener(monkeypatch: pytest.MonkeyPatch) -> Iterator[Listener]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = Listener()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()


def test_every_move_is_told_and_signed(
    world: Any, enter: Enter, make: Callable[..., Any], listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTOWL_WEBHOOK_URL", f"{listener.url}/hook")
    monkeypatch.setenv("NIGHTOWL_WEBHOOK_SECRET", "a secret")
    monkeypatch.setattr("tasks.registry.webhook._WAIT", 0.01)
    first = enter(world)
    listener.codes = [503, 500]
    promote(first)
    promote(first)  # moves nothing
    promote(enter(make(seed=1, champion=world.adapter.address)), who="ada")
    rollback(first.model, who="bob", why="it swears")
    told = [(headers, json.loads(body)) for _, headers, body in listener.heard]
    assert [headers["X-Nightowl-Event"] for headers, _ in told] == ["promote"] * 4 + ["rollback"]
    assert {path for path, _, _ in listener.heard} == {"/hook"}
    for _, headers, body in listener.heard:
        assert headers["X-Nightowl-Signature"] == signature("a secret", headers["X-Nightowl-Timestamp"], body)
    last = told[-1][1]
    assert (last["model"], last["found"], last["to"], last["who"], last["why"]) == (
        first.model,
        2,
        1,
        "bob",
        "it swears",
    )


def test_a_move_stands_though_nobody_could_be_told(
    world: Any, enter: Enter, listener: Listener, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NIGHTOWL_WEBHOOK_URL", listener.url)
    version = enter(world)
    assert promote(version).moved
    assert listener.heard == []
    assert "nothing is sent unsigned" in caplog.text
    monkeypatch.setenv("NIGHTOWL_WEBHOOK_SECRET", "a secret")
    listener.codes = [404]
    assert rollback(version.model, to=1).moved is False
    promote(version)
    assert listener.heard == []  # nothing moved, nothing to tell


def test_a_night_is_told_in_openlineage(
    world: Any, enter: Enter, listener: Listener, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "events.jsonl"
    transport = {"type": "file", "log_file_path": str(file), "append": "true"}
    for name, value in transport.items():
        monkeypatch.setenv(f"OPENLINEAGE__TRANSPORT__{name.upper()}", value)
    enter(world)
    events = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    jobs = ["demo", *(f"demo.{stage}" for stage in ("data", "train", "register") for _ in range(2)), "demo"]
    assert [event["job"]["name"] for event in events] == jobs
    assert [event["eventType"] for event in events] == ["START", *["START", "COMPLETE"] * 3, "COMPLETE"]
    night = events[0]["run"]["runId"]
    assert {event["run"]["facets"]["parent"]["run"]["runId"] for event in events[1:-1]} == {night}
    assert uuid.UUID(night)
    data, train, register = events[2:-1:2]
    assert {entry["namespace"] for entry in data["inputs"]} == {"sample://", "gym://", "hf://"}
    assert data["outputs"][0]["facets"]["version"]["datasetVersion"] == world.mixture.address
    assert train["inputs"][0]["facets"] == data["outputs"][0]["facets"]
    assert train["inputs"][1]["name"] == "smollm2-135m-instruct"
    assert train["outputs"][0]["name"] == register["inputs"][0]["name"] == "demo.adapter"
    assert register["outputs"][0]["name"] == "nightowl-demo"

    for name in transport:
        monkeypatch.delenv(f"OPENLINEAGE__TRANSPORT__{name.upper()}")
    monkeypatch.setenv("OPENLINEAGE_URL", listener.url)
    listener.codes = [400] * 50
    enter(world)  # whoever listens is out of order, and the night goes on
    assert listener.heard[0][0] == "/api/v1/lineage"
