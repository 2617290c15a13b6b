"""How long `nightowl up` takes to be ready, and how much memory it takes when idle.

Memory is proportional set size: pages that processes share are counted once. The start is told as a multiple of the
time that importing Prefect takes here, since a machine's own speed says little.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

from flows.component import free_port

BOUND = 1.5e9  # bytes


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
            json.loads(up.stdout.readline())
            took = time.monotonic() - started
            family = [psutil.Process(up.pid), *psutil.Process(up.pid).children(recursive=True)]
            used = {process.pid: process.memory_full_info().pss for process in family}
            for process in family:
                words = [Path(word).name for word in process.cmdline() if not word.startswith("-")][1:5]
                print(f"{used[process.pid] / 1e6:7.0f} MB  {' '.join(words)}")
            up.send_signal(signal.SIGINT)
    total = sum(used.values())
    print(f"idle memory {total / 1e6:.0f} MB, {total / BOUND:.0%} of the bound of {BOUND / 1e9:.1f} GB")
    print(f"ready after {took:.0f} s, {took / unit:.1f} times an import of Prefect ({unit:.1f} s)")


if __name__ == "__main__":
    main()
