"""One part of the stack: a process on 127.0.0.1 with a log of its own, which never outlives who started it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from flows.passwords import access
from flows.tethered import MARK, end_marked
from tasks.errors import WorldFailed
from tasks.store import home

START_SECONDS = 120
MOST_RESTARTS = 10


def environment() -> dict[str, str]:
    """Environment of every process of ours: state under the home, no telemetry, quiet consoles; in the
    server profile, the way to its servers.

    What the user has set stays as it is.
    """
    defaults = {
        "PREFECT_HOME": str(home() / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "nightowl",
        # The terminal tells the story of the night itself; Prefect's own lines are in its UI.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "true",
        # Threads that wait for each other sleep instead of spinning: on cores shared with others, steps take a third.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    kept = {name: os.environ.get(name, value) for name, value in (defaults | access()).items()}
    # A run of a worker has a working directory of its own, where a relative path would lead elsewhere.
    kept["NIGHTOWL_HOME"] = str(home())
    store = os.environ.get("NIGHTOWL_STORE")
    if store and "://" not in store:
        kept["NIGHTOWL_STORE"] = str(Path(store).expanduser().absolute())
    return kept


def free_port(preferred: int) -> int:
    """The preferred TCP port of 127.0.0.1 where it is free, else one that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise WorldFailed("127.0.0.1", "no TCP port is free", "End a server that you no longer need.")


@dataclass
class Component:
    """A part of the stack; its output goes to `<home>/logs/<name>.log`. `before`: done each time before it starts."""

    name: str
    command: Sequence[str]
    extra: Mapping[str, str]
    before: Callable[[], object] | None = None
    process: subprocess.Popen[bytes] = field(init=False)

    def start(self) -> None:
        if self.before:
            self.before()
        log = _log(self.name)
        log.parent.mkdir(exist_ok=True)
        with open(log, "ab") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "flows.tethered", *self.command],
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                env={**os.environ, **environment(), **self.extra, MARK: self._mark},
            )

    @property
    def _mark(self) -> str:
        return f"{os.getpid()}-{self.name}"

    def stop(self) -> None:
        if self.process.poll() is not None:  # it may have left what it had started
            end_marked(self._mark)
            return
        if self.process.stdin:
            self.process.stdin.close()
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@contextmanager
def component(
    name: str, command: Sequence[str], extra: Mapping[str, str], before: Callable[[], object] | None = None
) -> Iterator[Component]:
    """Run a part of the stack until the block ends."""
    part = Component(name, command, extra, before)
    part.start()
    try:
        yield part
    finally:
        part.stop()


def keep_running(parts: Sequence[Component]) -> NoReturn:
    """Start again whichever part ends by itself, for as long as nothing interrupts this.

    Raises WorldFailed when one ends MOST_RESTARTS times within an hour.
    """
    restarts: list[tuple[float, str]] = []
    waiting: set[str] = set()
    while True:
        for part in parts:
            if part.process.poll() is None:
                continue
            if part.name not in waiting:
                now = time.monotonic()
                restarts = [(when, name) for when, name in restarts if now - when < 3600]
                restarts.append((now, part.name))
                if [name for _, name in restarts].count(part.name) > MOST_RESTARTS:
                    raise WorldFailed(part.name, "ends again and again", f"Its log is {_log(part.name)}.")
                print(f"{part.name} ended ({part.process.returncode}); starting it again", file=sys.stderr, flush=True)
            try:
                part.start()
                waiting.discard(part.name)
            except WorldFailed:  # it asks a part that is being started again itself
                waiting.add(part.name)
        time.sleep(1)


def wait_healthy(part: Component, healthy: Callable[[], bool]) -> None:
    """Wait until a component is healthy.

    Raises WorldFailed with its log's last lines when it ends early or is not healthy within START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    while not healthy():
        if part.process.poll() is not None or time.monotonic() > deadline:
            state = "ended" if part.process.poll() is not None else f"did not answer within {START_SECONDS} s"
            tail = " | ".join(_log(part.name).read_text(errors="replace").splitlines()[-5:])
            raise WorldFailed(part.name, f"{state} ({tail})", f"The whole log is {_log(part.name)}.")
        time.sleep(0.1)


def _log(name: str) -> Path:
    return home() / "logs" / f"{name}.log"


def answers(url: str) -> bool:
    try:
        # No proxy: the address is this machine's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False
