"""What a person in front of a terminal sees while a night runs.

The stages speak through the `nightowl` logger: on a worker those lines go to Prefect's log, and in a
terminal this module prints them as they are. Progress is a bar on a terminal and a line every tenth
of the way elsewhere, so that a log file stays readable.
"""

from __future__ import annotations

import logging
import os
import re
import select
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

log = logging.getLogger("nightowl")
log.setLevel(logging.INFO)
libraries = log.getChild("libraries")
"""What the training libraries print: for the run's log, not for the story in the terminal."""
_NOISE = re.compile(
    r"\{'(loss|eval_loss|train_runtime)'"  # the figures are in MLflow, and in the lines of progress
    r"|[WI]\d{4} \d\d:\d\d:\d\d\.\d+ |W\d{4} .*_pytree\.py"  # deprecations inside of PyTorch
    r"|\[bitsandbytes\.backends\.cpu\.ops\|WARNING\]"  # an optional kernel
)
libraries.addFilter(lambda record: not _NOISE.match(record.getMessage()))
# Standard output is for results (`--json` included); the story of the night goes to standard error.
console = Console(stderr=True, highlight=False)
if not console.is_terminal:
    console.width = max(console.width, 120)  # a log has no margin to keep to

Advance = Callable[[int, int, str], None]


class _Story(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        style = {logging.WARNING: "yellow", logging.ERROR: "red"}.get(record.levelno, "")
        console.print(self.format(record), style=style, markup=False, soft_wrap=True)


def tell() -> None:
    """Print what the stages say to this terminal; calling it twice changes nothing."""
    log.propagate = False
    if not any(isinstance(handler, _Story) for handler in log.handlers):
        story = _Story()
        story.addFilter(lambda record: not record.name.startswith(libraries.name))
        log.addHandler(story)


def _outlive_readers() -> None:
    """Let this process's output go nowhere once nobody reads it any more.

    A run writes to a pipe of its worker. When that dies, the next line would raise BrokenPipeError, on which rich, and
    so Prefect's own handler of logs, ends the process: a night must not die of it.
    """
    written = select.poll()
    for stream in (1, 2):
        with suppress(OSError):
            if stat.S_ISFIFO(os.fstat(stream).st_mode):
                written.register(stream, 0)  # that the other end is closed is always told

    def watch() -> None:
        while gone := written.poll():
            nowhere = os.open(os.devnull, os.O_WRONLY)
            for stream, _ in gone:
                written.unregister(stream)
                os.dup2(nowhere, stream)
            os.close(nowhere)

    threading.Thread(target=watch, name="output", daemon=True).start()


_outlive_readers()


@contextmanager
def timed(stage: str, seconds: dict[str, float]) -> Iterator[None]:
    """Announce a stage, and note how long it took (wall seconds)."""
    log.info(stage)
    started = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - started, 1)


@contextmanager
def progress(title: str) -> Iterator[Advance]:
    """Show how far a stage is; yields `advance(done, total, note)`."""
    if not console.is_terminal:
        yield _by_tenths(title)
        return
    columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(title, total=None, note="")

        def advance(done: int, total: int, note: str) -> None:
            bar.update(task, completed=done, total=total, note=note)

        yield advance


def _by_tenths(title: str) -> Advance:
    said = -1

    def advance(done: int, total: int, note: str) -> None:
        nonlocal said
        tenth = 10 * done // max(total, 1)
        if tenth != said:
            said = tenth
            log.info("  %s %d/%d %s", title, done, total, note)

    return advance
