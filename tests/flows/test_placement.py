"""Nights on real workers: stages on their pools, a stage whose process is killed, a night that a person cancels."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from prefect import flow
from prefect.exceptions import ObjectNotFound
from prefect.settings import PREFECT_FLOWS_HEARTBEAT_FREQUENCY, get_current_settings, temporary_settings
from stack import Stack

from flows import placement
from flows.component import answers
from flows.placement import _RAISED, _foreseen
from tasks.errors import BadInput, NightowlError, Refused, WorldFailed
from tasks.recipe import load
from tasks.training.checkpoints import SEAL

CHECKPOINT = 20
pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]


def long(recipe: dict[str, Any], **how: Any) -> dict[str, Any]:
    """The tiny recipe with enough steps to be interrupted."""
    training = {**recipe["training"], "max_steps": 120, "epochs": 100, "save_steps": CHECKPOINT}
    training["learning_rate"] = 1e-4  # hardly a change: what is trained is not what is tested
    return {**recipe, **how, "training": {**training, **how.get("training", {})}}


def trainers(home: Path) -> list[psutil.Process]:
    """The training processes of a home."""
    found = []
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or []
        if "spec.json" in " ".join(command) and any(word.startswith(str(home)) for word in command):
            found.append(process)
    return found


def past_a_checkpoint(home: Path, known: set[Path]) -> list[psutil.Process]:
    """The training processes, once there is a whole checkpoint that was not there before."""
    return trainers(home) if checkpoints(home) - known else []


def checkpoints(home: Path) -> set[Path]:
    """The whole checkpoints of a home."""
    return {seal.parent for seal in home.glob(f"store/work/adapter-*/**/checkpoint-*/{SEAL}")}


def test_a_night_on_the_pools_survives_the_death_of_its_training(
    up: Stack, tiny_recipe: dict[str, Any], tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    search = {"candidates": 2, "vary": [{"field": "training.rank", "choices": [4, 2]}]}
    up.deploy(long(tiny_recipe, name="placed", placement="pools", search=search), tmp_path / "placed.yaml")
    night = up.start("nightly/placed")
    (trainer,) = wait_for(lambda: past_a_checkpoint(up.home, set()), 500, lambda: up.log(night["id"]))
    stage = trainer.parent()
    assert stage is not None
    stage.kill()
    ended = up.ended(night["id"], 600)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]["message"]

    query = {"flow_runs": {"parent_flow_run_id": {"any_": [night["id"]]}}}
    by_flow: dict[str, list[str]] = {}
    for run in up.runs(**query, sort="START_TIME_ASC"):
        by_flow.setdefault(run["name"].partition(":")[0], []).append(run["state"]["type"])
        assert run["work_pool_name"] == ("gpu" if run["name"].startswith(("train", "evaluate")) else "data")
    assert {name: sorted(states) for name, states in by_flow.items()} == {
        "prepare data": ["COMPLETED"],
        "train": ["COMPLETED", "COMPLETED", "CRASHED"],
        "evaluate": ["COMPLETED"],
        "promote": ["COMPLETED"],
    }
    made = [json.loads(path.read_text()) for path in up.home.glob("store/adapter/*/manifest.json")]
    resumed = [adapter["resumed"] for adapter in made if adapter["steps"] == 120]
    assert len(resumed) == 2
    assert max(resumed) >= CHECKPOINT
    assert "its process is gone" in up.log(night["id"])


@dataclass
class Orphaned:
    """A night in one process, whose server and worker were killed while it trained."""

    recipe: Path
    ended: dict[str, Any]
    trainer: psutil.Process
    workplace: Path
    """Its working directory, gone since."""
    homes: list[Path]
    """What lay there of a home while it trained."""


@pytest.fixture(scope="module")
def orphaned(
    up: Stack, tiny_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory, wait_for: Callable[..., Any]
) -> Orphaned:
    file = tmp_path_factory.mktemp("orphaned") / "orphaned.yaml"
    up.deploy(long(tiny_recipe, name="orphaned", training={"seed": 2}), file)
    known = checkpoints(up.home)
    night = up.start("nightly/orphaned")
    (trainer,) = wait_for(lambda: past_a_checkpoint(up.home, known), 500, lambda: up.log(night["id"]))
    workplace = Path(trainer.parent().cwd())
    homes = list(workplace.rglob(".nightowl"))
    killed = [up.part("prefect", "server", "start"), up.part("--pool data")]
    for part in killed:
        part.kill()
    wait_for(lambda: not any(part.is_running() for part in killed), 60)
    wait_for(lambda: answers(f"{up.api}/health"), 200)
    return Orphaned(file, up.ended(night["id"], 600), trainer, workplace, homes)


def test_a_night_survives_the_death_of_the_server_and_of_its_worker(orphaned: Orphaned) -> None:
    """`nightowl up` starts both again, and the night, whose own process is alive, goes on."""
    assert orphaned.ended["state"]["type"] == "COMPLETED", orphaned.ended["state"]["message"]
    assert not orphaned.trainer.is_running()


def test_a_night_lies_in_the_folder_that_the_stack_was_started_in(up: Stack, orphaned: Orphaned) -> None:
    """Nobody has said where the home is, and a worker gives every run a temporary working directory."""
    assert up.home == up.folder / ".nightowl"
    assert not orphaned.workplace.is_relative_to(up.folder)
    assert orphaned.homes == []
    assert not (Path(up.environment["HOME"]) / ".nightowl").exists()
    told = json.loads(up.nightowl("report", str(orphaned.recipe), "--json").stdout)
    (night,) = told["nights"]
    assert night["outcome"] in ("promoted", "kept", "cannot tell")
    assert Path(told["report"]).is_relative_to(up.home / "store")


def test_a_night_that_a_person_cancels_stops_its_training(
    up: Stack, tiny_recipe: dict[str, Any], tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    up.deploy(long(tiny_recipe, name="cancelled", training={"seed": 1}), tmp_path / "cancelled.yaml")
    known = checkpoints(up.home)
    night = up.start("nightly/cancelled")
    (trainer,) = wait_for(lambda: past_a_checkpoint(up.home, known), 500, lambda: up.log(night["id"]))
    (trained_by,) = (one for one in trainer.parents() if "flows.run" in one.cmdline())
    assert os.getsid(trained_by.pid) == trained_by.pid, "a signal to the worker's group would reach it"
    assert trained_by.parent() == up.part("--pool data"), "a run is one process"
    started = time.monotonic()
    up.server.send("POST", f"/flow_runs/{night['id']}/set_state", {"state": {"type": "CANCELLING"}})
    wait_for(lambda: not trainer.is_running(), 60)
    assert time.monotonic() - started < 30
    assert up.ended(night["id"], 60)["state"]["type"] == "CANCELLED"


def test_what_the_store_has_is_looked_up_without_a_run_on_a_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated pools; a deployment that is not there is the answer of those that were asked."""

    def nobody(*_: object, **__: object) -> None:
        raise ObjectNotFound(LookupError("no such deployment"))

    monkeypatch.setattr(placement, "run_deployment", nobody)
    recipe = load("demo", ["placement=pools"])[0]
    signs: list[int | None] = []

    @flow(name="stage")
    def stage(made: int) -> int:
        raise AssertionError("it is looked up, or asked for on its pool")

    def looked_up(made: int) -> int:
        signs.append(get_current_settings().flows.heartbeat_frequency)
        return made

    def unknown() -> bool:
        raise WorldFailed("hub", "does not answer", "Try later.")

    monkeypatch.setattr(placement, "flow_run", SimpleNamespace(id="night"))
    with temporary_settings({PREFECT_FLOWS_HEARTBEAT_FREQUENCY: 60}):
        assert placement.placed(recipe, looked_up, there=lambda: True)(7) == 7  # type: ignore[arg-type]
        assert signs == [None]
        for there in (lambda: False, unknown):
            with pytest.raises(BadInput, match="needs the deployment stage/data"):
                placement.placed(recipe, stage, there=there)(7)


@pytest.mark.parametrize(
    "raised",
    [
        Refused("sources.chat: 40 % of the rows\nbreak rules. See the pages."),
        BadInput("training.rank", 0, "is too small", "Give more."),
        WorldFailed("hub", "does not answer", "Try later."),
    ],
)
def test_what_a_stage_raises_on_its_pool_arrives_as_it_was(raised: NightowlError) -> None:
    told = _RAISED.search(f"Flow run encountered an exception: {type(raised).__name__}: {raised}")
    assert told
    arrived = _foreseen(told["kind"], told["message"])
    assert (type(arrived), str(arrived), arrived.exit_code) == (type(raised), str(raised), raised.exit_code)
