"""A webhook starts a night: with the secret, and not without."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from stack import PLANTED, Stack

SECRET = PLANTED["NIGHTOWL_TRIGGER_SECRET"]


@pytest.fixture
def night(up: Stack, tiny_recipe: dict[str, Any], tmp_path: Any) -> dict[str, Any]:
    """A deployed night that its data gate stops at once, so that it takes no time of others."""
    recipe = {**tiny_recipe, "name": "hooked", "quality": {"min_rows": 10_000}}
    up.deploy(recipe, tmp_path / "hooked.yaml")
    return {"deployments": {"id": {"any_": [up.server.get("/deployments/name/nightly/hooked")["id"]]}}}


@pytest.mark.parametrize("headers", [{}, {"X-Webhook-Secret": "guessed"}, {"Authorization": "Bearer guessed"}])
def test_nobody_starts_a_night_without_the_secret(up: Stack, headers: dict[str, str]) -> None:
    answer = httpx.post(up.hook.replace("RECIPE", "demo"), headers=headers, json={})
    assert answer.status_code == 401
    assert SECRET not in answer.text


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
