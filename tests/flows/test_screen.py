"""A night outlives whoever reads what it prints."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from stack import wait_for

PRINTS = """
import os, stat, sys, time
from pathlib import Path
from rich.console import Console
from flows import screen
print("ready", flush=True)
deadline = time.monotonic() + 60
while any(stat.S_ISFIFO(os.fstat(stream).st_mode) for stream in (1, 2)):
    assert time.monotonic() < deadline
    time.sleep(0.01)
print("to nobody", flush=True)
Console(stderr=True).print("to nobody")
screen.tell()
screen.log.warning("to nobody")
Path(sys.argv[1]).write_text("went on")
"""


def test_a_run_goes_on_when_the_worker_that_reads_it_is_gone(tmp_path: Path) -> None:
    told = tmp_path / "told"
    with subprocess.Popen(
        [sys.executable, "-c", PRINTS, str(told)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        assert process.stderr
        assert process.stdout.readline() == "ready\n"
        process.stdout.close()
        process.stderr.close()
        wait_for(lambda: process.poll() is not None, 60)
    assert process.returncode == 0
    assert told.read_text() == "went on"
