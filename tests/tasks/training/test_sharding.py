"""A base that two processes (gloo, on the CPU) have between them: trained as when each has it whole, and resumed."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import BadInput, WorldFailed
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.train import train, training_spec
from tasks.training import process
from tasks.training.child import Stopped

HOW = {"micro_batch_size": 1, "learning_rate": 0.003}


def test_a_split_base_trains_the_same_adapter(
    recipe: Callable[..., Recipe],
    mixture: TokenisedMixture,
    base: BaseSnapshot,
    store: Store,
    train_here: Callable[..., Any],
    tmp_path: Path,
) -> None:
    """In 16 and in 4 bits: the adapter of two processes with a whole base each and of an attempt that was killed and
    goes on, bit for bit; and the losses of one process at the same batch."""

    def spec(name: str, **how: Any) -> str:
        work = tmp_path / name
        work.mkdir()
        night = recipe(backend="transformers", processes=2, **HOW, **how)
        file = tmp_path / f"{name}.json"
        file.write_text(training_spec(night, mixture, base, store, work).model_dump_json())
        return str(file)

    killed = spec("killed", method="qlora", sharding="base")
    order = [
        spec("whole", method="lora"),
        spec("split", method="lora", sharding="base"),
        spec("undisturbed", method="qlora", sharding="base"),
        killed,
        "3",
        killed,
    ]
    environment = process.environment() | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(Path(__file__).with_name("sharded.py")), *order]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    whole, split, undisturbed, none, resumed = json.loads(done.stdout.splitlines()[-1])
    assert (whole["held"], none) == ([[], []], {})
    for told in (split, undisturbed, resumed):
        assert told["held"] == [[pytest.approx(0.5, abs=0.02)] * 2] * 2

    def adapter(name: str) -> bytes:
        return (tmp_path / name / "adapter" / "adapter_model.safetensors").read_bytes()

    def losses(name: str) -> list[float]:
        return [json.loads(line)["loss"] for line in (tmp_path / name / "progress.jsonl").open()]

    assert adapter("split") == adapter("whole")
    assert adapter("killed") == adapter("undisturbed")
    assert losses("killed") == losses("undisturbed")
    for name, method, told in (("split", "lora", split), ("killed", "qlora", resumed)):
        alone = train_here(method=method, **HOW)
        assert losses(name) == pytest.approx(alone.losses, rel=0.01)
        assert told["validation"] == pytest.approx(alone.result.validation_loss, rel=0.01)


def test_memory_that_runs_out_ends_the_attempt_and_the_next_takes_half_of_the_rows(
    train_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A process out of memory cannot agree with others that wait for its part of a layer; here it is alone."""
    from tasks.training import sharding, trainer

    monkeypatch.setattr(sharding, "shard", lambda model: None)
    monkeypatch.setattr(trainer, "longest_batch_fits", lambda *given: False)
    for rows in (2, 1):
        with pytest.raises(Stopped):
            train_here(work=tmp_path / "job", sharding="base", micro_batch_size=4)
        assert (tmp_path / "job" / "micro-batch").read_text() == str(rows)
    with pytest.raises(WorldFailed, match="too small for one row"):
        train_here(work=tmp_path / "job", sharding="base", micro_batch_size=4)


@pytest.mark.parametrize("backend", ["transformers", "unsloth"])
def test_one_process_has_nobody_to_split_the_base_with(
    backend: str, recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot, store: Store
) -> None:
    with pytest.raises(BadInput, match=r"training\.sharding: 'base' splits the base over several processes"):
        train(recipe(backend=backend, sharding="base"), mixture, base, store)
