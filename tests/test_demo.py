"""The main job, as the README has it: the demo's night, the night after, a challenger, and each stage alone.

One real night on this machine: real Prefect and MLflow, real Unsloth training of the 135M model, real EvalScope.
"""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest

from tasks.conversations import read_conversations

ROOT = Path(__file__).resolve().parents[1]
CHECKPOINT = 20  # training.save_steps of the demo
pytestmark = [pytest.mark.timeout(1800), pytest.mark.slow]


@dataclass
class House:
    """A home with demo nights in it, and how to run commands on it."""

    folder: Path

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        # Fixtures of a module are made before a test's own environment is: nothing set elsewhere may lead away.
        led_away = ("MLFLOW_TRACKING_URI", "NIGHTOWL_STORE", "PREFECT_API_URL", "PREFECT_HOME")
        environment = {name: value for name, value in os.environ.items() if name not in led_away}
        environment |= {"NIGHTOWL_HOME": str(self.folder), "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(
            [sys.executable, "-m", "flows.cli", *arguments, "--json"],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.folder,
        )

    def run(self, *arguments: str, expect: int = 0) -> dict[str, Any]:
        with self.start(*arguments) as process:
            told, story = process.communicate()
        assert process.returncode == expect, story[-4000:]
        answer: dict[str, Any] = json.loads(told)
        return answer


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory) -> House:
    return House(tmp_path_factory.mktemp("house"))


@pytest.fixture(scope="module")
def killed(house: House) -> list[psutil.Process]:
    """A night that is killed in the middle of training, past its first checkpoint; the processes it had started."""
    with house.start("run", "demo") as process:
        assert process.stderr
        for line in process.stderr:
            step = re.match(r"\s*training (\d+)/", line)
            if step and int(step[1]) > CHECKPOINT:
                break
        else:
            pytest.fail("the night ended before training was half done")
        started = psutil.Process(process.pid).children(recursive=True)
        process.kill()
    return started


@pytest.fixture(scope="module")
def first(house: House, killed: list[psutil.Process]) -> dict[str, Any]:
    """The first night that ends; it goes on from where the killed one was."""
    return house.run("run", "demo")


@pytest.fixture(scope="module")
def challenger(house: House, first: dict[str, Any]) -> dict[str, Any]:
    """A candidate that has hardly been trained."""
    weak = ("training.max_steps=2", "training.warmup_steps=0", "training.seed=1")
    return house.run("run", "demo", *(word for change in weak for word in ("--set", change)))


def test_a_killed_night_leaves_nothing_running_and_is_gone_on_with(
    house: House, killed: list[psutil.Process], first: dict[str, Any]
) -> None:
    _, alive = psutil.wait_procs(killed, timeout=60)
    assert alive == []
    (adapter,) = (
        json.loads(path.read_text())
        for path in (house.folder / "store" / "adapter").glob("*/manifest.json")
        if path.parent.name == first["version"]["adapter"]
    )
    assert adapter["resumed"] == CHECKPOINT
    assert adapter["steps"] > 2 * CHECKPOINT
    nights = house.run("report", "demo")["nights"]
    assert nights[-1]["status"] == "KILLED"
    assert "is gone" in nights[-1]["reason"]


def test_the_first_night_promotes_a_model_that_learnt(first: dict[str, Any]) -> None:
    assert first["outcome"] == "promoted"
    assert first["version"]["version"] == 1
    by_suite = {comparison["suite"]: comparison for comparison in first["comparisons"]}
    assert set(by_suite) == {"tool_call", "final_answer", "chat_format", "held_out_loss"}
    calls = by_suite["tool_call"]
    assert calls["candidate"] - calls["base"] >= 0.5
    assert calls["low"] > 0
    assert all(c["outcome"] in ("better", "not worse") for c in by_suite.values())


def test_every_row_is_accounted_for(house: House, first: dict[str, Any]) -> None:
    seen = 0
    for manifest in (house.folder / "store" / "conversations").glob("*/manifest.json"):
        told = json.loads(manifest.read_text())
        quarantine = pl.read_parquet(manifest.parent / "quarantine.parquet")
        kept = pl.concat(read_conversations(manifest.parent))
        assert told["rows_in"] == kept.height + quarantine.height
        assert quarantine["reasons"].list.len().min() in (None, *range(1, 99))
        seen += quarantine.height
    assert seen > 5, "the sample sources carry bad rows, and the gate set none aside"


def test_the_night_after_finds_nothing_moved(house: House, first: dict[str, Any]) -> None:
    second = house.run("run", "demo")
    assert second["outcome"] == "skipped"
    assert "nothing moved" in second["reason"]


def test_a_weak_challenger_is_judged_and_kept_out(house: House, challenger: dict[str, Any]) -> None:
    assert challenger["outcome"] in ("kept", "cannot tell")
    assert challenger["version"]["version"] == 2
    calls = next(c for c in challenger["comparisons"] if c["suite"] == "tool_call")
    assert calls["outcome"] == "worse"
    assert house.run("champion", "demo")["version"] == 1


def test_a_person_may_promote_and_roll_back(house: House, challenger: dict[str, Any]) -> None:
    moved = house.run("promote", "demo", "2", "--why", "to see how it does")
    assert moved["moved"]
    assert "to see how it does" in moved["why"]
    assert house.run("champion", "demo")["version"] == 2
    assert house.run("rollback", "demo", "--why", "it does badly")["moved"]
    assert house.run("champion", "demo")["version"] == 1


def test_each_stage_alone(house: House, challenger: dict[str, Any]) -> None:
    checked = house.run("check", "demo")
    assert {source["source"]: source["passed"] for source in checked["sources"]} == {
        "tools": True,
        "arithmetic": True,
        "chat": True,
    }
    mixed = house.run("mix", "demo")
    assert mixed["splits"]["train"]["rows"] > 100
    assert all(abs(part["reached"] - part["asked"]) <= 0.01 for part in mixed["shares"].values())
    candidates = house.run("candidates", "demo")["candidates"]
    assert [candidate["version"] for candidate in candidates] in ([1, 2], [2, 1])
    plan = house.run("plan", "demo")
    assert {stage["state"] for stage in plan["stages"]} == {"in the store"}
    assert Path(house.run("report", "demo")["report"]).is_file()
    assert not [check for check in house.run("doctor")["checks"] if check["state"] == "error"]


def test_prefect_and_mlflow_remember_the_nights(house: House, challenger: dict[str, Any]) -> None:
    with sqlite3.connect(house.folder / "prefect" / "prefect.db") as database:
        states = dict(
            database.execute(
                "select flow.name, flow_run.state_type from flow_run join flow on flow.id = flow_run.flow_id"
            ).fetchall()
        )
        artifacts = {key for (key,) in database.execute("select key from artifact")}
    assert states == dict.fromkeys(("nightly", "prepare-data", "train-adapter", "evaluate", "promote"), "COMPLETED")
    assert "training" in artifacts
    with sqlite3.connect(house.folder / "mlflow" / "mlflow.db") as database:
        aliases = dict(database.execute("select alias, version from registered_model_aliases").fetchall())
        outcomes = {value for (value,) in database.execute("select value from tags where key = 'nightowl.outcome'")}
    assert aliases["champion"] == 1
    # A challenger that a person once promoted is the previous champion after the roll-back.
    assert aliases.get("challenger", aliases.get("previous")) == 2
    assert {"promoted"} < outcomes
