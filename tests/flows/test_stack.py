"""`nightowl up`: servers and workers on one home, on 127.0.0.1 only; what it deploys is what the files say."""

from __future__ import annotations

import json
import shutil
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from stack import Stack

from flows import deploy
from flows.deploy import variables
from flows.server import apply

IDLE_BYTES = 1.5e9


def everything(server: Any) -> dict[str, Any]:
    """What a deploy could touch, by id, but for what workers and the clock touch."""
    asked = ("deployments", "automations", "block_documents")
    found = [entry for kind in asked for entry in server.send("POST", f"/{kind}/filter", {"limit": 200})]
    moving = ("updated", "status", "last_polled", "work_queue_id")
    return {entry["id"]: {name: value for name, value in entry.items() if name not in moving} for entry in found}


def test_it_serves_both_on_this_machine_alone(up: Stack) -> None:
    children = psutil.Process(up.process.pid).children(recursive=True)
    listening = {c.laddr.ip for child in children for c in child.net_connections() if c.status == "LISTEN"}
    assert listening == {"127.0.0.1"}
    for url, expected in ((up.api.removesuffix("/api"), "Prefect"), (up.mlflow, "MLflow")):
        with urllib.request.urlopen(url, timeout=30) as page:
            assert expected in page.read().decode()


def test_a_second_up_says_that_it_is_running(up: Stack) -> None:
    second = up.nightowl("up", "--json")
    assert second.returncode == 0, second.stderr
    assert json.loads(second.stdout)["prefect"] == up.api


def test_a_worker_of_each_pool_is_online_and_each_part_has_a_log(up: Stack) -> None:
    for pool in ("data", "gpu"):
        (worker,) = up.server.send("POST", f"/work_pools/{pool}/workers/filter", {})
        assert worker["status"] == "ONLINE"
    assert {path.name for path in (up.home / "logs").glob("*.log")} == {
        "prefect.log",
        "mlflow.log",
        "data.log",
        "gpu.log",
    }


def test_idle_it_takes_little_memory(up: Stack) -> None:
    family = [psutil.Process(up.process.pid), *psutil.Process(up.process.pid).children(recursive=True)]
    ours = [process for process in family if "flows.run" not in " ".join(process.cmdline())]
    assert sum(process.memory_full_info().pss for process in ours) < IDLE_BYTES


def test_applying_twice_changes_nothing(up: Stack) -> None:
    before = everything(up.server)
    assert before
    done = up.nightowl("deploy", "--json")
    assert json.loads(done.stdout)["changes"] == []
    assert everything(up.server) == before


def test_a_difference_is_shown_before_it_is_applied(up: Stack, tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe = {**tiny_recipe, "name": "differing"}
    up.deploy(recipe, tmp_path / "differing.yaml")
    change = ("deploy", str(tmp_path / "differing.yaml"), "--set", "training.learning_rate=0.02")
    expected = {"parameters.recipe.training.learning_rate": [0.01, 0.02]}
    shown = json.loads(up.nightowl(*change, "--show", "--json").stdout)
    assert [entry["fields"] for entry in shown["changes"]] == [expected] * len(shown["changes"])
    assert {entry["name"] for entry in shown["changes"]} >= {"nightly/differing"}
    again = json.loads(up.nightowl(*change, "--json").stdout)
    assert again["changes"] == shown["changes"]
    after = up.server.get("/deployments/name/nightly/differing")
    assert after["parameters"]["recipe"]["training"]["learning_rate"] == 0.02


def test_variables_of_the_file_are_applied_and_others_left_alone(
    up: Stack, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "deployments"
    shutil.copytree(deploy.FOLDER, folder)
    monkeypatch.setattr(deploy, "FOLDER", folder)
    file = folder / "prefect.yaml"
    plain = file.read_text()
    up.server.send("POST", "/variables/", {"name": "of_somebody", "value": "theirs"})
    for image, before in (("nightowl:1", None), ("nightowl:2", "nightowl:1")):
        file.write_text(plain.replace("variables: {}", f"variables: {{gpu_image: {image!r}, most: 3}}"))
        changed = {change.name: change for change in apply(variables(up.server))}
        assert changed["gpu_image"].fields == ({"value": (before, image)} if before else {})
        assert ("most" in changed) == (before is None)
        assert apply(variables(up.server)) == []
    found = {one["name"]: one["value"] for one in up.server.send("POST", "/variables/filter", {})}
    assert found == {"of_somebody": "theirs", "gpu_image": "nightowl:2", "most": 3}


def test_the_cron_line_yields_scheduled_runs_in_its_time_zone(
    up: Stack, tiny_recipe: dict[str, Any], tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    schedule = {"cron": "30 2 * * *", "timezone": "Asia/Shanghai"}
    up.deploy({**tiny_recipe, "name": "scheduled", "schedule": schedule}, tmp_path / "scheduled.yaml")
    deployment = up.server.get("/deployments/name/nightly/scheduled")
    query = {"deployments": {"id": {"any_": [deployment["id"]]}}}
    runs = wait_for(lambda: up.runs(**query), 90)
    due = [datetime.fromisoformat(run["expected_start_time"]).astimezone(UTC) for run in runs]
    assert {(moment.hour, moment.minute) for moment in due} == {(18, 30)}
    assert {run["state_name"] for run in runs} == {"Scheduled"}


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("training.learning_rate", 5, "less than|maximum|0.1"),
        ("training.rank", "many", "integer"),
        ("training.rnak", 8, "rnak"),
        ("evaluation.suites.0.role", "judge", "target"),
    ],
)
def test_a_wrong_value_is_refused_by_the_server(
    up: Stack, tiny_recipe: dict[str, Any], path: str, value: object, says: str
) -> None:
    import httpx

    recipe = json.loads(json.dumps(tiny_recipe))
    *keys, last = [int(key) if key.isdigit() else key for key in path.split(".")]
    part = recipe
    for key in keys:
        part = part[key]
    part[last] = value
    deployment = up.server.get("/deployments/name/nightly/demo")
    url = f"{up.api}/deployments/{deployment['id']}/create_flow_run"
    answer = httpx.post(url, json={"parameters": {"recipe": recipe}})
    assert answer.status_code == 409, answer.text
    assert any(word in answer.text for word in says.split("|")), answer.text


def test_the_form_is_the_recipe_with_the_presets_values(up: Stack) -> None:
    deployment = up.server.get("/deployments/name/nightly/demo")
    schema = deployment["parameter_openapi_schema"]
    assert list(schema["properties"]) == ["recipe"]
    rate = schema["definitions"]["Training"]["properties"]["learning_rate"]
    assert (rate["exclusiveMinimum"], rate["maximum"]) == (0, 0.1)
    bare = [
        f"{name}.{field}"
        for name, part in schema["definitions"].items()
        for field, about in part.get("properties", {}).items()
        if not (about.get("description") or "$ref" in about)
    ]
    assert bare == []
    from tasks.recipe import PRESETS, load, parse

    assert parse(deployment["parameters"]["recipe"]) == load("demo")[0]
    names = set(yaml.safe_load((PRESETS / "demo.yaml").read_text()))
    assert names <= set(deployment["parameters"]["recipe"])
