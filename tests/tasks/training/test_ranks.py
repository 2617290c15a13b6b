"""Two processes (gloo, on the CPU) that train one adapter: as one would, and as one attempt when one of them dies."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from tasks.errors import BadInput
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.train import train, training_spec
from tasks.training import BACKENDS, Progress, run


def test_two_processes_train_as_one_does_and_end_together(
    recipe: Callable[..., Recipe],
    mixture: TokenisedMixture,
    base: BaseSnapshot,
    store: Store,
    train_here: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same loss curve at the same global batch, though one is killed on the way; the last batch is short."""
    how = {"method": "lora", "micro_batch_size": 1, "learning_rate": 0.003}
    work, scratch = tmp_path / "job", tmp_path / "scratch"
    work.mkdir()
    scratch.mkdir()
    monkeypatch.setenv("TMPDIR", str(scratch))
    night = recipe(backend="transformers", processes=2, **how)
    killed: list[int] = []

    def kill_one(progress: Progress) -> None:
        workers = [p for p in psutil.Process().children(recursive=True) if p.environ().get("RANK") == "1"]
        if progress.step == 3 and not killed:
            killed.append(workers[0].pid)
            workers[0].kill()

    result = run(training_spec(night, mixture, base, store, work), BACKENDS["transformers"], kill_one)
    assert killed
    assert result.resumed == 2
    assert result.environment["processes"] == 2
    lines = [json.loads(line) for line in (work / "progress.jsonl").open()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]

    alone = train_here(**how)
    assert [line["loss"] for line in lines] == pytest.approx(alone.losses, rel=0.01)
    assert result.validation_loss == pytest.approx(alone.result.validation_loss, rel=0.01)
    assert not [p for p in psutil.Process().children(recursive=True) if "RANK" in p.environ()]
    assert not list(scratch.glob("torchelastic*"))


def test_unsloth_trains_in_one_process(
    recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot, store: Store
) -> None:
    with pytest.raises(BadInput, match=r"training\.processes: 2 .* transformers"):
        train(recipe(processes=2), mixture, base, store)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"processes": 3}, "can't be shared evenly by 3 processes"),
        ({"processes": 2, "micro_batch_size": 4}, "does not divide batch_size 4 by 2 processes"),
        ({"nodes": 2}, "need a rendezvous"),
    ],
)
def test_a_batch_that_cannot_be_shared_is_refused(recipe: Callable[..., Recipe], given: dict, problem: str) -> None:
    with pytest.raises(BadInput, match=problem):
        recipe(**given)
