"""What all versions and runs say they were made of, read from MLflow once and remembered in the home.

MLflow is what counts: each time, what has come since is asked of it, so that nights of other homes on the same server
are known as well. What a version was made of never changes, so only the first reading takes long. What has been
deleted in MLflow since is still remembered: that it existed is what whoever withdraws data has to know.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter

from tasks.registry.lineage import SOURCES_TAG, sources_said
from tasks.registry.tracking import RECIPE_TAG, pages, tracking_uri
from tasks.store import digest, home, write_whole

_OVERLAP = int(timedelta(days=7).total_seconds() * 1000)  # a stage's tags come after its start; no stage takes longer
_PAGES = (20, 500)  # a home that asks often finds little that is new


class Made(BaseModel):
    """One version (`model` and `version`) or one run of a stage. `at`: ms since 1970; `sources`: a line each."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    run: str
    at: int
    sources: str
    mixture: str
    adapter: str | None = None
    base: str | None = None
    model: str | None = None
    version: int | None = None


_MANY = TypeAdapter(tuple[Made, ...])


def all_made(mlflow: Any) -> tuple[Made, ...]:
    """Every version and every run of a stage that names a mixture, oldest first."""
    place = home() / "index" / f"made-{digest(tracking_uri())[:12]}.json"
    known = {_key(entry): entry for entry in (_MANY.validate_json(place.read_bytes()) if place.is_file() else ())}
    before = len(known)
    for entry in (*_versions(mlflow, known), *_runs(mlflow, known)):
        known[_key(entry)] = entry
    entries = tuple(sorted(known.values(), key=lambda entry: entry.at))
    if len(known) > before:
        place.parent.mkdir(exist_ok=True)
        write_whole(place, _MANY.dump_json(entries, exclude_none=True).decode())
    return entries


def _key(entry: Made) -> tuple[str, ...]:
    return (entry.model, str(entry.version)) if entry.model else (entry.run,)


def _versions(mlflow: Any, known: dict[tuple[str, ...], Made]) -> Iterator[Made]:
    """The newest first, until a whole page is known."""
    token, size = None, _PAGES[0]
    while True:
        page = mlflow.search_model_versions(
            "tags.`nightowl.mixture` LIKE '%'",
            max_results=size,
            order_by=["creation_timestamp DESC"],
            page_token=token,
        )
        new = [entry for entry in page if (entry.name, str(entry.version)) not in known]
        for entry in new:
            yield Made(
                run=entry.run_id or "",
                at=entry.creation_timestamp,
                sources=sources_said(entry.tags),
                mixture=entry.tags["nightowl.mixture"],
                adapter=entry.tags["nightowl.adapter"],
                base=entry.tags["nightowl.base"],
                model=entry.name,
                version=int(entry.version),
            )
        token, size = page.token, _PAGES[1]
        if not token or len(new) < len(page):
            return


def _runs(mlflow: Any, known: dict[tuple[str, ...], Made]) -> Iterator[Made]:
    ids = [entry.experiment_id for entry in pages(mlflow.search_experiments) if RECIPE_TAG in entry.tags]
    if not ids:
        return
    last = max((entry.at for entry in known.values() if entry.model is None), default=0)
    query = f"tags.`{SOURCES_TAG}` LIKE '%' and tags.`nightowl.mixture` LIKE '%'"
    query += f" and tags.`nightowl.kind` = 'stage' and attributes.start_time > {last - _OVERLAP}"
    for run in pages(mlflow.search_runs, experiment_ids=ids, filter_string=query, max_results=_PAGES[1]):
        tags = run.data.tags
        yield Made(
            run=run.info.run_id,
            at=run.info.start_time,
            sources=sources_said(tags),
            mixture=tags["nightowl.mixture"],
            adapter=tags.get("nightowl.adapter"),
        )
