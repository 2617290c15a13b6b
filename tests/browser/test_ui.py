"""A person starts a night from the Prefect UI, in a real browser, and finds its adapter in MLflow.

NIGHTOWL_SCREENSHOTS names a folder for pictures of the pages.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from stack import Stack

pytestmark = [pytest.mark.timeout(1200), pytest.mark.slow]
NIGHT_SECONDS = 600


@pytest.fixture
def page(chromium: str, stack: Stack) -> Iterator[Any]:
    """A page in Chromium; nothing it loads comes from outside this machine."""
    from playwright.sync_api import sync_playwright

    known = {"username": "nightowl", "password": stack.password, "origin": stack.mlflow} if stack.password else None
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-quic"])
        context = browser.new_context(viewport={"width": 1280, "height": 900}, http_credentials=known)
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.route(re.compile(r"^https?://(?!127\.0\.0\.1[:/])"), lambda route: route.abort())
        yield page
        browser.close()


def picture(page: Any, name: str, stack: Stack) -> None:
    """Kept where NIGHTOWL_SCREENSHOTS says; the server profile's pages look the same but for how one comes in."""
    folder = os.environ.get("NIGHTOWL_SCREENSHOTS")
    if folder and (name == "password") == bool(stack.password):
        page.screenshot(path=Path(folder) / f"{name}.png")


def come_in(page: Any, stack: Stack) -> None:
    """Open Prefect's pages; those of the server profile let nobody in without the password."""
    page.goto(f"{stack.api.removesuffix('/api')}/deployments")
    if not stack.password:
        return
    asked = page.locator("input[type=password]")
    asked.wait_for()
    picture(page, "password", stack)
    asked.fill(f"nightowl:{stack.password}")
    asked.press("Enter")
    asked.wait_for(state="detached")
    page.goto(f"{stack.api.removesuffix('/api')}/deployments")


def test_a_person_starts_a_night_and_finds_its_adapter(
    stack: Stack, page: Any, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    stack.deploy({**tiny_recipe, "name": "by-hand"}, tmp_path / "by-hand.yaml")
    deployment = stack.server.get("/deployments/name/nightly/by-hand")
    nights = {"deployments": {"id": {"any_": [deployment["id"]]}}}

    come_in(page, stack)
    page.get_by_placeholder("Search deployments").fill("by-hand")
    row = page.get_by_role("row").filter(has_text="nightly").filter(has_text="by-hand")
    link = row.get_by_role("link", name="by-hand").first
    link.wait_for()
    # A list that is just drawn anew swallows a click.
    page.goto(f"{stack.api.removesuffix('/api')}/deployments/deployment/{deployment['id']}")
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_text("Custom run").first.click()

    label = page.get_by_text("Learning Rate (Optional)")
    rate = label.locator("xpath=ancestor::*[.//input][1]//input").first
    rate.wait_for()
    assert float(rate.input_value()) == tiny_recipe["training"]["learning_rate"]
    assert page.get_by_text("Peak learning rate.").is_visible()
    picture(page, "form", stack)

    rate.fill("5")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text(re.compile("learning_rate.*5 is greater than the maximum of 0.1")).first.wait_for()
    picture(page, "refused", stack)
    assert stack.runs(**nights) == []

    rate.fill("0.02")
    from playwright.sync_api import TimeoutError

    # A server that is busy for a moment refuses; a person tries once more.
    for _ in range(3):
        page.get_by_role("button", name="Submit").click()
        with suppress(TimeoutError):
            page.wait_for_url(lambda url: "/run?" not in url, timeout=20_000)
            break
    (night,) = stack.runs(**nights)
    ended = stack.ended(night["id"], NIGHT_SECONDS)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]["message"]
    assert ended["parameters"]["recipe"]["training"]["learning_rate"] == 0.02

    page.goto(f"{stack.api.removesuffix('/api')}/runs/flow-run/{night['id']}?tab=Artifacts")
    page.get_by_text("Completed").first.wait_for()
    picture(page, "night", stack)
    asked = {"artifacts": {"key": {"any_": ["by-hand-report"]}}}
    (report,) = stack.server.send("POST", "/artifacts/filter", asked)
    page.goto(f"{stack.api.removesuffix('/api')}/artifacts/artifact/{report['id']}")
    link = page.get_by_role("link", name="nightowl-by-hand version 1").first
    link.wait_for()
    picture(page, "report-in-prefect", stack)
    for name in ("the whole report", "the night's run", "nightowl-by-hand version 1"):
        assert page.get_by_role("link", name=name).first.get_attribute("href").startswith(f"{stack.mlflow}/#/")
    run, version = (
        page.get_by_role("link", name=n).first.get_attribute("href")
        for n in ("the night's run", "nightowl-by-hand version 1")
    )

    page.goto(run)
    page.get_by_text("training.learning_rate").first.wait_for()
    page.goto(version)
    page.get_by_text("nightowl-by-hand").first.wait_for()
    # What it came from: the mixture by its digest, and the sources' commits.
    for tag in ("nightowl.mixture", "nightowl.recipe"):
        page.get_by_text(tag).first.wait_for()
    picture(page, "version", stack)
    # And the way back.
    its_run = f"{stack.mlflow}/api/2.0/mlflow/runs/get?run_id={run.rpartition('/')[2]}"
    known = ("nightowl", stack.password) if stack.password else None
    tags = {tag["key"]: tag["value"] for tag in httpx.get(its_run, auth=known).json()["run"]["data"]["tags"]}
    assert tags["nightowl.flow_run"].endswith(f"/flow-run/{night['id']}")
    page.goto(tags["nightowl.flow_run"])
    page.get_by_text("Completed").first.wait_for()
