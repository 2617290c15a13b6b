"""OpenLineage events of a night, for those who keep their lineage in Marquez, DataHub or a catalogue of that kind.

The standard's own client sends them (openlineage-python), where and how its own environment variables say:
OPENLINEAGE_URL, OPENLINEAGE_CONFIG or OPENLINEAGE__TRANSPORT__...; without any of them nothing is sent. A night is a
job with a child for each stage: data (sources to mixture), train (mixture and base to adapter), register (adapter to
version). Trouble in sending is logged and never ends a night. https://openlineage.io/docs/spec/object-model
"""

from __future__ import annotations

import logging
import os
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from tasks.registry.record import Record
from tasks.registry.schema import Version
from tasks.sources import BaseSnapshot, Snapshot
from tasks.store import Manifest

log = logging.getLogger(__name__)
PRODUCER = "https://pypi.org/project/nightowl/"
NAMESPACE = "nightowl"
State = Literal["START", "COMPLETE", "FAIL", "ABORT"]


def wanted() -> bool:
    """Whether the environment says where events go."""
    return any(name.startswith("OPENLINEAGE_") and value for name, value in os.environ.items())


def tell_night(recipe: str, night: str, state: State, reason: str = "") -> None:
    """A night began or ended. `night`: MLflow's run id; `reason`: why, for one that failed or was killed."""
    if wanted():
        _send([_event(recipe, _id(night), state, datetime.now(UTC), reason=reason)])


def tell_version(record: Record, version: Version, night: str) -> None:
    """The three stages that made a version, each with what went in and what came out."""
    if not wanted():
        return
    recipe, adapter, mixture = record.recipe.name, record.adapter, record.mixture
    sources = [_source(snapshot) for snapshot in record.snapshots.values()]
    made_mixture = _output(f"{recipe}.mixture", mixture, mixture.splits["train"].rows)
    made_adapter = _output(f"{recipe}.adapter", adapter)
    registered = ("mlflow", version.model, str(version.version), None)
    trained_at, now = datetime.fromisoformat(adapter.made_at), datetime.now(UTC)
    stages: Mapping[str, tuple[list[_Data], list[_Data], datetime, datetime]] = {
        "data": (sources, [made_mixture], *2 * (datetime.fromisoformat(mixture.made_at),)),
        "train": (
            [made_mixture, _source(record.base)],
            [made_adapter],
            trained_at - timedelta(seconds=adapter.seconds),
            trained_at,
        ),
        "register": ([made_adapter], [registered], now, now),
    }
    events = []
    for stage, (inputs, outputs, began, ended) in stages.items():
        run, parent = _id(night, stage), (recipe, _id(night))
        for state, at in (("START", began), ("COMPLETE", ended)):
            events.append(_event(f"{recipe}.{stage}", run, state, at, inputs, outputs, parent))
    _send(events)


_Data = tuple[str, str, str, int | None]  # namespace, name, version, rows


def _source(snapshot: Snapshot | BaseSnapshot) -> _Data:
    scheme, _, rest = snapshot.uri.partition("://")
    place = rest.partition("@")[0] if scheme in ("hf", "modelscope") else rest
    return f"{scheme}://", place, snapshot.revision, snapshot.rows if isinstance(snapshot, Snapshot) else None


def _output(name: str, manifest: Manifest, rows: int | None = None) -> _Data:
    return NAMESPACE, name, manifest.address, rows


def _id(night: str, stage: str = "") -> str:
    run = uuid.UUID(hex=night)
    return str(uuid.uuid5(run, stage) if stage else run)


def _event(
    job: str,
    run: str,
    state: str,
    at: datetime,
    inputs: list[_Data] | None = None,
    outputs: list[_Data] | None = None,
    parent: tuple[str, str] | None = None,
    reason: str = "",
) -> Any:
    from openlineage.client import event_v2
    from openlineage.client.facet_v2 import error_message_run, job_type_job, parent_run

    facets: dict[str, Any] = {}
    if parent:
        job_above = parent_run.Job(namespace=NAMESPACE, name=parent[0])
        facets["parent"] = parent_run.ParentRunFacet(run=parent_run.Run(runId=parent[1]), job=job_above)
    if reason and state in ("FAIL", "ABORT"):
        facets["errorMessage"] = error_message_run.ErrorMessageRunFacet(message=reason, programmingLanguage="Python")
    kind = job_type_job.JobTypeJobFacet(processingType="BATCH", integration="NIGHTOWL", jobType="JOB")
    return event_v2.RunEvent(
        eventTime=at.isoformat(timespec="milliseconds"),
        eventType=event_v2.RunState[state],
        run=event_v2.Run(runId=run, facets=facets),
        job=event_v2.Job(namespace=NAMESPACE, name=job, facets={"jobType": kind}),
        inputs=[_dataset(event_v2.InputDataset, data) for data in inputs or ()],
        outputs=[_dataset(event_v2.OutputDataset, data) for data in outputs or ()],
        producer=PRODUCER,
    )


def _dataset(kind: Any, data: _Data) -> Any:
    from openlineage.client import event_v2
    from openlineage.client.facet_v2 import (
        dataset_version_dataset,
        input_statistics_input_dataset,
        output_statistics_output_dataset,
    )

    namespace, name, version, rows = data
    facets = {"version": dataset_version_dataset.DatasetVersionDatasetFacet(datasetVersion=version)}
    measured: dict[str, Any] = {}
    if rows is not None and kind is event_v2.InputDataset:
        counted = input_statistics_input_dataset.InputStatisticsInputDatasetFacet(rowCount=rows)
        measured = {"inputFacets": {"inputStatistics": counted}}
    elif rows is not None:
        written = output_statistics_output_dataset.OutputStatisticsOutputDatasetFacet(rowCount=rows)
        measured = {"outputFacets": {"outputStatistics": written}}
    return kind(namespace=namespace, name=name, facets=facets, **measured)


def _send(events: list[Any]) -> None:
    try:
        from openlineage.client import OpenLineageClient, set_producer

        set_producer(PRODUCER)
        client = OpenLineageClient()
        for event in events:
            client.emit(event)
        client.close()
    # Whatever the endpoint or its settings do: lineage for others is no reason to lose a night.
    except Exception as error:
        log.warning("OpenLineage events could not be sent: %s", error)
