"""What a training process ran on, for the record that goes with an adapter."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

_LIBRARIES = ("torch", "unsloth", "unsloth-zoo", "transformers", "trl", "peft", "bitsandbytes")


def describe() -> dict[str, Any]:
    """Versions of the libraries, and the machine: processor, threads, GPU and its driver."""
    import torch

    found: dict[str, Any] = {name: metadata.version(name) for name in _LIBRARIES}
    found |= {
        "python": platform.python_version(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        found |= {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda, "driver": _driver()}
    return found


def peak_memory() -> int:
    """Bytes: the most that the GPU's allocator reserved, or without a GPU the process's largest resident size."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    with suppress(OSError):
        # Not getrusage, which counts what the parent held when it started this process as well.
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.partition("VmHWM:")[2].split()[0])
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _driver() -> str:
    try:
        query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, timeout=20, check=True).stdout.split("\n")[0]
    except (OSError, subprocess.SubprocessError):
        return "unknown"
