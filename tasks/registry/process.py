"""Is the process that wrote this still there? For runs and claims that a killed process left open."""

from __future__ import annotations

import os
import socket
from functools import cache
from pathlib import Path

import psutil


@cache
def this_machine() -> str:
    """This machine as far as process ids mean the same thing: host, boot and pid namespace."""
    parts = [socket.gethostname()]
    for path in (Path("/proc/sys/kernel/random/boot_id"), Path("/proc/self/ns/pid")):
        try:
            parts.append(str(path.readlink()) if path.is_symlink() else path.read_text().strip())
        except OSError:
            continue
    return "/".join(parts)


def this_process() -> str:
    """This process: pid and time of birth, since pids come round again."""
    return f"{os.getpid()}@{psutil.Process().create_time():.0f}"


def alive(process: str) -> bool:
    """Whether a process of this machine, as `this_process` names it, still runs."""
    pid, _, born = process.partition("@")
    try:
        # The clock may be set in between, and the kernel counts from boot: a few seconds are the same moment.
        found = psutil.Process(int(pid))
        # A killed process that nobody has waited for, as in a container without an init, still has its pid.
        return abs(found.create_time() - float(born)) < 3 and found.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False
