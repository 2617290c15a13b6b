"""A webhook starts a night: with the secret, and not without."""

from __future__ import annotations

import json
import signal
import subprocess
from typing import Any

import httpx
import pytest
from stack import PLANTED, Stack

SECRET = PLANTED["NIGHTOWL_TRIGGER_SECRET"]


@pytest.fixture(scope="module")
def night(up: Stack, tiny_recipe: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A deployed night that its data gate stops at once, so that it takes no time of others."""
    recipe = {**tiny_recipe, "name": "hooked", "quality": {"min_rows": 10_000}}
    up.deploy(recipe, tmp_path_factory.mktemp("hooked") / "hooked.yaml")
    return {"deployments": {"id": {"any_": [up.server.get("/deployments/name/nightly/hooked")["id"]]}}}


@pytest.mark.parametrize("headers", [{}, {"X-Webhook-Secret": "guessed"}, {"Authorization": "Bearer guessed"}])
def test_nobody_starts_a_night_without_the_secret(up: Stack, headers: dict[str, str]) -> None:
    answer = httpx.post(up.hook.replace("RECIPE", "demo"), headers=headers, json={})
    assert answer.status_code == 401
    assert SECRET not in answer.text


def test_it_is_served_by_itself_for_a_server_somewhere_else(up: Stack, night: dict[str, Any]) -> None:
    environment = {**up.environment, "NIGHTOWL_HOME": str(up.folder / "elsewhere"), "PREFECT_API_URL": up.api}
    command = [*up.command, "hook", "--port", "0", "--json"]
    with subprocess.Popen(command, cwd=up.folder, env=environment, stdout=subprocess.PIPE, text=True) as serving:
        try:
            assert serving.stdout
            hook = json.loads(serving.stdout.readline())["hook"]
            assert httpx.get(hook.replace("nights/RECIPE", "health")).status_code == 200
            assert httpx.get(hook.replace("RECIPE", "hooked")).status_code == 404
            assert httpx.post(hook.replace("RECIPE", "hooked")).status_code == 401
            known = {"X-Webhook-Secret": SECRET}
            assert httpx.post(hook.replace("RECIPE", "nobody"), headers=known).status_code == 404
            taken = up.nightowl("hook", "--port", hook.split(":")[2].split("/")[0])
            assert taken.returncode == 3
            assert "Give another --port" in taken.stderr
        finally:
            serving.send_signal(signal.SIGTERM)
        assert serving.wait(30) == 0
    assert up.runs(**night) == []
    del environment["NIGHTOWL_TRIGGER_SECRET"]
    done = subprocess.run(command, cwd=up.folder, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, "NIGHTOWL_TRIGGER_SECRET" in done.stderr) == (2, True)


def test_the_secret_starts_the_night_and_no_other(up: Stack, night: dict[str, Any]) -> None:
    known = {"X-Webhook-Secret": SECRET}
    for path in ("/nights/nobody", "/nights/", "/else/hooked", "/nights/../hooked"):
        assert httpx.post(up.hook.replace("/nights/RECIPE", path), headers=known).status_code == 404
    assert up.runs(**night) == []
    answer = httpx.post(
        up.hook.replace("RECIPE", "hooked"), headers={"Authorization": f"Bearer {SECRET}"}, json={"x": 1}
    )
    assert answer.status_code == 202
    assert [run["id"] for run in up.runs(**night)] == [answer.json()["flow_run"]]
    up.ended(answer.json()["flow_run"], 300)
