"""Mirrors of training's figures in trackers beside MLflow, each fed by a process of its own.

A mirror is a convenience: one that is slow, fails or hangs costs the night nothing but a warning. Its process is given
figures line by line on a pipe that is never waited for, an environment without this one's secrets, and its place under
NIGHTOWL_HOME. It sends nothing anywhere unless the tracker's own variable says so: WANDB_MODE=online or
SWANLAB_MODE=online.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.children import import_path
from tasks.errors import BadInput
from tasks.store import home
from tasks.training.schema import Progress

log = logging.getLogger("nightowl")

_END_S = 60  # for what is left to write, once training is done
_HURRY_S = 10  # the same, when this process has to stop
_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ")
_ONLINE = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")


class Mirrored(BaseModel):
    """What a mirror's process is told. `id`: the adapter's address, so that every attempt feeds one run; `progress`:
    the file with what earlier attempts reported; `online`: whether the tracker may send."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    tracker: str
    online: bool
    folder: Path
    progress: Path
    id: str
    name: str
    project: str
    config: dict[str, Any]


class Mirror:
    """One tracker's process, and what it could not be told."""

    def __init__(self, told: Mirrored) -> None:
        self.told = told
        self.log = told.folder / f"{told.id}.log"
        self._missed = 0
        self._scratch = TemporaryDirectory(ignore_cleanup_errors=True)
        with open(self.log, "wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.training.mirror_process", told.model_dump_json()],
                cwd=told.folder,
                env=_environment(told) | {"TMPDIR": self._scratch.name},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for training; this ends when its input does
            )
        assert self._process.stdin
        self._input = self._process.stdin.fileno()
        os.set_blocking(self._input, False)

    def tell(self, step: int, figures: Mapping[str, float]) -> None:
        """Figures of a step, as far as the pipe takes them."""
        try:
            os.write(self._input, json.dumps({"step": step, "figures": figures}).encode() + b"\n")
        except OSError:
            self._missed += 1

    def end(self, seconds: float) -> None:
        """Let it write what is left, for so long; a warning says what went wrong."""
        assert self._process.stdin
        self._process.stdin.close()
        try:
            code = self._process.wait(seconds)
            wrong = f"its process ended with exit code {code}" if code else ""
        except subprocess.TimeoutExpired:
            wrong = f"it was not done after {seconds:g} s"
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)  # the helpers that a tracker leaves behind as well
        self._process.wait()
        self._scratch.cleanup()  # a tracker that was killed has not
        if not wrong and self._missed:
            wrong = f"it was too slow for {self._missed} steps"
        if wrong:
            log.warning("  the mirror in %s is not whole: %s. Its log is %s", self.told.tracker, wrong, self.log)


def require_installed(trackers: Sequence[str]) -> None:
    """Raise BadInput for a tracker whose package is not there."""
    for tracker in trackers:
        if find_spec(tracker) is None:
            raise BadInput(
                "training.trackers",
                tracker,
                "is not installed",
                f"pip install 'nightowl[{tracker}]', or leave it out.",
            )


@contextmanager
def mirrored(trackers: Sequence[str], **told: Any) -> Iterator[list[Mirror]]:
    """Mirrors while training runs; `told`: the fields of Mirrored that are the same for all."""
    mirrors: list[Mirror] = []
    for tracker in trackers:
        try:
            folder = home() / "trackers" / tracker
            folder.mkdir(parents=True, exist_ok=True)
            online = os.environ.get(f"{tracker.upper()}_MODE", "").lower() in ("online", "cloud")
            mirrors.append(Mirror(Mirrored(tracker=tracker, folder=folder, online=online, **told)))
        except OSError as error:
            log.warning("  no mirror in %s: %s", tracker, error)
    seconds = _HURRY_S
    try:
        yield mirrors
        seconds = _END_S
    finally:
        for mirror in mirrors:
            mirror.end(seconds)


def figures(progress: Progress) -> dict[str, float]:
    """What a mirror is told of a step."""
    return progress.model_dump(exclude={"step", "steps"}, exclude_none=True)


def _environment(told: Mirrored) -> dict[str, str]:
    """Nothing of this process's environment that a tracker might keep or send, but its own where it may send."""
    prefix = f"{told.tracker.upper()}_"
    kept = {name: value for name, value in os.environ.items() if name in _KEPT}
    if told.online:
        kept |= {n: v for n, v in os.environ.items() if n.startswith(prefix) or n.upper() in _ONLINE}
    places = {f"WANDB_{name}_DIR": str(told.folder / name.lower()) for name in ("CACHE", "CONFIG", "DATA", "ARTIFACT")}
    return kept | {
        "PYTHONPATH": import_path(),
        "DO_NOT_TRACK": "1",
        "WANDB_DIR": str(told.folder),
        **places,
        "WANDB_ERROR_REPORTING": "false",
        "XDG_CACHE_HOME": str(told.folder / "cache"),
        "SWANLAB_ROOT": str(told.folder / "root"),
    }
