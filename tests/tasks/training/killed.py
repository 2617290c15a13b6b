"""Kill -9 a training again and again, at any file operation and at any moment, and let it go on to the end.

    python killed.py SPEC.json KILLS SEED

Prints a line of JSON: `same`, whether each adapter that came out of kills is the undisturbed one's bit for bit;
`kills`, how many attempts were killed; `operations`, how many file operations an undisturbed attempt does; `at`, what
was being done when it was killed. One process imports the libraries and forks each attempt, so that an attempt takes a
second and not ten; it trains nothing itself, since a child has no use of its parent's threads. Run by test_killed.py;
NIGHTOWL_TEST_KILLS sets how often.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch  # noqa: TID253

from tasks.training import transformers_backend
from tasks.training.child import Attempt
from tasks.training.spec import TrainingSpec

KILLS_A_RUN = 3
WATCHED = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "shutil.rmtree"}


def watch(folder: Path, note: Path, at_operation: int = 0) -> list[int]:
    """Counts this process's operations on files of a folder, in the list's only entry; kills it at the nth."""
    done = [0]

    def count(event: str, given: tuple) -> None:
        if event in WATCHED and str(given[0]).startswith(str(folder)):
            done[0] += 1
            if done[0] == at_operation:
                note.write_text(event)
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(count)
    return done


def train(spec: TrainingSpec) -> None:
    transformers_backend.train(Attempt(spec, os.open(os.devnull, os.O_WRONLY)))


def attempt(spec: TrainingSpec, note: Path, *, at_operation: int = 0, after: float = 0.0) -> int:
    """One forked attempt, killed at its nth operation on a file of the work folder or after so many seconds.

    Its exit status (negative: the signal). One that ends leaves a note of its operations and of what it imported.
    """
    child = os.fork()
    if not child:
        try:
            done = watch(spec.work, note, at_operation)
            train(spec)
            note.write_text(json.dumps({"operations": done[0], "modules": list(sys.modules)}))
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    if after:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def main() -> None:
    given, kills, seed = TrainingSpec.model_validate_json(Path(sys.argv[1]).read_bytes()), *map(int, sys.argv[2:])
    draw = random.Random(seed)
    place = given.work
    note = place / "note"
    torch.set_num_threads(1)

    def spec(name: str) -> TrainingSpec:
        (place / name).mkdir()
        return given.model_copy(update={"work": place / name})

    def made(name: str) -> bytes:
        return (place / name / "adapter" / "adapter_model.safetensors").read_bytes()

    assert attempt(spec("first"), note) == 0
    for name in json.loads(note.read_text())["modules"]:
        with suppress(Exception):
            import_module(name)
    started = time.monotonic()
    assert attempt(spec("whole"), note) == 0
    seconds, operations, whole = time.monotonic() - started, json.loads(note.read_text())["operations"], made("whole")
    print(f"an attempt takes {seconds:.1f} s", file=sys.stderr, flush=True)
    killed, same, at = 0, True, Counter[str]()
    while killed < kills:
        run = spec(f"run-{killed}")
        for number in range(min(KILLS_A_RUN, kills - killed)):
            # Every other kill falls where a file is touched, which is at the saves and at the end; the rest anywhere.
            where = {"at_operation": draw.randint(1, operations)} if number % 2 == 0 else {}
            if attempt(run, note, **(where or {"after": draw.uniform(0.1, seconds)})) == -signal.SIGKILL:
                killed += 1
                at[note.read_text() if where else "any moment"] += 1
        assert attempt(run, note) == 0
        result = [json.loads(line)["step"] for line in (run.work / "progress.jsonl").open()]
        print(f"killed {killed} times", file=sys.stderr, flush=True)
        same &= made(run.work.name) == whole and result == list(range(1, len(result) + 1))
        shutil.rmtree(run.work)
    print(json.dumps({"same": same, "kills": killed, "operations": operations, "at": at}))


if __name__ == "__main__":
    main()
