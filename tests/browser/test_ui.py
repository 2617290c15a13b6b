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

import pytest
from stack import Stack

pytestmark = pytest.mark.timeout(1200)
NIGHT_SECONDS = 600


@pytest.fixture
def page(chromium: str) -> Iterator[Any]:
    """A page in Chromium; nothing it loads comes from outside this machine."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-quic"])
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        page.set_default_timeout(60_000)
        page.route(re.compile(r"^https?://(?!127\.0\.0\.1[:/])"), lambda route: route.abort())
        yield page
        browser.close()


def picture(page: Any, name: str) -> None:
    if folder := os.environ.get("NIGHTOWL_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def test_a_person_starts_a_night_and_finds_its_adapter(
    up: Stack, page: Any, tiny_recipe: dict[str, Any], tmp_path: Path
) -> None:
    up.deploy({**tiny_recipe, "name": "by-hand"}, tmp_path / "by-hand.yaml")
    deployment = up.server.get("/deployments/name/nightly/by-hand")
    nights = {"deployments": {"id": {"any_": [deployment["id"]]}}}

    page.goto(f"{up.api.removesuffix('/api')}/deployments")
    page.get_by_placeholder("Search deployments").fill("by-hand")
    row = page.get_by_role("row").filter(has_text="nightly").filter(has_text="by-hand")
    row.get_by_role("link", name="by-hand").first.click()
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_text("Custom run").first.click()

    label = page.get_by_text("Learning Rate (Optional)")
    rate = label.locator("xpath=ancestor::*[.//input][1]//input").first
    rate.wait_for()
    assert float(rate.input_value()) == tiny_recipe["training"]["learning_rate"]
    assert page.get_by_text("Peak learning rate.").is_visible()
    picture(page, "form")

    rate.fill("5")
    page.get_by_role("button", name="Submit").click()
    page.get_by_text(re.compile("learning_rate.*5 is greater than the maximum of 0.1")).first.wait_for()
    picture(page, "refused")
    assert up.runs(**nights) == []

    rate.fill("0.02")
    from playwright.sync_api import TimeoutError

    # A server that is busy for a moment refuses; a person tries once more.
    for _ in range(3):
        page.get_by_role("button", name="Submit").click()
        with suppress(TimeoutError):
            page.wait_for_url(lambda url: "/run?" not in url, timeout=20_000)
            break
    (night,) = up.runs(**nights)
    ended = up.ended(night["id"], NIGHT_SECONDS)
    assert ended["state"]["type"] == "COMPLETED", ended["state"]["message"]
    assert ended["parameters"]["recipe"]["training"]["learning_rate"] == 0.02

    page.goto(f"{up.api.removesuffix('/api')}/runs/flow-run/{night['id']}?tab=Artifacts")
    page.get_by_text("Completed").first.wait_for()
    picture(page, "night")
    artifact = up.server.get("/artifacts/by-hand-mlflow/latest")
    address = re.search(r"\((http[^)]+)\)", artifact["data"])[1]
    assert address.startswith(up.mlflow)

    page.goto(address)
    page.get_by_text("training.learning_rate").first.wait_for()
    page.goto(f"{up.mlflow}/#/models/nightowl-by-hand/versions/1")
    page.get_by_text("nightowl-by-hand").first.wait_for()
    page.get_by_text("nightowl.mixture").first.wait_for()
    picture(page, "version")
