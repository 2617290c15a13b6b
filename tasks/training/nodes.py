"""A node that trains along: it finds the training that waits for it, and runs its part of one attempt.

The first node's training is a night's (process.py); see ranks.py for how they meet.
"""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path

from tasks.training.process import environment
from tasks.training.spec import FAILURE, RESULT, TrainingSpec


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
    from tasks.training import BACKENDS

    training = TrainingSpec.model_validate_json(file.read_bytes()).training
    command = [sys.executable, "-P", "-m", "tasks.training.ranks", BACKENDS[training.backend], str(file)]
    # The training process takes the end of its standard input for the end of who started it.
    with subprocess.Popen(
        command, cwd=file.parent, env=environment(training.processes), stdin=subprocess.PIPE
    ) as launched:
        return launched.wait()
