"""A night of several candidates, one of which fails: trained, judged and registered, and the best let out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
VARY = [
    {"field": "training.learning_rate", "low": 0.001, "high": 0.02, "log": True},
    {"field": "training.warmup_steps", "choices": [1, 50]},  # 50 leave no step at the full rate: that one cannot train
    {"field": "mixture.rows", "choices": [40, 60]},
]


def nightowl(*arguments: str) -> dict[str, Any]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows.cli", *arguments, "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    told: dict[str, Any] = json.loads(done.stdout)
    return told


@pytest.mark.timeout(900)
def test_a_night_of_three_candidates(tiny_recipe: dict[str, Any], tmp_path: Path, nightowl_home: Path) -> None:
    file = tmp_path / "searching.yaml"
    training = {**tiny_recipe["training"], "max_steps": 3, "backend": "transformers"}
    search = {"vary": VARY, "candidates": 3, "seed": 2}
    given = {"name": "searching", "training": training, "mixture": {"rows": 60}, "search": search}
    file.write_text(yaml.safe_dump({**tiny_recipe, **given}))
    night = nightowl("run", str(file))

    from tasks.recipe import load, resolved
    from tasks.registry import candidates, client, nights
    from tasks.search import Trials
    from tasks.store import Store

    recipe, _ = load(file)
    search_ = resolved(recipe)
    assert search_
    tried = Trials(recipe, search_, Store.open()).all()
    assert sorted(one.state for one in tried) == ["failed", "judged", "judged"]
    (failed,) = (one for one in tried if one.state == "failed")
    assert failed.values["training.warmup_steps"] == 50
    assert "training.warmup_steps: 50 leaves none" in (failed.reason or "")
    assert tried[0].values == {"training.learning_rate": 0.01, "training.warmup_steps": 1, "mixture.rows": 60}

    (record,) = nights("searching")
    versions = {version.adapter: version for version in candidates(recipe)}
    assert record.verdicts.keys() == versions.keys()
    assert len(versions) == 2
    # Each candidate is one more hypothesis: the second gets a tenth less of what there is.
    levels = sorted((told["level"] for told in record.verdicts.values()), reverse=True)
    assert levels[1] == pytest.approx(0.9 * levels[0], rel=1e-3)
    best = min(versions.values(), key=lambda version: version.scores["held_out_loss"])
    assert night["outcome"] == "promoted"
    assert night["version"]["version"] == best.version
    assert best.aliases == ("champion",)

    mlflow = client()
    experiment = mlflow.get_experiment_by_name("searching").experiment_id
    runs = mlflow.search_runs([experiment], f"tags.`mlflow.parentRunId` = '{night['run_id']}'")
    trained = {r.data.tags["nightowl.candidate"]: r for r in runs if r.data.tags["nightowl.stage"] == "train"}
    assert {name: run.info.status for name, run in trained.items()} == {
        one.candidate: "FAILED" if one.state == "failed" else "FINISHED" for one in tried
    }
    for one in tried:
        assert float(trained[one.candidate].data.params["search.mixture.rows"]) == one.values["mixture.rows"]
    told = nightowl("candidates", str(file), "--plot", str(tmp_path / "plot.svg"))
    assert [one["version"] for one in told["candidates"]] == [2, 1]
    assert {str(one["values"]) for one in told["candidates"]} == {str(v.values) for v in versions.values()}
    assert [one["trial"] for one in told["not_judged"]] == [failed.trial]
    assert "training.learning_rate" in (tmp_path / "plot.svg").read_text()

    pages = [path.read_text() for path in nightowl_home.glob("store/report/*/lineage.svg")]
    assert len(pages) == 2
    others = {one.candidate.upper() for one in tried if one.state == "judged"}
    assert {name for name in others for page in pages if f">{name}<" in page} == others
