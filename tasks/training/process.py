"""Training in a process of its own: started, listened to, started again when it dies.

The work folder is the whole of the interface: a spec goes in, progress comes back line by line on a
pipe, and a result or a failure is left as a file. What libraries print goes to a log there. The child
holds the read end of a pipe that closes when this process dies, however it dies, and then ends; it
holds a lock on the folder, so that a new attempt waits until the old one is gone.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tasks import children
from tasks.errors import BadInput, NightowlError, Preempted, WorldFailed
from tasks.store import home, write_whole
from tasks.training.schema import Progress
from tasks.training.spec import FAILURE, LOG, NOT_FINITE, RESULT, RUN_ME_AGAIN, Failure, TrainingResult, TrainingSpec

RESTARTS = 2
_GRACE_S = 60  # for a checkpoint, when this process has to stop
_TAIL_BYTES = 4000


def run(
    spec: TrainingSpec, module: str, on_progress: Callable[[Progress], None] | None = None, restarts: int = RESTARTS
) -> TrainingResult:
    """Train in a child process and return what it measured.

    A child that is killed or crashes is started again up to `restarts` times and goes on from its last
    whole checkpoint; one whose loss is not finite is started again once, at half the learning rate.
    Raises what the child raised (BadInput, WorldFailed), WorldFailed with the end of its log where it
    died otherwise, and Preempted when this process was told to stop and the state is saved.
    """
    crashes = 0
    while True:
        code = _attempt(spec, module, on_progress)
        if code == 0 and (spec.work / RESULT).is_file():
            return TrainingResult.model_validate_json((spec.work / RESULT).read_bytes())
        if code == NOT_FINITE and spec.rate_scale == 1.0:
            spec = spec.model_copy(update={"rate_scale": 0.5})
        elif (spec.work / FAILURE).is_file():
            raise _foreseen(spec.work)
        elif (code < 0 or code == RUN_ME_AGAIN) and crashes < restarts:
            crashes += 1
        else:
            raise _died(spec.work, code, crashes + 1)


def _attempt(spec: TrainingSpec, module: str, on_progress: Callable[[Progress], None] | None) -> int:
    """One child, from start to end; its exit code (negative: the signal that killed it)."""
    for name in (RESULT, FAILURE):
        (spec.work / name).unlink(missing_ok=True)
    spec_file = spec.work / "spec.json"
    write_whole(spec_file, spec.model_dump_json(indent=2))
    together = spec.training.processes * spec.training.nodes > 1
    starts = ["tasks.training.ranks", module] if together else [module]
    progress, child_end = os.pipe()
    with open(spec.work / LOG, "ab") as log:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", *starts, str(spec_file), str(child_end)],
            cwd=spec.work,
            env=environment(spec.training.processes),
            stdin=subprocess.PIPE,  # never written to: its end of file tells the child that we are gone
            stdout=log,
            stderr=log,
            pass_fds=(child_end,),
            start_new_session=True,  # Ctrl-C reaches the child through us, once, as a request to save
        )
    os.close(child_end)
    with _stopping(child) as stopped, open(progress, encoding="utf-8") as lines:
        try:
            for line in lines:
                if on_progress is not None and line.endswith("\n"):
                    on_progress(Progress.model_validate_json(line))
            code = child.wait()
        except BaseException:
            _end(child)
            raise
        finally:
            if child.stdin:
                child.stdin.close()
    if stopped.is_set():
        raise Preempted(str(spec.work), "training was told to stop" + (" and saved its state" if code == 75 else ""))
    return code


@contextmanager
def _stopping(child: subprocess.Popen[bytes]) -> Iterator[threading.Event]:
    """While the child runs, a SIGTERM to this process is passed on to it; the event says that one came."""
    stopped = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stopped
        return

    def pass_on(number: int, frame: object) -> None:
        stopped.set()
        with suppress(ProcessLookupError):
            child.send_signal(signal.SIGTERM)

    before = signal.signal(signal.SIGTERM, pass_on)
    try:
        yield stopped
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(child: subprocess.Popen[bytes]) -> None:
    """Let the child save and go; kill it if it does not."""
    child.terminate()
    try:
        child.wait(_GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()


def environment(processes: int = 1) -> dict[str, str]:
    """The environment of a process that trains: its caches are in the home. `processes`: how many on this machine."""
    cache = home() / "cache"
    return children.environment(processes) | {
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(cache / "unsloth_compiled"),
        "TORCHINDUCTOR_CACHE_DIR": str(cache / "torchinductor"),
        "TRITON_CACHE_DIR": str(cache / "triton"),
        "HF_HOME": str(cache / "huggingface"),
    }


def _foreseen(work: Path) -> NightowlError:
    failure = Failure.model_validate_json((work / FAILURE).read_bytes())
    error: NightowlError
    if failure.error == "BadInput":
        error = BadInput(failure.field or "training", failure.value, "", "")
    else:
        error = WorldFailed("", "", "")
    error.args = (failure.message,)
    return error


def _died(work: Path, code: int, attempts: int) -> WorldFailed:
    log = work / LOG
    how = f"exit code {code}"
    if code < 0:
        how = f"killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += ", as the system does when memory runs out"
    with open(log, "rb") as file:
        file.seek(max(0, log.stat().st_size - _TAIL_BYTES))
        tail = file.read().decode(errors="replace").strip()
    last = "\n".join(f"  | {line}" for line in tail.splitlines()[-15:])
    return WorldFailed(
        "training",
        f"its process ended after {attempts} attempt{'s' * (attempts > 1)} ({how}). The end of its log:\n{last}\n",
        f"The whole log is {log}; what was trained so far is kept, and the next run goes on from there.",
    )
