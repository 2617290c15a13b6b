"""The process that feeds one tracker: `python -m tasks.training.mirror_process MIRRORED_JSON`, figures on its input.

Where a tracker keeps its runs on disk, a run that an earlier attempt began is made anew from what training has
reported, since neither tracker can go on with one there; online it is gone on with, by its id.
"""

from __future__ import annotations

import json
import shutil
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from importlib.util import find_spec

from filelock import FileLock

from tasks.training.mirrors import Mirrored, figures
from tasks.training.schema import Progress

Log = Callable[[int, Mapping[str, float]], None]
_WAIT_S = 90  # for an earlier attempt's process, which ends as soon as it has written what it was told


def main() -> None:
    told = Mirrored.model_validate_json(sys.argv[1])
    with FileLock(told.folder / f"{told.id}.lock", timeout=_WAIT_S):
        if not told.online:
            for left in told.folder.glob(f"**/*run-*-{told.id}"):
                shutil.rmtree(left)
        start = {"wandb": _wandb, "swanlab": _swanlab}[told.tracker]
        write, finish = start(told)
        last = 0
        for step, of_step in _told(told):
            # What training repeats after a crash is what it reported before. The end's figures share the last step.
            if step > last or "loss" not in of_step:
                write(step, of_step)
                last = step
        finish()


def _told(told: Mirrored) -> Iterator[tuple[int, dict[str, float]]]:
    if not told.online and told.progress.is_file():
        for line in told.progress.read_text(encoding="utf-8").split("\n")[:-1]:
            progress = Progress.model_validate_json(line)
            yield progress.step, figures(progress)
    for line in sys.stdin:
        given = json.loads(line)
        yield given["step"], given["figures"]


def _wandb(told: Mirrored) -> tuple[Log, Callable[[], None]]:
    import wandb

    run = wandb.init(
        project=told.project,
        name=told.name,
        id=told.id,
        resume="allow" if told.online else None,
        mode="online" if told.online else "offline",
        dir=told.folder,
        config=told.config,
        # Curves and settings, and nothing about the machine, its packages or its code.
        settings=wandb.Settings(
            console="off",
            silent=True,
            disable_git=True,
            disable_code=True,
            disable_job_creation=True,
            x_disable_meta=True,
            x_disable_stats=True,
            x_disable_machine_info=True,
            x_save_requirements=False,
        ),
    )
    return lambda step, of_step: run.log(dict(of_step), step=step), run.finish


def _swanlab(told: Mirrored) -> tuple[Log, Callable[[], None]]:
    import swanlab

    board = told.folder / "runs.swanlab"
    if not told.online and board.is_file():
        with closing(sqlite3.connect(board, timeout=30)) as runs, runs:
            runs.execute("PRAGMA foreign_keys=ON")
            runs.execute("DELETE FROM experiment WHERE run_id LIKE ?", (f"%-{told.id}",))
    # The board's own format is written by its package, which not everyone has; what is offline can be synced later.
    here = "local" if find_spec("swanboard") else "offline"
    swanlab.init(
        project=told.project,
        name=told.name,
        id=told.id,
        resume="allow" if told.online else None,
        mode="online" if told.online else here,
        log_dir=str(told.folder),
        config=told.config,
        settings=swanlab.Settings.model_validate(
            {
                "interactive": False,
                "terminal": {"proxy_type": "none"},
                "probe": dict.fromkeys(("hardware", "runtime", "requirements", "conda", "git", "monitor"), False),
            }
        ),
    )
    return lambda step, of_step: swanlab.log(dict(of_step), step=step) and None, swanlab.finish


if __name__ == "__main__":
    main()
