"""The local servers start, answer on 127.0.0.1 only, share a home, and never outlive who started them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from flows import services
from tasks.errors import WorldFailed

ROOT = Path(__file__).resolve().parents[2]


def wait_gone(pids: list[int]) -> None:
    there = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # it may end between any look at it and the next
            there.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(there, timeout=40)
    assert alive == []


def test_a_command_ends_with_the_process_that_started_it(tmp_path: Path) -> None:
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


def test_a_taken_port_is_passed_over() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert services.free_port(port) not in (0, port)
    assert services.free_port(port) == port


def test_a_server_that_ends_says_why(nightowl_home: Path) -> None:
    command = [sys.executable, "-c", "print('no licence for today'); raise SystemExit(3)"]
    with (
        pytest.raises(WorldFailed, match=r"broken server: ended \(no licence for today\).*broken\.log"),
        services.server("broken", command, "http://127.0.0.1:1/health", {}),
    ):
        pytest.fail("it was taken for healthy")


def test_up_serves_both_and_stops_on_ctrl_c(nightowl_home: Path) -> None:
    command = [sys.executable, "-m", "flows.cli", "up", "--json"]
    command += ["--prefect-port", str(services.free_port(0)), "--mlflow-port", str(services.free_port(0))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT, env=os.environ.copy(), text=True) as process:
        assert process.stdout
        urls = json.loads(process.stdout.readline())
        pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        listening = {c.laddr.ip for pid in pids for c in psutil.Process(pid).net_connections() if c.status == "LISTEN"}
        assert listening == {"127.0.0.1"}
        for url, expected in ((urls["prefect"][:-4], "Prefect"), (urls["mlflow"], "MLflow")):
            with urllib.request.urlopen(url, timeout=30) as page:
                assert expected in page.read().decode()
        second = subprocess.run(command, capture_output=True, cwd=ROOT, text=True, check=True, timeout=120)
        assert json.loads(second.stdout)["prefect"] == urls["prefect"]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    wait_gone(pids)
    assert services.is_up() is None
