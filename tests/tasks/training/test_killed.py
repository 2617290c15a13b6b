"""kill -9 at any moment of training, and at any file operation, saving and finishing among them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.train import training_spec
from tasks.training import process

KILLS = int(os.environ.get("NIGHTOWL_TEST_KILLS", "4"))


def test_whenever_it_is_killed_the_adapter_is_the_undisturbed_one_bit_for_bit(
    recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot, store: Store, tmp_path: Path
) -> None:
    """Each run is killed up to three times before it is let go on; NIGHTOWL_TEST_KILLS sets how often in all."""
    work = tmp_path / "job"
    work.mkdir()
    night = recipe(backend="transformers", method="lora", save_steps=1, micro_batch_size=2, dropout=0.1)
    (tmp_path / "spec.json").write_text(training_spec(night, mixture, base, store, work).model_dump_json())
    command = [sys.executable, str(Path(__file__).with_name("killed.py")), str(tmp_path / "spec.json"), str(KILLS), "0"]
    environment = process.environment() | {"OMP_NUM_THREADS": "1"}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=580, check=False)
    assert found.returncode == 0, found.stderr[-3000:]
    told = json.loads(found.stdout.splitlines()[-1])
    print(found.stderr.count("killed"), "runs,", told)
    assert told["same"]
    assert told["kills"] == KILLS
    assert told["operations"] > 50  # the checkpoints' among them
