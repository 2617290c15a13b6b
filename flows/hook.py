"""A webhook that starts a night: `POST /nights/RECIPE`, served by `nightowl up` where a secret is set, and by itself
with `nightowl hook`. `GET /health` answers 200 while it listens.

The secret is NIGHTOWL_TRIGGER_SECRET; it comes as `X-Webhook-Secret: ...` (as Hugging Face's webhooks send it) or as
`Authorization: Bearer ...`. What the body says is not read: the night asks the sources itself where they point, and one
in which nothing moved ends in seconds.
"""

from __future__ import annotations

import hmac
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from flows.server import Server
from tasks.errors import NightowlError

BODY_BYTES = 1_000_000
SILENCE_SECONDS = 30
"""How long a caller may say nothing before it is left."""


@contextmanager
def hook(port: int, server: Server, secret: str, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve it until the block ends; yields its address."""

    class Hook(BaseHTTPRequestHandler):
        timeout = SILENCE_SECONDS

        def do_GET(self) -> None:
            known = self.path == "/health"
            self._answer(200 if known else 404, {"status": "listening"} if known else {"error": "POST /nights/RECIPE"})

        def do_POST(self) -> None:
            length = self.headers.get("Content-Length", "0")
            if not length.isdecimal() or int(length) > BODY_BYTES:
                return self._answer(413, {"error": f"a body has at most {BODY_BYTES} bytes"})
            self.rfile.read(int(length))
            bearer = self.headers.get("Authorization", "").removeprefix("Bearer ")
            given = self.headers.get("X-Webhook-Secret") or bearer
            if not hmac.compare_digest(given.encode(), secret.encode()):
                return self._answer(401, {"error": "X-Webhook-Secret or Authorization: Bearer is not the secret"})
            start, _, recipe = self.path.partition("/nights/")
            try:
                found = server.get(f"/deployments/name/nightly/{recipe}") if not start and recipe else None
                if found is None:
                    return self._answer(404, {"error": f"no night of {unquote(recipe)} is deployed"})
                run = server.send("POST", f"/deployments/{found['id']}/create_flow_run", {})
            except NightowlError as error:
                return self._answer(502, {"error": str(error)})
            return self._answer(202, {"flow_run": run["id"]})

        def _answer(self, status: int, told: dict[str, str]) -> None:
            body = json.dumps(told).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """The runs that it starts are in Prefect."""

    with ThreadingHTTPServer((host, port), Hook) as listening:
        threading.Thread(target=listening.serve_forever, daemon=True).start()
        yield f"http://{host}:{listening.server_port}/nights/RECIPE"
        listening.shutdown()
