"""The child's side of a training process: what every backend shares, whatever library it trains with.

A backend calls `serve` with its training function. From then on the process ends when its parent does,
keeps other attempts out of the work folder, turns SIGTERM into a request to save, and writes its result
or its foreseen failure as a file.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from filelock import FileLock

from tasks.errors import BadInput, NightowlError, WorldFailed
from tasks.store import write_whole
from tasks.training.schema import Progress
from tasks.training.spec import (
    FAILURE,
    NOT_FINITE,
    PROGRESS,
    RESULT,
    RUN_ME_AGAIN,
    Failure,
    TrainingResult,
    TrainingSpec,
)

LOCK = "attempt.lock"
T = TypeVar("T")


class NotFinite(WorldFailed):
    """The loss or its gradient is NaN or infinite."""


class Stopped(Exception):
    """Training was told to stop, and its state is saved."""


class Attempt:
    """One run of a training process: its spec, its line to the parent, and whether it was told to stop."""

    def __init__(self, spec: TrainingSpec, descriptor: int) -> None:
        self.spec = spec
        self.stop = threading.Event()
        # As torchrun tells them; an attempt of one process knows nothing of either.
        self.process = int(os.environ.get("RANK", "0"))
        self.processes = int(os.environ.get("WORLD_SIZE", "1"))
        self._descriptor = descriptor
        self._saves = False

    @property
    def first(self) -> bool:
        """Whether this process is the one that reports, saves and answers for all of them."""
        return self.process == 0

    @property
    def sharded(self) -> bool:
        """Whether the processes have the base between them, so that a forward pass takes all of them."""
        return self.spec.training.sharding != "none"

    def agreed(self, said: bool) -> bool:
        """Whether any process of the attempt said so; each gets the same answer."""
        if self.processes == 1:
            return said
        import torch

        votes = torch.tensor(int(said), device=_joined().device)
        torch.distributed.all_reduce(votes)
        return bool(votes)

    def from_first(self, make: Callable[[], T]) -> T:
        """What the first process makes, in every process."""
        if self.processes == 1:
            return make()
        from accelerate.utils import broadcast_object_list

        _joined()
        found = [make() if self.first else None]
        return broadcast_object_list(found)[0]

    def wait_for_all(self) -> None:
        """Go on when every process of the attempt has come this far."""
        self.agreed(True)

    def training_begins(self) -> None:
        """From here on a SIGTERM waits for the next step and its checkpoint; before, there is nothing to save."""
        self._saves = True

    def terminate(self, number: int, frame: object) -> None:
        """The SIGTERM handler."""
        if not self._saves:
            os._exit(RUN_ME_AGAIN)
        self.stop.set()

    def report(self, progress: Progress) -> None:
        """Append to the progress file and tell the parent; only the first process does."""
        if not self.first:
            return
        line = progress.model_dump_json() + "\n"
        with open(self.spec.work / PROGRESS, "a", encoding="utf-8") as file:
            file.write(line)
        with suppress(BrokenPipeError):
            os.write(self._descriptor, line.encode())

    def reported(self, until: int) -> list[Progress]:
        """The progress of earlier attempts up to a step; later lines, which will be trained again, are dropped."""
        file = self.spec.work / PROGRESS
        lines = file.read_text(encoding="utf-8").split("\n")[:-1] if file.is_file() else []
        kept = [p for p in map(Progress.model_validate_json, lines) if p.step <= until]
        write_whole(file, "".join(p.model_dump_json() + "\n" for p in kept))
        return kept


def _joined() -> Any:
    """This process's place among all of the attempt, once it has joined them."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def serve(train: Callable[[Attempt], TrainingResult | None]) -> NoReturn:
    """Run a backend's training function as this process: `python -m BACKEND SPEC.json DESCRIPTOR`.

    The descriptor may be a path instead. Of several processes the first writes the result and holds the lock.
    """
    parent = os.getppid()
    spec = TrainingSpec.model_validate_json(Path(sys.argv[1]).read_bytes())
    to_parent = sys.argv[2]
    attempt = Attempt(spec, int(to_parent) if to_parent.isdigit() else os.open(to_parent, os.O_WRONLY))
    threading.Thread(target=_end_with_parent, args=(parent,), daemon=True).start()
    signal.signal(signal.SIGTERM, attempt.terminate)
    with FileLock(spec.work / LOCK) if attempt.first else nullcontext():
        code = _outcome(train, attempt)
    # Libraries leave threads and exit hooks that have hung; all that matters is on disk.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _outcome(train: Callable[[Attempt], TrainingResult | None], attempt: Attempt) -> int:
    work = attempt.spec.work
    try:
        result = train(attempt)
    except Stopped:
        return RUN_ME_AGAIN
    except NotFinite as error:
        write_whole(work / FAILURE, Failure(error="WorldFailed", message=str(error)).model_dump_json())
        return NOT_FINITE
    except BadInput as error:
        failure = Failure(error="BadInput", message=str(error), field=error.field, value=str(error.value))
        write_whole(work / FAILURE, failure.model_dump_json())
        return error.exit_code
    except NightowlError as error:
        write_whole(work / FAILURE, Failure(error="WorldFailed", message=str(error)).model_dump_json())
        return error.exit_code
    except OSError as error:
        traceback.print_exc()
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            return 1
        full = WorldFailed(str(work), f"cannot be written to ({error.strerror})", "Free disk space and run again.")
        with suppress(OSError):
            write_whole(work / FAILURE, Failure(error="WorldFailed", message=str(full)).model_dump_json())
        return full.exit_code
    except Exception:
        traceback.print_exc()
        return 1
    if result is not None:
        write_whole(work / RESULT, result.model_dump_json(indent=2))
    return 0


def _end_with_parent(parent: int) -> None:
    """Wait for another parent or for the end of standard input, which the night's death brings, and end at once.

    Nothing is half-written by that: what counts on disk is renamed into place or sealed last.
    """
    with suppress(OSError):
        while os.getppid() == parent:
            if select.select([0], [], [], 1.0)[0] and not os.read(0, 1):
                break
    os._exit(RUN_ME_AGAIN)
