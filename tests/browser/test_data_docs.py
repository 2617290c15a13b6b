"""Data Docs in a real browser that reaches nothing but this disk: they open, look right and lead to every night."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from expectations.history import PAGES
from tasks.quality import RULES, Found, Measure, decide, decide_change
from tasks.recipe import Quality

NIGHTS = ("first", "second")


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pages of two nights, the second of them bad, below `history`, `first`, `second` and `moved`."""
    folder = tmp_path_factory.mktemp("docs")
    for night, broken in zip(NIGHTS, (0, 30), strict=True):
        flags = {rule.name: (pl.int_range(100) < (broken if rule.name == "placeholder" else 0)) for rule in RULES}
        ids = pl.DataFrame({"row_id": [f"{i:032x}" for i in range(100)], "turns": [2] * 100})
        flagged = ids.with_columns(kept=pl.int_range(100) >= broken, **flags)
        rows = ids.select(source_row=pl.int_range(100), unconvertible=pl.lit(False), set_aside=~flagged["kept"])
        counts = {rule.name: int(flagged[rule.name].sum()) for rule in RULES}
        counts |= {"unconvertible": 0, "set_aside": broken}
        found = Found(rows, flagged, counts, {"placeholder": (0, "assistant: Dear {{customer}}, $v__0 <b>hello</b>.")})
        decide(f"{night}-talk", found, RULES, Quality(), folder / night, folder / "history")
    (folder / "drift.svg").write_text('<?xml version="1.0"?><svg viewBox="0 0 9 9"><rect width="9" height="9"/></svg>')
    measure = Measure(
        rule="rows_moved", statistic="rows", severity="critical", before="900", now="300", value=0.33, low=0.5
    )
    decide_change("second-talk", [measure], folder / "drift.svg", folder / "moved", folder / "history")
    return folder


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Names resolve to nothing, so that whatever a page asks for elsewhere fails as it would offline.
        nowhere = ["--no-sandbox", "--host-resolver-rules=MAP * ~NOTFOUND"]
        started = playwright.chromium.launch(executable_path=chromium, args=nowhere)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page that fails the test where anything but a file is asked for, or a script fails."""
    context = browser.new_context(offline=True, viewport={"width": 1280, "height": 900})
    opened = context.new_page()
    asked: list[str] = []
    faults: list[str] = []
    opened.on("request", lambda request: asked.append(request.url))
    opened.on("pageerror", lambda error: faults.append(str(error)))
    opened.on("requestfailed", lambda request: faults.append(request.url))
    yield opened
    context.close()
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []
    assert faults == []


def style(page: Any, selector: str, name: str) -> str:
    return str(page.eval_on_selector(selector, f"element => getComputedStyle(element).{name}"))


def test_a_nights_page_opens_with_its_styles_and_examples(docs: Path, page: Any) -> None:
    page.goto((docs / "second" / "index.html").as_uri())
    assert "system-ui" in style(page, "body", "fontFamily")
    assert style(page, "table", "borderCollapse") == "collapse"
    rows = page.locator("tr", has_text="placeholder (warning)")
    text = rows.first.inner_text()
    assert "30 rows break it; at least 90.0% of the rows must keep it." in text
    assert "What breaks it: user: Who are you? | assistant: I am {{name}}, glad to meet you." in text
    assert "Found: row 0, assistant: Dear {{customer}}, $v__0 <b>hello</b>." in text
    # Rules without a find show what would break them as well.
    quiet = page.locator("tr", has_text="mojibake (warning)").first.inner_text()
    assert "0 rows break it" in quiet
    assert "What breaks it: user: Where? | assistant: In the cafÃ©." in quiet
    failed = page.locator("i.fa-times").first.evaluate("element => getComputedStyle(element, '::before').content")
    assert "✗" in failed


def test_failed_rules_can_be_shown_alone(docs: Path, page: Any) -> None:
    page.goto((docs / "second" / "index.html").as_uri())
    good = page.locator("tr", has_text="mojibake (warning)").first
    assert good.is_visible()
    page.get_by_text("Failed Only").first.click()
    assert not good.is_visible()
    assert page.locator("tr", has_text="placeholder (warning)").first.is_visible()
    page.get_by_text("Show All").first.click()
    assert good.is_visible()


def test_the_history_lists_every_night_and_leads_to_it(docs: Path, page: Any) -> None:
    page.goto((docs / "history" / PAGES / "index.html").as_uri())
    names = page.locator("table td:nth-child(3)").all_inner_texts()
    assert sorted(names) == ["first-talk"] * 2 + ["second-talk"] * 3
    assert names.index("second-talk") < names.index("first-talk")
    for name in ("first-talk-conversations", "second-talk-changes"):
        page.goto((docs / "history" / PAGES / "index.html").as_uri())
        page.get_by_role("link", name=name).first.click()
        assert name in page.content()
        assert style(page, "table", "borderCollapse") == "collapse"


def test_what_has_moved_is_shown_with_its_picture(docs: Path, page: Any) -> None:
    page.goto((docs / "moved" / "index.html").as_uri())
    assert page.locator("figure svg rect").bounding_box()["width"] > 600
    told = page.locator("tr", has_text="rows_moved (critical)").first.inner_text()
    assert "rows now per row then 0.33 (at least 0.5); then 900, now 300." in told
