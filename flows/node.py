"""One pod of a stage on a cluster: `python -m flows.node COMMAND...`, as infra/kubernetes/gpu-pool.json starts it.

A stage whose recipe says `training.nodes: N` is an indexed Job of N pods on one NIGHTOWL_HOME. The first runs the
stage. The others wait until its training meets them at `training.rendezvous`, and train along with PyTorch's elastic
launcher, attempt after attempt; the Job's success policy ends them when the first has ended.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from tasks.store import Store
from tasks.training import BACKENDS
from tasks.training.spec import FAILURE, RESULT, TrainingSpec

LOOK_SECONDS = 2


def main(command: list[str]) -> int:
    if os.environ.get("JOB_COMPLETION_INDEX", "0") == "0":
        os.execvp(command[0], command)
    while True:
        file = meeting(Store.open().root / "work")
        code = train_along(file) if file else 0
        if code:
            print(f"{file}: this attempt ended with exit code {code}", file=sys.stderr, flush=True)
        time.sleep(LOOK_SECONDS)


def meeting(work: Path) -> Path | None:
    """The newest spec below the store's work that several nodes train by, once the first node waits for them."""
    specs = sorted(work.glob("*/**/spec.json"), key=lambda path: path.stat().st_mtime)
    if not specs or any((specs[-1].parent / name).exists() for name in (RESULT, FAILURE)):
        return None
    training = TrainingSpec.model_validate_json(specs[-1].read_bytes()).training
    if training.nodes == 1 or training.rendezvous is None:
        return None
    host, _, port = training.rendezvous.rpartition(":")
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError:
        return None
    return specs[-1]


def train_along(file: Path) -> int:
    """This node's part of one attempt; its exit code."""
    from tasks.training.process import _environment

    training = TrainingSpec.model_validate_json(file.read_bytes()).training
    command = [sys.executable, "-P", "-m", "tasks.training.ranks", BACKENDS[training.backend], str(file)]
    # The training process takes the end of its standard input for the end of who started it.
    with subprocess.Popen(
        command, cwd=file.parent, env=_environment(training.processes), stdin=subprocess.PIPE
    ) as launched:
        return launched.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
