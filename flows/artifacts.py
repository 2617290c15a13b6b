"""What a person sees of a night on its pages in Prefect: tables, plots and links, as artifacts of the flow runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prefect.artifacts import create_image_artifact, create_link_artifact, create_table_artifact

from flows.bill import Bill
from tasks.conversations import Conversations
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.registry import Night, Run, site
from tasks.sources import Snapshot
from tasks.store import Store


def show_data(
    recipe: Recipe,
    snapshots: Mapping[str, Snapshot],
    conversations: Sequence[Conversations],
    mixture: TokenisedMixture,
    stage: Run,
) -> None:
    """The sources: where they stood, what passed, what share they reached, and the gate's pages."""
    store = Store.open()
    rows = [
        {
            "source": entry.source,
            "revision": snapshots[entry.source].revision[:12],
            "rows": entry.rows_in,
            "passed": entry.rows_out,
            "set aside": ", ".join(f"{reason} {rows}" for reason, rows in entry.set_aside.items()),
            "share asked": round(share.asked, 4),
            "share reached": round(share.reached, 4),
            "pages": (store.folder(entry) / "docs" / "index.html").as_uri(),
        }
        for entry in conversations
        if (share := mixture.shares[entry.source])
    ]
    create_table_artifact(rows, key=_key(recipe, "data"), description="The sources, as this night found them")
    plot = f"{site()}/get-artifact?path=composition.png&run_uuid={stage.id}"
    create_image_artifact(plot, key=_key(recipe, "composition"), description="What the splits are made of")


def show_night(recipe: Recipe, night: Night) -> None:
    """The way from the night's page in Prefect to its run in MLflow; the run's tags lead back."""
    url = f"{site()}/#/experiments/{night.experiment_id}/runs/{night.id}"
    create_link_artifact(url, "The night in MLflow", key=_key(recipe, "mlflow"), description="Its run and its stages'")


def show_bill(recipe: Recipe, spent: Bill) -> None:
    create_table_artifact(spent.lines, key=_key(recipe, "bill"), description="What the night took")


def _key(recipe: Recipe, what: str) -> str:
    return f"{recipe.name.replace('_', '-')}-{what}"
