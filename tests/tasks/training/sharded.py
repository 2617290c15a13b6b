"""Attempts of two processes (gloo, on the CPU), forked from one that has imported the libraries; one may be killed.

    python sharded.py SPEC.json [STEP] SPEC.json [STEP] ...

Runs an attempt for each spec, one after the other; at a STEP that follows it, its second process is killed by
SIGKILL as that step ends, and the first by this one, as the launcher does. Prints a line of JSON: of each attempt that
came to its end its validation loss and, for each process, the share of the base's weights that it held once they were
split: for training, and for the look at what was saved. Run by test_sharding.py.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import traceback
from pathlib import Path
from typing import Any

import bitsandbytes  # noqa: F401
import torch  # noqa: TID253
import torch.distributed.fsdp  # noqa: TID253

import tasks.training.trainer  # noqa: F401
from tasks.training import sharding, transformers_backend
from tasks.training.child import Attempt
from tasks.training.schema import Progress
from tasks.training.spec import TrainingSpec

PROCESSES = 2


def train(spec: TrainingSpec, killed_at: int) -> dict[str, Any]:
    """One process's part of an attempt, and what it can tell of it."""
    shares: list[float] = []

    def count(model: Any) -> None:
        shard(model)
        base = [p for name, p in model.named_parameters() if "lora_" not in name]
        shares.append(sum(p.to_local().numel() for p in base) / sum(p.numel() for p in base))

    def report(progress: Progress) -> None:
        told(progress)
        if progress.step == killed_at and not attempt.first:
            os.kill(os.getpid(), signal.SIGKILL)

    shard, sharding.shard = sharding.shard, count
    attempt = Attempt(spec, os.open(os.devnull, os.O_WRONLY))
    told, attempt.report = attempt.report, report  # type: ignore[method-assign]
    result = transformers_backend.train(attempt)
    return {"held": shares, "validation": result.validation_loss if result else None}


def start(spec: TrainingSpec, rank: int, port: int, killed_at: int) -> int:
    child = os.fork()
    if child:
        return child
    try:
        place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": PROCESSES, "LOCAL_WORLD_SIZE": PROCESSES}
        os.environ |= {name: str(value) for name, value in place.items()}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        told = train(spec, killed_at)
        (spec.work / f"told.{rank}").write_text(json.dumps(told))
        os._exit(0)
    except BaseException:
        traceback.print_exc()
        os._exit(1)


def attempt(spec: TrainingSpec, killed_at: int) -> dict[str, Any]:
    """All processes of an attempt, to the end, and what they tell; nothing where it was killed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [start(spec, rank, port, killed_at) for rank in range(PROCESSES)]
    if killed_at:
        assert os.waitstatus_to_exitcode(os.waitpid(children[1], 0)[1]) == -signal.SIGKILL
        os.kill(children[0], signal.SIGKILL)
        os.waitpid(children[0], 0)
        return {}
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert codes == [0] * PROCESSES, f"exit codes {codes}"
    told = [json.loads((spec.work / f"told.{rank}").read_text()) for rank in range(PROCESSES)]
    return {"held": [one["held"] for one in told], "validation": told[0]["validation"]}


def main() -> None:
    torch.set_num_threads(1)
    given, told = sys.argv[1:], []
    for at, word in enumerate(given):
        if not word.isdigit():
            step = int(given[at + 1]) if given[at + 1 :] and given[at + 1].isdigit() else 0
            told.append(attempt(TrainingSpec.model_validate_json(Path(word).read_bytes()), step))
    print(json.dumps(told))


if __name__ == "__main__":
    main()
