"""A person says whether a candidate is let out, on a real server with real workers."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from flows.approve import ask, waits
from tasks.evaluation import Verdict
from tasks.recipe import Recipe, load, parse
from tasks.registry import Version, alias_version, client, ensure_model, moves
from tasks.store import Store

Stack = Any  # of conftest.py
MODEL = "nightowl-asked"


@pytest.fixture
def recipe(tiny_recipe: dict[str, Any]) -> Recipe:
    gate = {**tiny_recipe["gate"], "approval": "required", "approval_hours": 2}
    return parse({**tiny_recipe, "name": "asked", "gate": gate})


def judged(up: Stack, decision: str) -> Verdict:
    def build(work: Path) -> dict[str, Any]:
        (work / "verdict.md").write_text(f"# {decision.capitalize()}\n\nThe candidate is better.\n")
        fields = {"candidate": "adapter-1", "champion": None, "decision": decision}
        return {**fields, "reasons": ("it is better",), "comparisons": ()}

    return Store(up.home / "store").make(Verdict, {"decision": decision}, build)[0]


def registered() -> Version:
    mlflow = client()
    ensure_model(mlflow, MODEL, "asked")
    run_id = mlflow.get_registered_model(MODEL).tags["nightowl.journal"]
    tags = {
        "nightowl.adapter": "adapter-1",
        "nightowl.against": "base",
        "nightowl.verdict": "promote",
        "nightowl.reasons": '["it is better"]',
    }
    source = f"{mlflow.get_run(run_id).info.artifact_uri}/adapter"
    made = mlflow.create_model_version(MODEL, source, run_id, tags=tags)
    return Version(model=MODEL, version=int(made.version), adapter="adapter-1", run_id=run_id, model_id="m-1")


def until(look: Callable[[], Any], says: str) -> Any:
    deadline = time.monotonic() + 240
    while not (found := look()):
        assert time.monotonic() < deadline, says
        time.sleep(0.5)
    return found


def state(up: Stack, run_id: str, name: str) -> Any:
    """The run, once it is in this state."""

    def look() -> Any:
        run = up.run(run_id)
        over = run["state_type"] in ("FAILED", "CRASHED", "CANCELLED", "COMPLETED")
        assert run["state_name"] == name or not over, run["state"]
        return run if run["state_name"] == name else None

    return until(look, f"run {run_id} is not {name}")


def asked(up: Stack, run_id: str) -> Any:
    """The run's keys of its form, once it is suspended and the form is there (Prefect stores it after the state)."""
    keyset = state(up, run_id, "Suspended")["state"]["state_details"]["run_input_keyset"]
    until(lambda: up.server.get(f"/flow_runs/{run_id}/input/{keyset['schema']}"), f"run {run_id} has no form")
    return keyset


def picture(up: Stack, run_id: str, name: str, *, resume: bool = False) -> None:
    """The run's page in Prefect, where NIGHTOWL_SCREENSHOTS names a folder for pictures; `resume`: with its form."""
    folder, chromium = os.environ.get("NIGHTOWL_SCREENSHOTS"), shutil.which("chromium")
    if not folder or not chromium:
        return
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-quic"])
        page = browser.new_page(viewport={"width": 1280, "height": 1000})
        page.set_default_timeout(60_000)
        page.goto(f"{up.api.removesuffix('/api')}/runs/flow-run/{run_id}")
        page.get_by_text("Suspended" if resume else "Completed").first.wait_for()
        page.screenshot(path=Path(folder) / f"{name}.png")
        if resume:
            page.get_by_role("button", name="Resume").first.click()
            page.get_by_text("it becomes champion").first.wait_for()
            page.screenshot(path=Path(folder) / f"{name}-form.png")
        browser.close()


def answer(up: Stack, run_id: str, **form: Any) -> Any:
    return up.server.send("POST", f"/flow_runs/{run_id}/resume", {"run_input": form})


@pytest.mark.timeout(1200)
def test_what_the_gate_lets_out_waits_for_a_person(up: Stack, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    monkeypatch.setenv("MLFLOW_TRACKING_URI", up.mlflow)
    verdict, version = judged(up, "promote"), registered()
    with temporary_settings({PREFECT_API_URL: up.api}):
        ask(recipe, verdict, version)
        ask(recipe, verdict, version)  # a night that goes on after a crash
    (asking,) = up.runs(flows={"name": {"any_": ["approve"]}})

    # It shows the verdict's page, and no process of it is left while it waits.
    keyset = asked(up, asking["id"])
    (artifact,) = up.server.send("POST", "/artifacts/filter", {"artifacts": {"key": {"like_": "approval-"}}})
    assert artifact["data"].startswith("# Promote")
    form = up.server.get(f"/flow_runs/{asking['id']}/input/{keyset['schema']}")
    assert set(form["properties"]) == {"approve", "comment", "who"}
    assert "# Promote" in up.server.get(f"/flow_runs/{asking['id']}/input/{keyset['description']}")
    refused = answer(up, asking["id"], approve="perhaps")
    assert refused["status"] == "REJECT", refused

    # No: the champion stays, and the record says who said so and why.
    assert answer(up, asking["id"], approve=False, comment="not before the holidays", who="ada")["status"] == "ACCEPT"
    state(up, asking["id"], "Completed")
    assert alias_version(client(), MODEL, "champion") is None

    # Nobody answers: no.
    late = up.start("approve/data", **{**asking["parameters"], "hours": 0.0005})
    failed = until(lambda: (run := up.run(late["id"]))["state_type"] == "FAILED" and run, "it still waits")
    assert "never resumed" in failed["state"]["message"]
    assert answer(up, late["id"], approve=True)["status"] != "ACCEPT"

    # Yes.
    again = up.start("approve/data", **asking["parameters"])
    asked(up, again["id"])
    picture(up, again["id"], "suspended", resume=True)
    assert answer(up, again["id"], approve=True, comment="looks right", who="grace")["status"] == "ACCEPT"
    state(up, again["id"], "Completed")
    assert alias_version(client(), MODEL, "champion") == version.version
    picture(up, again["id"], "approved")
    assert [(move.who, move.why, move.moved) for move in moves(client(), MODEL)] == [
        ("ada", "not before the holidays", False),
        ("grace", "approved: looks right", True),
    ]


def test_only_what_would_be_let_out_waits(recipe: Recipe, tmp_path: Path) -> None:
    version = Version(model=MODEL, version=3, adapter="a", run_id="r", model_id="m")
    verdicts = {decision: Verdict.model_construct(decision=decision) for decision in ("promote", "keep", "cannot tell")}
    told = {decision: waits(recipe, verdict, version) for decision, verdict in verdicts.items()}
    assert told["keep"] is told["cannot tell"] is None
    assert "within 2 hours" in (told["promote"] or "")
    assert "nightowl promote asked 3 --why" in (told["promote"] or "")
    assert waits(load("demo")[0], verdicts["promote"], version) is None
