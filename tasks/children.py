"""What the processes that compute have in common: training and evaluation start one each."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
"""The folder from which a child imports this code."""


def environment(processes: int = 1) -> dict[str, str]:
    """A child's environment: this code to import, offline, and a thread for each core that it may use.

    `processes`: how many on this machine share the cores.
    """
    given = dict(os.environ)
    return given | {
        "PYTHONPATH": import_path(),
        "OMP_NUM_THREADS": given.get("OMP_NUM_THREADS") or str(max(1, cores() // processes)),
        # Threads that spin while they wait cost a factor of ten as soon as another process wants a core.
        "OMP_WAIT_POLICY": given.get("OMP_WAIT_POLICY", "PASSIVE"),
        "TOKENIZERS_PARALLELISM": "false",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "DO_NOT_TRACK": "1",
    }


def import_path() -> str:
    """PYTHONPATH with this code at its head."""
    return os.pathsep.join(path for path in (str(ROOT), os.environ.get("PYTHONPATH", "")) if path)


def cores() -> int:
    """CPU cores that this process may use: its affinity, and the quota of its control group."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, math.ceil(int(quota) / int(period))))
    return count
