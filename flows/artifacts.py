"""What a person sees of a night on its pages in Prefect: tables, plots and links, as artifacts of the flow runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from prefect.artifacts import create_link_artifact, create_markdown_artifact, create_table_artifact

from flows.bill import Bill
from tasks.conversations import Conversations
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.registry import Night, Run, Version, site
from tasks.sources import Snapshot


def show_data(
    recipe: Recipe,
    snapshots: Mapping[str, Snapshot],
    conversations: Sequence[Conversations],
    mixture: TokenisedMixture,
    stage: Run,
) -> None:
    """The sources: where they stood, what passed and what share they reached; and the gate's pages with the plot."""
    rows = [
        {
            "source": entry.source,
            "revision": snapshots[entry.source].revision[:12],
            "rows": entry.rows_in,
            "passed": entry.rows_out,
            "set aside": ", ".join(f"{reason} {rows}" for reason, rows in entry.set_aside.items()),
            "share asked": round(share.asked, 4),
            "share reached": round(share.reached, 4),
        }
        for entry in conversations
        if (share := mixture.shares[entry.source])
    ]
    create_table_artifact(rows, key=_key(recipe, "data"), description="The sources, as this night found them")
    pages = [f"- [{entry.source}]({_page(stage, f'data-gate/{entry.source}/index.html')})" for entry in conversations]
    told = ["## What the data gate found", "", *pages, "", "## What the splits are made of", ""]
    told += [f"[![composition]({_file(stage, 'composition.png')})]({_page(stage, 'composition.html')})"]
    create_markdown_artifact("\n".join(told), key=_key(recipe, "pages"), description="Data Docs and composition")


def show_night(recipe: Recipe, night: Night) -> None:
    """The way from the night's page in Prefect to its run in MLflow; the run's tags lead back."""
    url = f"{site()}/#/experiments/{night.experiment_id}/runs/{night.id}"
    create_link_artifact(url, "The night in MLflow", key=_key(recipe, "mlflow"), description="Its run and its stages'")


def show_report(recipe: Recipe, night: Night, version: Version, report: str) -> None:
    """The report of the night: the verdict, what the adapter came from, and the way to the pages in MLflow.

    `report`: path of its page; its Markdown lies beside it.
    """
    links = {
        "the whole report": _page(night, "report/report.html"),
        f"{version.model} version {version.version}": f"{site()}/#/models/{version.model}/versions/{version.version}",
        "the night's run": f"{site()}/#/experiments/{night.experiment_id}/runs/{night.id}",
    }
    told = [Path(report).with_name("report.md").read_text(encoding="utf-8"), "## What it came from", ""]
    told += [f"![lineage]({_file(night, 'report/lineage.svg')})", "", "## In MLflow", ""]
    told += [f"- [{name}]({url})" for name, url in links.items()]
    create_markdown_artifact("\n".join(told), key=_key(recipe, "report"), description="The report of the night")


def show_bill(recipe: Recipe, spent: Bill) -> None:
    create_table_artifact(spent.lines, key=_key(recipe, "bill"), description="What the night took")


def _page(run: Run, path: str) -> str:
    """Where MLflow shows a file of a run."""
    return f"{site()}/#/experiments/{run.experiment_id}/runs/{run.id}/artifacts/{path}"


def _file(run: Run, path: str) -> str:
    """The file itself."""
    return f"{site()}/get-artifact?path={path}&run_uuid={run.id}"


def _key(recipe: Recipe, what: str) -> str:
    return f"{recipe.name.replace('_', '-')}-{what}"
