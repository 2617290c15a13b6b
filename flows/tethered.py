"""Runs a command that must not outlive the process that started it: `python -m flows.tethered COMMAND...`.

The parent holds the write end of this process's standard input. When the parent ends, however it
ends, the pipe closes and the command is terminated, and killed after ten seconds. A server started
for one night would otherwise keep its port and its database locked after a `kill -9` of that night.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from types import FrameType

GRACE_SECONDS = 10


def main(command: list[str]) -> int:
    # A session of its own: Ctrl-C in the terminal reaches the parent alone, which then stops us in order.
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)

    def stop(_signal: int = 0, _frame: FrameType | None = None) -> None:
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
    return child.wait()


def _send(group: int, number: int) -> None:
    try:
        os.killpg(group, number)
    except ProcessLookupError:
        return


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
