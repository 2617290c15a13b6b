"""Remakes the README's pictures from the first demo night on this home: `make pictures` (needs Debian's chromium).

Starts the same servers as `nightowl up`, opens the pages a person would open, and writes PNG files to
infra/pictures/.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

from flows.component import environment
from flows.services import servers
from tasks.errors import Refused, WorldFailed
from tasks.recipe import load
from tasks.registry import Report, champion, nights
from tasks.store import Store

FOLDER = Path(__file__).parent / "pictures"
WIDTH = 1280
HEIGHT = {"report": 1750, "prefect": 800, "mlflow": 1265}  # what a person sees without scrolling, and the plots


def main(recipe_name: str = "demo") -> None:
    os.environ.update(environment())
    recipe, _ = load(recipe_name)
    reigning = champion(recipe)
    promoted = [night for night in nights(recipe.name) if night.outcome == "promoted"]
    reports = Store.open().all(Report)
    if reigning is None or not promoted or not reports:
        raise Refused(f"{recipe_name} has no champion on this home yet: `nightowl run {recipe_name}` first.")
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    if browser_path is None:
        raise WorldFailed("chromium", "is not installed", "On Debian and Ubuntu: apt install chromium")
    from playwright.sync_api import TimeoutError as PageTimeout
    from playwright.sync_api import sync_playwright

    report = Store.open().folder(reports[0]) / "report.html"
    with servers(4200, 5000) as (urls, _), sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox", "--disable-quic"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 800})
        # MLflow opens its assistant over a third of the page at a person's first visit, and not again.
        page.add_init_script("localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true')")
        pages = {
            "report": (report.as_uri(), "h1"),
            "prefect": (_flow_run(urls["prefect"]), "text=nightly"),
            "mlflow": (
                f"{urls['mlflow']}/#/models/{reigning.model}/versions/{reigning.version}",
                f"text=Version {reigning.version}",
            ),
        }
        for name, (url, sign) in pages.items():
            page.set_viewport_size({"width": WIDTH, "height": HEIGHT[name]})
            page.goto(url)
            page.locator(sign).first.wait_for(timeout=60_000)
            with suppress(PageTimeout):  # a page that polls is never idle; by then it has long been drawn
                page.wait_for_load_state("networkidle", timeout=10_000)
            page.screenshot(path=FOLDER / f"{name}.png")
            print(FOLDER / f"{name}.png")
        browser.close()


def _flow_run(api: str) -> str:
    """Page of the first nightly flow run that ended well."""
    import httpx

    body = {
        "flows": {"name": {"any_": ["nightly"]}},
        "flow_runs": {"state": {"type": {"any_": ["COMPLETED"]}}},
        "sort": "START_TIME_ASC",
        "limit": 1,
    }
    found = httpx.post(f"{api}/flow_runs/filter", json=body).raise_for_status().json()
    return f"{api.removesuffix('/api')}/runs/flow-run/{found[0]['id']}"


if __name__ == "__main__":
    main(*sys.argv[1:])
