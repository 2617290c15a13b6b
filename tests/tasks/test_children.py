"""What the processes that compute are given."""

from __future__ import annotations

import os

import pytest

from tasks import children


def test_cores_are_those_this_process_may_use() -> None:
    assert 1 <= children.cores() <= (os.cpu_count() or 1)


def test_the_caller_chooses_threads_and_how_they_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    chosen = children.environment()
    assert (chosen["OMP_NUM_THREADS"], chosen["OMP_WAIT_POLICY"]) == ("3", "ACTIVE")
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    ours = children.environment(processes=2)
    assert (ours["OMP_NUM_THREADS"], ours["OMP_WAIT_POLICY"]) == (str(max(1, children.cores() // 2)), "PASSIVE")
