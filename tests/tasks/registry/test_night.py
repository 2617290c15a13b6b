"""A night's record: children by stage, attempts of their own, and nothing left open by a killed process."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.errors import Refused, WorldFailed
from tasks.evaluation import Comparison, Verdict
from tasks.recipe import load
from tasks.registry import Night, client, nights
from tasks.registry.night import verdict_tag
from tasks.registry.writer import MetricWriter

pytestmark = pytest.mark.usefixtures("embedded")


def start() -> Night:
    return Night.start(*load("demo"))


def test_a_night_has_children_by_stage_and_attempts_of_their_own() -> None:
    with start() as night:
        with night.stage("data"):
            pass
        with pytest.raises(WorldFailed), night.stage("train", "candidate-1"):
            raise WorldFailed("the training process", "was killed", "Free memory.")
        with Night.attach(night.id).stage("train", "candidate-1") as stage:
            stage.params({"training.rank": 16})
            for step in range(1, 6):
                stage.metrics({"loss": 3.0 - step / 10}, step=step)
        night.finish("kept", "not better")
    data, first, second = night.children()
    assert [run.info.status for run in (data, first, second)] == ["FINISHED", "FAILED", "FINISHED"]
    assert "the training process: was killed" in first.data.tags["nightowl.reason"]
    assert second.info.run_name == "train candidate-1, attempt 2"
    history = night.mlflow.get_metric_history(second.info.run_id, "loss")
    assert [(metric.step, round(metric.value, 2)) for metric in history] == [(i, 3.0 - i / 10) for i in range(1, 6)]
    (record,) = nights("demo")
    assert (record.outcome, record.reason, record.status) == ("kept", "not better", "FINISHED")
    assert record in nights()


def test_a_table_is_one_in_mlflow(tmp_path: Path) -> None:
    items = pl.DataFrame({"item_id": ["a", "b"], "score": [1.0, 0.0], "output": ["5", "<b>\u2028no"]})
    items.write_parquet(tmp_path / "items.parquet")
    with start() as night:
        with night.stage("evaluate") as stage:
            stage.table(tmp_path / "items.parquet", "items/base.json")
        night.finish("kept", "not better")
    there = night.mlflow.load_table(night.experiment_id, "items/base.json", [stage.id])
    assert pl.from_pandas(there).equals(items)
    tags = night.mlflow.get_run(stage.id).data.tags
    assert json.loads(tags["mlflow.loggedArtifacts"]) == [{"path": "items/base.json", "type": "table"}]


def test_settings_are_params_and_long_ones_are_kept_in_the_recipe(tmp_path: Path) -> None:
    recipe, settings = load("demo", ["training.seed=7"])
    long = recipe.model_copy(update={"base": recipe.base.model_copy(update={"chat_template": "x" * 7000})})
    given = [s.model_copy(update={"value": "x" * 7000}) if s.path == "base.chat_template" else s for s in settings]
    with Night.start(long, given) as night:
        night.finish("skipped", "nothing moved")
    params = night.mlflow.get_run(night.id).data.params
    assert params["training.seed"] == "7"
    assert params["sources.tools.share"] == str(recipe.sources[0].share)
    assert params["base.chat_template"].startswith("7000 characters, sha256 ")
    path = night.mlflow.download_artifacts(night.id, "recipe.yaml", str(tmp_path))
    assert "x" * 7000 in Path(path).read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("raised", "outcome"), [(Refused("too many bad rows"), "refused"), (RuntimeError("odd"), "failed")]
)
def test_a_night_that_breaks_off_says_why(raised: Exception, outcome: str) -> None:
    with pytest.raises(type(raised)), start():
        raise raised
    (record,) = nights("demo")
    assert (record.outcome, record.status) == (outcome, "FAILED")
    assert str(raised) in (record.reason or "")


def test_a_night_without_an_outcome_is_a_failed_one() -> None:
    with start():
        pass
    assert nights("demo")[0].outcome == "failed"


def test_what_a_killed_night_left_open_is_closed_by_the_next_one() -> None:
    script = """
        import sys
        from tasks.recipe import load
        from tasks.registry import Night
        night = Night.start(*load("demo"))
        with night.stage("train", "candidate-1"):
            print(night.id, flush=True)
            sys.stdin.read()
    """
    repository = Path(__file__).resolve().parents[3]
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=repository,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    killed = process.stdout.readline().strip()
    try:
        alive = start()  # the other one still runs: hands off
        assert client().get_run(killed).info.status == "RUNNING"
    finally:
        process.kill()
        process.wait()
    with start() as night:
        night.finish("kept", "fine")
    alive.finish("kept", "fine")
    run = client().get_run(killed)
    assert run.info.status == "KILLED"
    assert f"(pid {process.pid}) is gone" in run.data.tags["nightowl.reason"]
    (stage,) = Night.attach(killed).children()
    assert stage.info.status == "KILLED"
    assert nights("demo")[-1].outcome == "failed"


def test_a_night_of_another_machine_is_judged_by_its_heartbeat() -> None:
    mlflow = client()
    silent, beating = start(), start()
    for night in (silent, beating):
        mlflow.set_tag(night.id, "nightowl.machine", "elsewhere/boot/pid:[1]")
    mlflow.set_tag(silent.id, "nightowl.heartbeat", "2020-01-01T00:00:00+00:00")
    third = start()
    assert mlflow.get_run(silent.id).info.status == "KILLED"
    assert mlflow.get_run(beating.id).info.status == "RUNNING"
    for night in (silent, beating, third):
        night.finish("kept", "over")


def test_metrics_wait_for_mlflow_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.registry.writer._RETRY", 0.05)

    class Away:
        """Refuses the first batches, as a server that is being restarted does."""

        def __init__(self, mlflow: Any, refusals: int) -> None:
            self.mlflow, self.refusals = mlflow, refusals

        def log_batch(self, run_id: str, metrics: Any) -> None:
            self.refusals -= 1
            if self.refusals >= 0:
                raise ConnectionError("connection refused")
            self.mlflow.log_batch(run_id, metrics=metrics)

    with start() as night:
        writer = MetricWriter(Away(night.mlflow, refusals=3))
        began = time.monotonic()
        for step in range(2500):
            writer.add(night.id, {"loss": float(step)}, step)
        assert time.monotonic() - began < 1  # adding never waits for MLflow
        writer.flush()
        history = night.mlflow.get_metric_history(night.id, "loss")
        assert sorted(metric.step for metric in history) == list(range(2500))

        gone = MetricWriter(Away(night.mlflow, refusals=10**9))
        gone.add(night.id, {"loss": 1.0}, 1)
        with pytest.raises(WorldFailed, match=r"1 metrics could not be written \(connection refused\)"):
            gone.flush(timeout=0.3)
        night.finish("kept", "fine")


@pytest.mark.parametrize(("suites", "words"), [(2, 20), (30, 80), (400, 80)])
def test_a_verdict_on_many_suites_still_reads(suites: int, words: int) -> None:
    """What is read back counts for the year's error, so a tag must not be cut in the middle."""
    numbers = dict.fromkeys(("reference", "candidate", "difference", "low", "high"), 0.123456)
    comparisons = tuple(Comparison.model_construct(suite=f"suite-{n}", **numbers) for n in range(suites))
    verdict = Verdict.model_construct(
        decision="keep",
        address="a" * 64,
        level=0.0005,
        asked_at="2026-01-01T00:00:00+00:00",
        candidate="c" * 64,
        champion=None,
        reasons=("word " * words,) * suites,
        comparisons=comparisons,
    )
    text = verdict_tag(verdict)
    told = json.loads(text)
    assert len(text) <= 7900
    assert (told["decision"], told["level"], told["address"]) == ("keep", 0.0005, "a" * 64)
    assert (len(told["suites"]) == suites) is (suites < 400)
    assert (len(told["reasons"]) == suites) is (suites == 2)
