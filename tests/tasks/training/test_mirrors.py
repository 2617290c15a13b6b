"""Mirrors in the real wandb and swanlab, on disk and without an account; and in ones that fail or hang."""

from __future__ import annotations

import logging
import os
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.errors import BadInput
from tasks.training import Progress, figures, mirrored, require_installed

SECRETS = {
    "HF_TOKEN": "planted-hub-1f0c",
    "PGPASSWORD": "planted-database-2e9a",
    "WANDB_API_KEY": "a1b2c3d4" * 5,
    "SWANLAB_API_KEY": "planted-board-77d1",
}
ID = "f" * 8


def step(number: int) -> Progress:
    return Progress(step=number, steps=5, loss=1 / number, learning_rate=0.1, tokens_per_second=9.0, seconds=number)


@contextmanager
def opened(tracker: str, work: Path) -> Iterator[Any]:
    """A mirror and a function that reports a step to it and to the progress file, as training does."""
    told = {"id": ID, "name": "demo f", "project": "nightowl", "config": {"rank": 4}, "progress": work / "progress"}
    with mirrored([tracker], **told) as (mirror,):

        def report(number: int) -> None:
            with open(work / "progress", "a") as file:
                file.write(step(number).model_dump_json() + "\n")
            mirror.tell(number, figures(step(number)))

        yield mirror, report


def losses_of_wandb(run: Path) -> list[tuple[int, float]]:
    """Read from the run's file: after seven bytes, records of a checksum (4), a length (2), a type (1) and the data."""
    from wandb.proto import wandb_internal_pb2

    data = (run / f"run-{ID}.wandb").read_bytes()
    found, at = [], 7
    while at + 7 < len(data):
        length = int.from_bytes(data[at + 4 : at + 6], "little")
        assert data[at + 6] == 1, "a record that is not whole in one block"
        record = wandb_internal_pb2.Record()
        record.ParseFromString(data[at + 7 : at + 7 + length])
        told = {(item.key or item.nested_key[0]): item.value_json for item in record.history.item}
        if "loss" in told:
            found.append((int(told["_step"]), float(told["loss"])))
        at += 7 + length
    return found


def losses_of_swanlab(run: Path) -> list[tuple[int, float]]:
    from swanlab.proto.swanlab.record.v1.record_pb2 import Record
    from swanlab.sdk.internal.core_python.store import DataStoreReader

    reader = DataStoreReader()
    reader.open(str(run / f"run-{ID}.swanlab"))
    found = []
    for data in reader:
        record = Record()
        record.ParseFromString(data)
        if record.scalar.key == "loss":
            found.append((record.scalar.step, record.scalar.value.number))
    return found


LOSSES: dict[str, Callable[[Path], list[tuple[int, float]]]] = {
    "wandb": losses_of_wandb,
    "swanlab": losses_of_swanlab,
}


@pytest.mark.parametrize("tracker", LOSSES)
def test_a_run_that_was_killed_is_one_run_in_the_real_tracker_and_nothing_is_sent(
    tracker: str, nightowl_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Five steps once each, whatever was killed; no secret on disk; no connection, though there is an account's key."""
    for name, secret in SECRETS.items():
        monkeypatch.setenv(name, secret)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(scratch))
    monkeypatch.setenv("TMPDIR", str(scratch))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        here = f"http://127.0.0.1:{listener.getsockname()[1]}"
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "WANDB_BASE_URL", "SWANLAB_API_HOST"):
            monkeypatch.setenv(name, here)
        with opened(tracker, tmp_path) as (mirror, report):
            for number in (1, 2, 3):
                report(number)
            folder = nightowl_home / "trackers" / tracker
            bound = time.monotonic() + 60
            while not list(folder.glob(f"**/*run-*-{ID}")) and time.monotonic() < bound:
                time.sleep(0.05)
            os.killpg(mirror._process.pid, signal.SIGKILL)
        assert "is not whole" in caplog.text
        caplog.clear()
        with opened(tracker, tmp_path) as (mirror, report):
            for number in (3, 4, 5):  # step 3 came after the last checkpoint
                report(number)
            mirror.tell(5, {"validation_loss": 0.25})
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert not caplog.records
    assert not list(scratch.iterdir()), "it had temporary files"
    (run,) = folder.glob(f"**/*run-*-{ID}")
    assert LOSSES[tracker](run) == [(number, pytest.approx(1 / number)) for number in range(1, 6)]
    kept = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    assert b"validation_loss" in kept
    for private in (*SECRETS.values(), socket.gethostname(), "prefect=="):
        if len(private) > 3:
            assert private.encode() not in kept
    assert not list((tmp_path / "user").iterdir()), "nothing of it belongs in the user's home"
    assert not list(Path.cwd().iterdir())


def stand_in(folder: Path, body: str) -> None:
    (folder / "stand-in").mkdir()
    (folder / "stand-in" / "wandb.py").write_text(body)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("raise RuntimeError('no room on the server')", "its process ended with exit code 1"),
        ("import time; time.sleep(600)", "it was not done after 0.5 s"),
    ],
    ids=["fails", "hangs"],
)
def test_a_simulated_tracker_that_fails_or_hangs_costs_a_warning(
    body: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    stand_in(tmp_path, body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stand-in"))
    monkeypatch.setattr("tasks.training.mirrors._END_S", 30 if "raise" in body else 0.5)
    caplog.set_level(logging.WARNING)
    with opened("wandb", tmp_path) as (mirror, report):
        for number in range(1, 1001):
            report(number)
    assert said in caplog.text
    assert not psutil.pid_exists(mirror._process.pid)


def test_it_is_not_whole_where_it_was_too_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any) -> None:
    """Training never waits: what a full pipe does not take is counted."""
    stand_in(tmp_path, "import os, signal; os.kill(os.getpid(), signal.SIGSTOP); raise SystemExit(0)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "stand-in"))
    with opened("wandb", tmp_path) as (mirror, _):
        for number in range(1, 3001):
            mirror.tell(number, figures(step(number)))
        os.kill(mirror._process.pid, signal.SIGSTOP)
        os.kill(mirror._process.pid, signal.SIGKILL)
    assert mirror._missed > 0


def test_a_package_that_is_not_there_is_named_with_its_extra() -> None:
    require_installed([])
    with pytest.raises(
        BadInput, match=r"training\.trackers: 'absent' is not installed\. pip install 'nightowl\[absent"
    ):
        require_installed(["absent"])
