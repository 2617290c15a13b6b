"""report: what came of a night, for the terminal, for Prefect, and as one HTML page that opens anywhere."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from tasks import registry
from tasks.conversations import Conversations
from tasks.evaluation import Scores, Verdict
from tasks.mixture import TokenisedMixture
from tasks.quality import Change
from tasks.recipe import Recipe
from tasks.registry import Night, Report, Rival, Snapshots, Story, SuiteRow, Version
from tasks.sources import BaseSnapshot
from tasks.store import Store, code_digest
from tasks.training import Adapter

_STYLE = {"better": "green", "not worse": "green", "worse": "red", "promote": "bold green", "keep": "bold yellow"}
_COLUMNS = ("suite", "role", "base", "champion", "candidate", "difference", "interval", "outcome")


def report(
    recipe: Recipe,
    adapter: Adapter,
    mixture: TokenisedMixture,
    snapshots: Snapshots,
    conversations: Sequence[Conversations],
    base: BaseSnapshot,
    scores: Mapping[str, Scores],
    verdict: Verdict,
    store: Store,
    version: Version | None = None,
    night: Night | None = None,
    changes: Sequence[Change] = (),
    rivals: Sequence[Rival] = (),
) -> Report:
    """Write the report of a verdict into the store; with `night`, into MLflow as well; inside a Prefect run, there too.

    `scores`: of the base, the candidate and, where there is one, the champion, under any keys; `changes`: of the
    sources since the last night that passed; `rivals`: the night's other candidates. Raises BadInput when
    one of the scores is missing.
    """
    by_role = registry.by_role(scores.values(), verdict)
    rows = registry.suite_rows(by_role, verdict, store)
    links = _links(version, night, conversations, store)
    story = Story(
        recipe=recipe,
        base=base,
        snapshots=snapshots,
        conversations=conversations,
        mixture=mixture,
        adapter=adapter,
        scores=by_role,
        rows=rows,
        verdict=verdict,
        version=version,
        links=links,
        changes=changes,
        rivals=rivals,
    )

    def build(work: Path) -> dict[str, Any]:
        card = registry.model_card(recipe, base, adapter, mixture, snapshots, conversations, rows, verdict)
        (work / "report.html").write_text(registry.page(story, store), encoding="utf-8")
        (work / "report.md").write_text(markdown(rows, verdict), encoding="utf-8")
        (work / "lineage.svg").write_text(registry.graph(story), encoding="utf-8")
        (work / "card.md").write_text(card, encoding="utf-8")
        return {"verdict": verdict.address, "headline": headline(verdict)}

    inputs = {
        "verdict": verdict.address,
        "scores": {role: entry.address for role, entry in by_role.items()},
        "adapter": adapter.address,
        "mixture": mixture.address,
        "changes": [change.address for change in changes],
        "rivals": [rival.verdict.address for rival in rivals],
        "version": version.version if version else None,
        "links": links,
        "recipe": recipe.name,
        "code": code_digest("tasks/report.py", "tasks/registry", libraries=("matplotlib", "jinja2")),
    }
    made, _ = store.make(Report, inputs, build)
    folder = store.folder(made)
    if night:
        night.artifact(folder, "report")
    if version:
        with registry.answers():
            registry.client().log_artifacts(version.run_id, str(folder), "report")
    _tell_prefect(recipe, rows, verdict)
    return made


def terminal(recipe: Recipe, scores: Mapping[str, Scores], verdict: Verdict, store: Store) -> RenderableType:
    """The table and the verdict for a terminal."""
    rows = registry.suite_rows(registry.by_role(scores.values(), verdict), verdict, store)
    against = "champion" if verdict.champion else "base"
    caption = "Differences are in points, of a loss in nats per token; plus is better."
    title = f"{recipe.name}: candidate against {against}"
    table = Table(title=title, caption=caption, title_justify="left", caption_justify="left", box=box.SIMPLE_HEAD)
    table.padding, table.pad_edge = (0, 0), False
    for name in _COLUMNS:
        wraps = name in ("difference", "interval")
        table.add_column(name, justify="left" if name in ("suite", "role", "outcome") else "right", no_wrap=not wraps)
    for row in registry.score_table(rows):
        cells = [
            Text(str(row[name]).partition(" ")[0] if name == "difference" else str(row[name])) for name in _COLUMNS
        ]
        cells[-1].stylize(_STYLE.get(str(row["outcome"]), "yellow"))
        table.add_row(*cells)
    lines = [Text(f"Verdict: {verdict.decision}", style=_STYLE.get(verdict.decision, "bold yellow"))]
    lines += [Text(f"  {reason}") for reason in verdict.reasons]
    return Group(table, *lines)


def markdown(rows: Sequence[SuiteRow], verdict: Verdict) -> str:
    """The same as Markdown."""
    reasons = "\n".join(f"- {reason}" for reason in verdict.reasons)
    return f"## {headline(verdict)}\n\n{registry.markdown_table(registry.score_table(rows))}\n\n{reasons}\n"


def headline(verdict: Verdict) -> str:
    """The verdict in one line."""
    against = f"champion {verdict.champion[:12]}" if verdict.champion else "the base model"
    return f"{verdict.decision}: candidate {verdict.candidate[:12]} against {against}"


def _links(
    version: Version | None, night: Night | None, conversations: Sequence[Conversations], store: Store
) -> dict[str, str]:
    if night is None:
        return {}
    gates = registry.gate_pages(conversations, store)
    run = version.run_id if version else ""
    return registry.story_links(night.experiment_id, night.id, run, gates, night.flow_run, version, registry.site())


def _tell_prefect(recipe: Recipe, rows: Sequence[SuiteRow], verdict: Verdict) -> None:
    from prefect.context import FlowRunContext, TaskRunContext

    if not (FlowRunContext.get() or TaskRunContext.get()):
        return
    from prefect.artifacts import create_markdown_artifact, create_table_artifact

    key = recipe.name.replace("_", "-")
    create_markdown_artifact(markdown(rows, verdict), key=f"{key}-verdict", description=headline(verdict))
    table = json.loads(json.dumps(registry.score_table(rows)))
    create_table_artifact(table, key=f"{key}-scores", description="Base, champion and candidate on every suite")
