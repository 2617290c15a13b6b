"""The local servers start, answer on 127.0.0.1 only, share a home, and never outlive who started them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import psutil
import pytest

from flows import component, services
from flows.tethered import LEAVES
from tasks.errors import WorldFailed

ROOT = Path(__file__).resolve().parents[2]


def test_a_command_ends_with_the_process_that_started_it(wait_gone: Callable[[list[int]], None]) -> None:
    started = "import time; print('up', flush=True); time.sleep(600)"
    parent = f"""
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-m", "flows.tethered", sys.executable, "-c", {started!r}],
                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
time.sleep(600)
"""
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout
        tether = psutil.Process(int(process.stdout.readline()))
        pids = [tether.pid, *(child.pid for child in tether.children(recursive=True))]
        assert len(pids) == 2
        process.kill()
    wait_gone(pids)


def test_what_a_worker_started_ends_with_the_stack_though_the_worker_was_killed(
    nightowl_home: Path, wait_for: Callable[..., Any], wait_gone: Callable[[list[int]], None]
) -> None:
    night = [sys.executable, "-c", "import time; print('night', flush=True); time.sleep(600)"]
    worker = f"import subprocess, time; subprocess.Popen({night!r}, start_new_session=True); time.sleep(600)"
    log = nightowl_home / "logs" / "worker.log"
    with component.component("worker", [sys.executable, "-c", worker], {LEAVES: "1"}) as part:
        wait_for(lambda: log.exists() and "night" in log.read_text(), 60)
        family = psutil.Process(part.process.pid).children(recursive=True)
        (its,) = (one for one in family if "print('night'" in one.cmdline()[-1] and "Popen" not in one.cmdline()[-1])
        its.parent().kill()
        part.process.wait(60)
        assert its.is_running()  # the night goes on
        part.start()
        wait_for(lambda: log.read_text().count("night") == 2, 60)
    wait_gone([its.pid])


def test_what_a_server_started_ends_with_it(
    nightowl_home: Path, wait_for: Callable[..., Any], wait_gone: Callable[[list[int]], None]
) -> None:
    """A child that outlives its server would keep the port, and the server could not be started again."""
    child = [sys.executable, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(600)"]
    server = f"import subprocess, os, time; subprocess.Popen({child!r}); time.sleep(1); os.kill(os.getpid(), 9)"
    log = nightowl_home / "logs" / "server.log"
    with component.component("server", [sys.executable, "-c", server], {}) as part:
        pid = wait_for(lambda: log.exists() and log.read_text().strip(), 60)
        part.process.wait(60)
        wait_gone([int(pid)])


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert component.free_port(port) not in (0, port)
    assert component.free_port(port) == port


def test_a_server_that_ends_says_why(nightowl_home: Path) -> None:
    command = [sys.executable, "-c", "print('no licence for today'); raise SystemExit(3)"]
    with (
        component.component("broken", command, {}) as part,
        pytest.raises(WorldFailed, match=r"broken: ended \(no licence for today\).*broken\.log"),
    ):
        component.wait_healthy(part, lambda: False)


def test_a_server_that_is_busy_for_a_moment_is_up_and_one_that_was_killed_is_not(nightowl_home: Path) -> None:
    answers = iter([503, 503, 200])

    class Busy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(next(answers, 503))
            self.end_headers()

        def log_message(self, *about: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Busy) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        noted = {"prefect": f"http://127.0.0.1:{server.server_port}/api", "mlflow": "", "pid": os.getpid()}
        nightowl_home.mkdir()
        (nightowl_home / "up.json").write_text(json.dumps(noted))
        assert services.is_up() == noted
        with subprocess.Popen([sys.executable, "-c", ""]) as ended:
            pass
        (nightowl_home / "up.json").write_text(json.dumps({**noted, "pid": ended.pid}))
        assert services.is_up() is None
        server.shutdown()


def test_a_relative_home_is_the_same_in_every_working_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run of a worker is in a temporary one: its night would be made anew there each time, and be lost."""
    here = Path.cwd()
    monkeypatch.delenv("NIGHTOWL_HOME")
    assert component.environment()["NIGHTOWL_HOME"] == str(here / ".nightowl")
    monkeypatch.setenv("NIGHTOWL_HOME", "nights")
    monkeypatch.setenv("NIGHTOWL_STORE", "data/store")
    given = component.environment()
    assert (given["NIGHTOWL_HOME"], given["NIGHTOWL_STORE"]) == (str(here / "nights"), str(here / "data" / "store"))
    monkeypatch.setenv("NIGHTOWL_STORE", "s3://bucket/store")
    assert "NIGHTOWL_STORE" not in component.environment()  # as it is in this process's own
