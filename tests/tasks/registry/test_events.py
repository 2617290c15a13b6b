"""Who is told of a move and of a night: a webhook that is signed, and whoever reads OpenLineage."""

from __future__ import annotations

import inspect
import json
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest
from openlineage.client import facet_v2

from tasks.register import promote, rollback
from tasks.registry import Version, signature

pytestmark = pytest.mark.usefixtures("embedded")
Enter = Callable[[Any], Version]


# What https://openlineage.io/spec/2-0-2/OpenLineage.json asks of a run event, without its prose; the client's package
# has the facets as classes and no JSON Schema.
_URI = {"type": "string", "format": "uri"}
_FACETS = {
    "type": "object",
    "additionalProperties": {
        "type": "object",
        "required": ["_producer", "_schemaURL"],
        "properties": {"_producer": _URI, "_schemaURL": _URI},
    },
}
_TEXT = {"type": "string"}
_DATASETS = {
    "type": "array",
    "items": {
        "type": "object",
        "required": ["namespace", "name"],
        "properties": {
            "namespace": _TEXT, "name": _TEXT, "facets": _FACETS, "inputFacets": _FACETS, "outputFacets": _FACETS,
        },
    },
}  # fmt: skip
RUN_EVENT = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "type": "object",
    "required": ["eventTime", "producer", "schemaURL", "run", "job"],
    "properties": {
        "eventTime": {"type": "string", "format": "date-time"},
        "producer": _URI,
        "schemaURL": _URI,
        "eventType": {"enum": ["START", "RUNNING", "COMPLETE", "ABORT", "FAIL", "OTHER"]},
        "run": {
            "type": "object",
            "required": ["runId"],
            "properties": {"runId": {"type": "string", "format": "uuid"}, "facets": _FACETS},
        },
        "job": {
            "type": "object",
            "required": ["namespace", "name"],
            "properties": {"namespace": _TEXT, "name": _TEXT, "facets": _FACETS},
        },
        "inputs": _DATASETS,
        "outputs": _DATASETS,
    },
}


def facets(value: Any) -> Iterator[dict[str, Any]]:
    """Every facet of an event, wherever it hangs."""
    if isinstance(value, dict) and "_schemaURL" in value:
        yield value
    elif isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from facets(inner)


def hold_to_the_standard(events: list[dict[str, Any]]) -> set[str]:
    """Assert that every event and facet is as OpenLineage has them; returns the names of the facets."""
    validator = jsonschema_rs.Draft202012Validator(RUN_EVENT, validate_formats=True)
    modules = [value for value in vars(facet_v2).values() if inspect.ismodule(value)]
    seen = set()
    for event in events:
        validator.validate(event)
        for facet in facets(event):
            name = facet["_schemaURL"].rpartition("/")[2]
            made = next(getattr(module, name) for module in modules if hasattr(module, name))
            # A field that the facet has not, or one that it must have and is missing, is a TypeError.
            made(**{key: value for key, value in facet.items() if not key.startswith("_")})
            seen.add(name)
    return seen


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
    assert hold_to_the_standard(events) == {
        "ParentRunFacet",
        "JobTypeJobFacet",
        "DatasetVersionDatasetFacet",
        "InputStatisticsInputDatasetFacet",
        "OutputStatisticsOutputDatasetFacet",
        "TagsRunFacet",  # the client's own
    }
    with pytest.raises(jsonschema_rs.ValidationError, match="uuid"):
        hold_to_the_standard([{**events[0], "run": {"runId": "a night"}}])
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
