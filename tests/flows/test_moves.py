"""A move that a person makes on the command line is told to the Prefect server, as a night's is."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from flows.cli_registry import _tell_prefect
from tasks.registry import Move

MOVE = Move(
    number=2, kind="rollback", to=1, found=2, outcome="rolled back", moved=True, who="ada", why="it swears", at=""
)


class Events(BaseHTTPRequestHandler):
    heard: list[tuple[str, Any]]

    def do_POST(self) -> None:
        self.heard.append((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_move_by_hand_is_an_event(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    from prefect.events.schemas.events import Event

    _tell_prefect("nightowl-demo", MOVE)  # no server: nobody to tell
    handler = type("Heard", (Events,), {"heard": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{server.server_port}/api")
        _tell_prefect("nightowl-demo", MOVE)
        _tell_prefect("nightowl-demo", MOVE.model_copy(update={"moved": False}))
        server.shutdown()
    ((path, (body,)),) = handler.heard
    assert path == "/api/events"
    event = Event.model_validate(body)
    # What the automation "the champion changed" waits for.
    assert (event.event, event.resource.id) == ("nightowl.rollback", "nightowl.champion.nightowl-demo")
    assert event.payload["who"] == "ada"
    _tell_prefect("nightowl-demo", MOVE)  # gone by now: the champion has moved all the same
    assert "Prefect was not told" in caplog.text
