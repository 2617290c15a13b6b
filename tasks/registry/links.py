"""Where the parts of a version's story are, for people: pages of MLflow, files it serves, and the flow run in Prefect.

MLflow's pages are relative to its own address, so that they hold wherever a team reaches it; what is read elsewhere (a
report on disk) is given the address. An HTML artifact that MLflow shows stands in a frame that opens no links, which is
why they are in the descriptions as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

from tasks.conversations import Conversations
from tasks.registry.schema import Version
from tasks.store import Store

LINEAGE = "lineage"
"""Folder of the training run's artifacts with the graph and the mixture's picture."""
GATE = "data-gate"
"""Folder of the training run's artifacts with the data gate's pages."""


def story_links(
    experiment: str,
    night: str,
    run: str,
    gates: Mapping[str, str],
    flow_run: str = "",
    version: Version | None = None,
    site: str = "",
) -> dict[str, str]:
    """URLs by what is there.

    `run`: the training run's id, empty where nothing is registered; `gates`: page of the data gate by source; `site`:
    MLflow's address, where it is needed.
    """
    root = f"{site}/" if site else ""
    runs = f"{root}#/experiments/{experiment}/runs"
    links = {}
    if version:
        links["version"] = f"{root}#/models/{version.model}/versions/{version.version}"
    if run:
        artifacts = f"{runs}/{run}/artifacts"
        links["training run"] = f"{runs}/{run}"
        links["mixture"] = f"{artifacts}/{LINEAGE}/mixture.png"
        links |= {f"data gate of {source}": f"{artifacts}/{GATE}/{page}" for source, page in gates.items()}
        links["report"] = f"{artifacts}/report/report.html"
    links["night"] = f"{runs}/{night}"
    links["recipe"] = f"{runs}/{night}/artifacts/recipe.yaml"
    links["where its values come from"] = f"{runs}/{night}/artifacts/settings.json"
    return links | ({"flow run": flow_run} if flow_run else {})


def gate_pages(conversations: Sequence[Conversations], store: Store) -> dict[str, str]:
    """The page that says most of what the data gate found, by source, relative to GATE."""
    found = {}
    for entry in conversations:
        names = sorted(path.name for path in Path(store.folder(entry), "docs").glob("*.html"))
        best = next((name for name in names if name.endswith("-conversations.html")), "index.html")
        found[entry.source] = f"{entry.source}/{best}"
    return found


def picture(run: str, file: str) -> str:
    """The address of a picture among a run's artifacts, for Markdown that MLflow shows."""
    return f"get-artifact?path={quote(f'{LINEAGE}/{file}')}&run_uuid={run}"


def markdown_links(links: Mapping[str, str]) -> str:
    """One line of links."""
    return " · ".join(f"[{name}]({url})" for name, url in links.items())
