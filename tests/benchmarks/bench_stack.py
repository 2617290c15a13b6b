"""How long `nightowl up` takes to be ready, how much memory it takes when idle, how soon its nights come, and how it
takes a queue.

Memory is proportional set size: pages that processes share are counted once. Times are told as multiples of the time
that importing Prefect takes here as well, since a machine's own speed says little. The queue: QUEUED runs of a small
flow on the gpu pool, all at once; each has to complete, and no two may overlap. The night of a tiny recipe runs twice,
in one process and on the pools: how long it waits between two stages, and how long the second, which has nothing to do.
Takes about five minutes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "fixtures"))

from stack import recipe_on, tiny_model

from flows.component import free_port
from flows.server import Server

BOUND = 1.5e9  # bytes
READY, FIRST_LINE, BETWEEN, SKIPPED = 60, 15, 10, 10  # seconds
SKIPS = 6
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
            server = Server(urls["prefect"])
            first = line_of_a_night(server)
            two = {placement: two_nights(server, placement, Path(home), environment) for placement in ("here", "pools")}
            queue = queued(server)
            up.send_signal(signal.SIGINT)
    total = sum(used.values())
    print(f"idle memory {total / 1e6:.0f} MB, {total / BOUND:.0%} of the bound of {BOUND / 1e9:.1f} GB")
    print(f"first line of a night {first:.0f} s after it was asked for (bound {FIRST_LINE}), {first / unit:.1f} times")
    for placement, (waits, skipped, parts) in two.items():
        most = max(waits.values())
        print(f"{placement}: between two stages at most {most:.1f} s (bound {BETWEEN}), {most / unit:.1f} times")
        print("  " + ", ".join(f"{stages} {seconds:.1f}" for stages, seconds in waits.items()))
        usual = median(skipped)
        print(f"  a skipped night {usual:.1f} s (bound {SKIPPED}), {usual / unit:.1f} times; of {SKIPS} at most "
              f"{max(skipped):.1f} s")  # fmt: skip
        print("  " + ", ".join(f"{part} {seconds:.1f}" for part, seconds in parts.items()))
    print(f"{QUEUED} queued runs on the gpu pool: {queue}")
    print(f"ready after {took:.0f} s (bound {READY}), {took / unit:.1f} times an import of Prefect ({unit:.1f} s)")


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


def two_nights(
    server: Server, placement: str, home: Path, environment: Mapping[str, str]
) -> tuple[dict[str, float], list[float], dict[str, float]]:
    """Seconds between a first night's stages, seconds of the nights after, and what those went into (medians).

    By the server's clock: from asking to the end, and between the end of a stage's flow and the start of the next.
    """
    recipe = {**recipe_on(tiny_model(home / "base")), "name": f"tiny-{placement}", "placement": placement}
    # Rows of its own: what is in the store already needs no run on a pool.
    recipe["sources"] = [{**recipe["sources"][0], "uri": f"sample://chat?size=120&seed={len(placement)}"}]
    file = home / f"{recipe['name']}.yaml"
    file.write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "flows.cli", "deploy", str(file), "--json"]
    subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)
    first, _ = night(server, recipe["name"])
    query = {"flow_runs": {"parent_flow_run_id": {"any_": [first["id"]]}}, "sort": "START_TIME_ASC"}
    stages = server.send("POST", "/flow_runs/filter", query)
    names = [stage["name"].partition(":")[0] for stage in stages]
    assert len(names) == 4, names
    waits = {
        f"{ended} to {started}": moment(after["start_time"]) - moment(before["end_time"])
        for (ended, started), (before, after) in zip(pairwise(names), pairwise(stages), strict=True)
    }
    skipped, parts = [], defaultdict[str, list[float]](list)
    for _ in range(SKIPS):
        run, asked = night(server, recipe["name"])
        states = server.get(f"/flow_run_states/?flow_run_id={run['id']}")
        marks = {state["type"]: moment(state["timestamp"]) for state in states}
        skipped.append(marks["COMPLETED"] - asked)
        parts["the worker's look"].append(marks["PENDING"] - asked)
        parts["its process"].append(marks["RUNNING"] - marks["PENDING"])
        parts["the night"].append(marks["COMPLETED"] - marks["RUNNING"])
    return waits, skipped, {part: median(seconds) for part, seconds in parts.items()}


def night(server: Server, recipe: str) -> tuple[dict[str, Any], float]:
    """A night when it has ended, and when it was asked for."""
    nightly = server.get(f"/deployments/name/nightly/{recipe}")["id"]
    asked = datetime.now(UTC).timestamp()
    run = server.send("POST", f"/deployments/{nightly}/create_flow_run", {})
    while run["state_type"] not in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
        time.sleep(0.5)
        run = server.get(f"/flow_runs/{run['id']}")
    assert run["state_type"] == "COMPLETED", run["state"]["message"]
    return run, asked


def moment(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


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
