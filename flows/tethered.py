"""Runs a command that must not outlive the process that started it: `python -m flows.tethered COMMAND...`.

The parent holds the write end of this process's standard input. When the parent ends, however it
ends, the pipe closes and the command is terminated, and killed after ten seconds. A server started
for one night would otherwise keep its port and its database locked after a `kill -9` of that night.

What the command has started goes with it, in whatever session it runs and whoever its parent is now: it
is known by NIGHTOWL_TETHER in its environment. With NIGHTOWL_TETHER_LEAVES a command that ends by itself
leaves its own running: the nights of a worker that died go on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress
from types import FrameType

GRACE_SECONDS = 10
MARK = "NIGHTOWL_TETHER"
LEAVES = "NIGHTOWL_TETHER_LEAVES"


def main(command: list[str]) -> int:
    # A session of its own: Ctrl-C in the terminal reaches the parent alone, which then stops us in order.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    told_to = threading.Event()

    def stop(_signal: int = 0, _frame: FrameType | None = None) -> None:
        told_to.set()
        _send(child.pid, signal.SIGTERM)
        timer = threading.Timer(GRACE_SECONDS, _send, (child.pid, signal.SIGKILL))
        timer.daemon = True
        timer.start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    def watch() -> None:
        while os.read(0, 4096):
            pass
        stop()

    threading.Thread(target=watch, daemon=True).start()
    code = child.wait()
    if (told_to.is_set() or LEAVES not in os.environ) and (mark := os.environ.get(MARK)):
        end_marked(mark)
    return code


def end_marked(mark: str) -> None:
    """End every process with this mark in its environment, but this one."""
    import psutil

    left = []
    for process in psutil.process_iter():
        try:
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                process.terminate()
                left.append(process)
        except psutil.Error:
            continue
    for process in psutil.wait_procs(left, timeout=GRACE_SECONDS)[1]:
        with suppress(psutil.Error):
            process.kill()


def _send(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
