"""report: the terminal's table, Markdown, and the page, which must open without anything else."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from rich.console import Console

from tasks import registry
from tasks.errors import BadInput
from tasks.quality import Change
from tasks.registry import Night, Version
from tasks.registry.page import telling_items
from tasks.report import report, terminal


def told(world: Any, **more: Any) -> Any:
    return report(
        world.recipe,
        world.adapter,
        world.mixture,
        world.snapshots,
        world.conversations,
        world.base,
        world.scores,
        world.verdict,
        world.store,
        **more,
    )


def test_the_page_is_whole_and_harmless(world: Any) -> None:
    made = told(world, version=None)
    page = (world.store.folder(made) / "report.html").read_text(encoding="utf-8")
    loaded = re.findall(r'(?:src|href)="([^"]{0,40})', page)
    assert [
        place for place in loaded if not place.startswith(("data:image/png;base64,", "https://huggingface.co/"))
    ] == []
    assert page.count("data:image/png;base64,") == 4
    assert "<script" not in page
    assert "&lt;script&gt;alert(1)" in page  # the finding's example, as text
    assert "tool_call is better by 60 points" in page
    assert "hf://org/chat@5f1f5c" in page
    assert world.mixture.splits["train"].digest in page
    assert "cc-by-nc-4.0 ⚠ non-commercial" in (world.store.folder(made) / "card.md").read_text(encoding="utf-8")


def test_what_has_moved_since_the_last_night_is_on_the_page(world: Any) -> None:
    def build(work: Path) -> dict[str, Any]:
        (work / "drift.png").write_bytes(b"a picture")
        measure = {
            "statistic": "rows",
            "severity": "warning",
            "before": "900",
            "now": "300",
            "value": 1 / 3,
            "low": 0.5,
        }
        about = {"source": "chat", "conversations": "1" * 64, "before": "0" * 64, "before_made_at": "2026-11-23 02:00"}
        return {**about, "measures": [{"rule": "rows_moved", **measure}]}

    change, _ = world.store.make(Change, {"try": 1}, build)
    made = told(world, changes=[change])
    assert made.address != told(world).address
    page = (world.store.folder(made) / "report.html").read_text(encoding="utf-8")
    assert f"data:image/png;base64,{base64.b64encode(b'a picture').decode()}" in page
    assert "chat: Against the last night that passed with other rows (2026-11-23 02:00 UTC): 1 of 1 measures" in page
    assert "<td>rows_moved</td><td >warning</td>" in page
    assert "then 900, now 300" in page


def test_the_same_verdict_is_reported_once(world: Any) -> None:
    assert told(world) == told(world)


def test_the_terminal_shows_every_suite_with_its_interval(make: Callable[..., Any]) -> None:
    first = make(seed=1)
    world = make(champion=first.adapter.address, decision="cannot tell")
    screen = io.StringIO()
    Console(file=screen, width=160).print(terminal(world.recipe, world.scores, world.verdict, world.store))
    text = screen.getvalue()
    assert "Verdict: cannot tell" in text
    for suite in world.recipe.evaluation.suites:
        (line,) = [line for line in text.splitlines() if line.split()[:2] == [suite.name, suite.role]]
        assert " to " in line
    tools = next(line for line in text.splitlines() if line.split()[:2] == ["tool_call", "target"])
    base, champion, candidate = (
        f"{100 * world.scores[key].suites['tool_call'].mean:.1f} %"
        for key in ("base", first.adapter.address, world.adapter.address)
    )
    assert tools.index(base) < tools.index(champion) < tools.index(candidate)


def test_items_lost_are_shown_beside_those_won(make: Callable[..., Any]) -> None:
    world = make(gain=0.6)
    rows = registry.suite_rows(registry.by_role(world.scores.values(), world.verdict), world.verdict, world.store)
    base, candidate = world.scores["base"], world.scores[world.adapter.address]
    won = telling_items(base, candidate, rows, world.store)
    assert [item["result"] for item in won] == ["won"] * 10
    assert {item["suite"] for item in won} == {suite.name for suite in world.recipe.evaluation.suites}
    lost = telling_items(candidate, base, rows, world.store)
    assert {item["result"] for item in lost} == {"lost"}


def test_scores_of_each_model_are_needed(world: Any) -> None:
    del world.scores["base"]
    with pytest.raises(BadInput, match="scores of the base"):
        told(world)


def test_a_mean_has_an_interval_that_stays_inside_its_scale() -> None:
    from tasks.registry.figures import mean_of

    none, all_, half = (mean_of(pl.Series(values)) for values in ([0.0] * 64, [1.0] * 64, [0.0, 1.0] * 32))
    assert (none.value, none.low) == (0.0, 0.0)
    assert 0 < none.high < 0.1
    assert all_.low == pytest.approx(1 - none.high)
    assert half.high - half.value == pytest.approx(0.119, abs=0.002)  # Wilson at n = 64
    losses = mean_of(pl.Series([1.0, 2.0, 3.0]))
    assert losses.high - losses.value == pytest.approx(1.96 * 1 / 3**0.5, rel=1e-3)


@pytest.mark.usefixtures("embedded")
def test_the_report_lies_beside_the_runs_in_mlflow(world: Any) -> None:
    night = Night.start(world.recipe, world.settings)
    with night.stage("train", "candidate-1") as stage:
        stage.made(world.adapter)
    version = Version(model="m", version=1, adapter=world.adapter.address, run_id=stage.id, model_id="m-1")
    told(world, version=version, night=night)
    night.finish("promoted", "it is better")
    names = {entry.path for entry in night.mlflow.list_artifacts(night.id, "report")}
    assert {"report/report.html", "report/lineage.svg", "report/card.md", "report/report.md"} <= names
    assert night.mlflow.list_artifacts(stage.id, "report")


def test_the_lineage_graph_is_well_formed_and_joined(world: Any) -> None:
    from xml.etree import ElementTree

    made = told(world)
    svg = ElementTree.parse(Path(world.store.folder(made)) / "lineage.svg")
    space = "{http://www.w3.org/2000/svg}"
    titles = [title.text or "" for title in svg.iter(f"{space}title")]
    assert len(titles) == len(world.recipe.sources) + 4
    assert len(list(svg.iter(f"{space}path"))) == len(world.recipe.sources) + 3


def test_the_lineage_graph_leads_to_runs_pages_and_the_flow_run(world: Any) -> None:
    version = Version(model="m", version=3, adapter=world.adapter.address, run_id="r", model_id="m-1")
    links = registry.story_links(
        "7", "n", "r", {"chat": "chat/index.html"}, "http://prefect/1", version, "http://mlflow"
    )
    made_of = (world.base, world.snapshots, world.conversations, world.mixture, world.adapter, world.verdict)
    text = registry.lineage_graph(*made_of, version, links)
    assert set(re.findall(r'href="([^"]+)"', text)) == {
        "https://huggingface.co/datasets/org/chat/tree/" + world.snapshots[2].revision,
        "http://mlflow/#/experiments/7/runs/r/artifacts/data-gate/chat/index.html",
        "http://mlflow/#/experiments/7/runs/r/artifacts/lineage/mixture.png",
        "http://mlflow/#/experiments/7/runs/r",
        "http://mlflow/#/models/m/versions/3",
        "http://mlflow/#/experiments/7/runs/n",
        "http://prefect/1",
    }
    assert "data gate: 38 of 40 rows" in text
