"""A process is gone once it has been killed, whether or not its parent has noticed."""

from __future__ import annotations

import os
import subprocess
import sys

import psutil

from tasks.registry.process import alive, this_process


def test_a_killed_process_is_gone_before_its_parent_has_waited_for_it() -> None:
    assert alive(this_process())
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        named = f"{child.pid}@{psutil.Process(child.pid).create_time():.0f}"
        assert alive(named)
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it has ended, and is still to be waited for
        assert psutil.pid_exists(child.pid)
        assert not alive(named)
    assert not alive(named)
