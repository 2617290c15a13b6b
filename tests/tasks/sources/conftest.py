"""A real PostgreSQL server and one that speaks S3, for the session."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def database(postgres: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Runs SQL as the owner of a database of the test's own; `uri` is its address, for `reader`."""
    postgres.databases += 1
    name = f"test_{postgres.databases}"
    with postgres.connect() as connection:
        connection.execute(f"CREATE DATABASE {name}")
    monkeypatch.setenv("PGPASSWORD", "reader secret")

    def run(sql: str, values: Any = None) -> list[Any]:
        with postgres.connect(name) as connection:
            done = connection.execute(sql, values)
            return list(done) if done.description else []

    run.uri = postgres.uri(name)  # type: ignore[attr-defined]
    run.server = postgres  # type: ignore[attr-defined]
    run("ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO reader")
    return run


@pytest.fixture
def bucket(moto: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """An empty bucket `logs` as a client of boto3's, with `put` and the environment that leads to it."""
    import boto3

    monkeypatch.setenv("AWS_ENDPOINT_URL", moto)
    for name, value in (("ACCESS_KEY_ID", "key"), ("SECRET_ACCESS_KEY", "secret"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr("tasks.sources.hub.FIRST_WAIT", 0.01)
    client = boto3.client("s3")
    urllib.request.urlopen(urllib.request.Request(f"{moto}/moto-api/reset", method="POST")).close()
    client.create_bucket(Bucket="logs")
    client.put = lambda key, body: client.put_object(Bucket="logs", Key=key, Body=body)  # type: ignore[attr-defined]
    return client


class Proxy:
    """A TCP proxy on the loopback that can break off or stall what a server sends.

    `sent`: bytes that the server has sent so far. `fail(how, after, times)`: open connections are cut, and each of the
    next ones, `times` of them, is dropped or stalled once it has brought `after` bytes.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.sent = 0
        self.stalled = threading.Event()
        self._faults: list[tuple[str, int]] = []
        self._released = threading.Event()
        self._open: list[socket.socket] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def fail(self, how: str, after: int, times: int = 1) -> None:
        self._faults = [(how, after)] * times
        self._cut()

    def close(self) -> None:
        self._released.set()
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._cut()

    def _cut(self) -> None:
        while self._open:
            with suppress(OSError):
                self._open.pop().shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self.upstream))
            except OSError:
                return
            self._open += [client, server]
            fault = self._faults.pop() if self._faults else ("", 0)
            threading.Thread(target=self._forward, args=(client, server, None), daemon=True).start()
            threading.Thread(target=self._forward, args=(server, client, fault), daemon=True).start()

    def _forward(self, source: socket.socket, target: socket.socket, fault: tuple[str, int] | None) -> None:
        how, left = fault or ("", 0)
        with suppress(OSError):
            while piece := source.recv(65536):
                if how and len(piece) > left:
                    target.sendall(piece[:left])
                    if how == "stall":
                        self.stalled.set()
                        self._released.wait(60)
                    break
                left -= len(piece)
                if fault is not None:
                    self.sent += len(piece)
                target.sendall(piece)
        for one in (source, target):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)


@pytest.fixture
def proxy() -> Iterator[Callable[[int], Proxy]]:
    """Makes a proxy in front of a port."""
    made: list[Proxy] = []

    def to(port: int) -> Proxy:
        made.append(Proxy(port))
        return made[-1]

    yield to
    for one in made:
        one.close()


@pytest.fixture
def in_a_process(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Fetches a source into a store in a process of its own, after some Python given as text; killed at the end."""
    started: list[subprocess.Popen[str]] = []

    def start(source: Any, root: Path, before: str = "") -> subprocess.Popen[str]:
        code = (
            "import sys; from pathlib import Path; from tasks.fetch import fetch; from tasks.recipe import Source; "
            "from tasks.store import Store; from tasks.errors import NightowlError\n"
            f"{before}\n"
            "try: print(fetch(Source.model_validate_json(sys.argv[2]), Store(Path(sys.argv[1]))).address)\n"
            "except NightowlError as error: sys.exit(str(error))\n"
        )
        started.append(
            subprocess.Popen(
                [sys.executable, "-c", code, str(root), source.model_dump_json()],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return started[-1]

    yield start
    for one in started:
        one.kill()
        one.communicate()


def wait_until(holds: Callable[[], object], what: str, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < until, f"{what}: not within {seconds} s"
        time.sleep(0.02)


@pytest.fixture(name="wait_until")
def wait_until_fixture() -> Callable[..., None]:
    """Waits for a condition, with a bound."""
    return wait_until
