"""Two nodes that train one adapter: the stage on the first, flows/node.py on the second; here on one machine's CPU."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from flows.component import free_port
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.train import training_spec
from tasks.training import BACKENDS, Adapter, meeting, run


def test_a_second_node_trains_along(
    recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot, store: Store, tmp_path: Path
) -> None:
    work = store.work(Adapter, "f" * 64)
    work.mkdir(parents=True)
    night = recipe(
        backend="transformers", method="lora", nodes=2, rendezvous=f"127.0.0.1:{free_port(0)}", micro_batch_size=1
    )
    command = [sys.executable, "-m", "flows.node", "false"]
    environment = {**os.environ, "JOB_COMPLETION_INDEX": "1"}
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True) as second,
    ):
        try:
            result = run(training_spec(night, mixture, base, store, work), BACKENDS["transformers"])
        finally:
            os.killpg(second.pid, signal.SIGTERM)
    assert result.environment["processes"] == 2
    assert "exit code" not in (tmp_path / "log").read_text()
    assert meeting(work.parent) is None


@pytest.mark.parametrize("index", [None, "0"])
def test_the_first_node_runs_the_stage(index: str | None) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "JOB_COMPLETION_INDEX"}
    environment |= {"JOB_COMPLETION_INDEX": index} if index else {}
    command = [sys.executable, "-m", "flows.node", "sh", "-c", "echo stage; exit 7"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (done.stdout, done.returncode) == ("stage\n", 7)
