"""How long `nightowl up` takes to be ready, how much memory it takes when idle, and how it takes a queue.

Memory is proportional set size: pages that processes share are counted once. Times are told as multiples of the time
that importing Prefect takes here as well, since a machine's own speed says little. The queue: QUEUED runs of a small
flow on the gpu pool, all at once; each has to complete, and no two may overlap.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

import psutil

from flows.component import free_port
from flows.server import Server

BOUND = 1.5e9  # bytes
QUEUED = int(os.environ.get("BENCH_QUEUED", "30"))


def main() -> None:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import prefect.flows"], check=True)
    unit = time.monotonic() - started
    with tempfile.TemporaryDirectory() as home:
        command = [sys.executable, "-m", "flows.cli", "up", "--json"]
        command += ["--prefect-port", str(free_port(0)), "--mlflow-port", str(free_port(0))]
        environment = {**os.environ, "NIGHTOWL_HOME": home}
        started = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment) as up:
            assert up.stdout
            urls = json.loads(up.stdout.readline())
            took = time.monotonic() - started
            family = [psutil.Process(up.pid), *psutil.Process(up.pid).children(recursive=True)]
            used = {process.pid: process.memory_full_info().pss for process in family}
            for process in family:
                words = [Path(word).name for word in process.cmdline() if not word.startswith("-")][1:5]
                print(f"{used[process.pid] / 1e6:7.0f} MB  {' '.join(words)}")
            first, queue = line_of_a_night(Server(urls["prefect"])), queued(Server(urls["prefect"]))
            up.send_signal(signal.SIGINT)
    total = sum(used.values())
    print(f"idle memory {total / 1e6:.0f} MB, {total / BOUND:.0%} of the bound of {BOUND / 1e9:.1f} GB")
    print(f"first line of a night {first:.0f} s after it was asked for, {first / unit:.1f} times")
    print(f"{QUEUED} queued runs on the gpu pool: {queue}")
    print(f"ready after {took:.0f} s, {took / unit:.1f} times an import of Prefect ({unit:.1f} s)")


def line_of_a_night(server: Server) -> float:
    """Seconds from asking for the demo's night until its log has a line of ours; it is cancelled then."""
    started = time.monotonic()
    nightly = server.get("/deployments/name/nightly/demo")["id"]
    run = server.send("POST", f"/deployments/{nightly}/create_flow_run", {})["id"]
    query = {"logs": {"flow_run_id": {"any_": [run]}}, "limit": 50}
    while not any(line["name"] == "nightowl" for line in server.send("POST", "/logs/filter", query)):
        time.sleep(0.2)
    took = time.monotonic() - started
    server.send("POST", f"/flow_runs/{run}/set_state", {"state": {"type": "CANCELLING"}})
    return took


def queued(server: Server) -> str:
    """What became of the queue."""
    watch = server.get("/deployments/name/watch-sources/demo")
    kept = ("flow_id", "entrypoint", "parameters", "parameter_openapi_schema")
    body = {"name": "queue", "work_pool_name": "gpu", **{name: watch[name] for name in kept}}
    deployment = server.send("POST", "/deployments/", body)["id"]
    for _ in range(QUEUED):
        server.send("POST", f"/deployments/{deployment}/create_flow_run", {})
    query = {"deployments": {"id": {"any_": [deployment]}}, "sort": "START_TIME_ASC"}
    while True:
        runs = server.send("POST", "/flow_runs/filter", query)
        if all(run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") for run in runs):
            break
        time.sleep(2)
    completed = sum(run["state_type"] == "COMPLETED" for run in runs)
    overlaps = sum(after["start_time"] < before["end_time"] for before, after in pairwise(runs))
    return f"{completed} completed, {len(runs) - completed} did not, {overlaps} overlapped"


if __name__ == "__main__":
    main()
