"""A night's record in MLflow: one parent run, with children by stage and candidate.

    with Night.start(recipe, settings) as night:
        with night.stage("train", "candidate-1") as stage:
            stage.inputs(mixture, snapshots, conversations)
            stage.metrics({"loss": 2.1}, step=1)
            stage.made(adapter)
        night.finish("kept", "the candidate is not better")

A stage that is entered a second time (after a crash, say) is a child run of its own, named as the second
attempt. A killed process can't close its runs: whoever starts the recipe's next night closes them.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import yaml

from tasks.conversations import Conversations
from tasks.errors import Refused, WorldFailed
from tasks.evaluation import Verdict
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe, Setting
from tasks.registry import lineage, openlineage
from tasks.registry.links import picture
from tasks.registry.process import alive, this_machine, this_process
from tasks.registry.schema import BASE, NightOutcome, NightRecord, Version
from tasks.registry.tracking import RECIPE_TAG, answers, client, experiment, pages
from tasks.registry.writer import MetricWriter
from tasks.store import Manifest, digest
from tasks.training import Adapter

log = logging.getLogger(__name__)

HEARTBEAT = 30.0  # seconds between signs of life
SILENCE = timedelta(minutes=10)  # after which a night on another machine counts as dead
STORY_TAG = "nightowl.story"
_LONGEST_TAG = 7900  # characters; MLflow cuts at 8000 without a word
_LONGEST_PARAM = 6000
_OPEN: set[str] = set()  # nights of this very process that are not finished


class Run:
    """One run in MLflow, the night's own or a stage's. `id` is MLflow's run id."""

    def __init__(self, mlflow: Any, run_id: str, experiment_id: str, writer: MetricWriter) -> None:
        self.mlflow = mlflow
        self.id = run_id
        self.experiment_id = experiment_id
        self._writer = writer

    def params(self, values: Mapping[str, object]) -> None:
        """Log settings; a value longer than MLflow keeps is replaced by its digest, and says so."""
        from mlflow.entities import Param

        entries = [Param(key, _fitting(value)) for key, value in values.items()]
        with answers():
            for start in range(0, len(entries), 100):
                self.mlflow.log_batch(self.id, params=entries[start : start + 100])

    def metrics(self, values: Mapping[str, float], step: int | None = None) -> None:
        """Queue metrics and return at once; they are written in batches within about a second."""
        self._writer.add(self.id, dict(values), step)

    def tags(self, values: Mapping[str, object]) -> None:
        """Set tags; text beyond MLflow's bound ends in an ellipsis."""
        from mlflow.entities import RunTag

        entries = [RunTag(key, _cut(str(value))) for key, value in values.items()]
        with answers():
            for start in range(0, len(entries), 100):
                self.mlflow.log_batch(self.id, tags=entries[start : start + 100])

    def artifact(self, path: Path, folder: str = "") -> None:
        """Upload a file or a folder's contents into `folder` of the run's artifacts."""
        with answers():
            if path.is_dir():
                self.mlflow.log_artifacts(self.id, str(path), folder or None)
            else:
                self.mlflow.log_artifact(self.id, str(path), folder or None)

    def table(self, file: Path, name: str) -> None:
        """Write a Parquet file's rows as a table, which MLflow's UI shows and compares over runs."""
        import polars as pl

        with answers():
            self.mlflow.log_table(self.id, pl.read_parquet(file).to_pandas(), name)

    def text(self, text: str, name: str) -> None:
        """Write a text file into the run's artifacts."""
        with answers():
            self.mlflow.log_text(self.id, text, name)

    def inputs(
        self,
        mixture: TokenisedMixture | None = None,
        snapshots: lineage.Snapshots = (),
        conversations: Sequence[Conversations] = (),
    ) -> None:
        """Link data sets: the mixture's splits by digest, and every source with its uri, commit and digest.

        Sources are named by `snapshots` where it is a mapping, else by the conversations made of them.
        """
        datasets = lineage.dataset_inputs(mixture, snapshots, conversations)
        if datasets:
            with answers():
                self.mlflow.log_inputs(self.id, datasets)
        self.tags(
            {
                **(lineage.source_tags(snapshots, conversations) if snapshots else {}),
                **({"nightowl.mixture": mixture.address} if mixture else {}),
            }
        )

    def made(self, manifest: Manifest) -> None:
        """Say what this run left in the store; an adapter brings its training figures along."""
        self.tags({f"nightowl.{manifest.kind}": manifest.address})
        if isinstance(manifest, Adapter):
            figures = {
                "final/loss": manifest.loss,
                "final/validation_loss": manifest.validation_loss,
                "final/steps": manifest.steps,
                "final/tokens": manifest.tokens,
                "final/supervised_tokens": manifest.supervised_tokens,
                "final/seconds": manifest.seconds,
                "final/peak_memory_bytes": manifest.peak_memory,
                "final/resumed_steps": manifest.resumed,
            }
            self.metrics({name: value for name, value in figures.items() if value is not None})
            self.tags(
                {"nightowl.environment": lineage.compact(manifest.environment), "nightowl.device": manifest.device}
            )

    def _end(self, status: str, reason: str | None = None, story: str = "") -> None:
        tags = {"nightowl.ended": _now().isoformat(timespec="seconds")}
        if reason:
            tags |= {"nightowl.reason": reason, "mlflow.note.content": f"{reason[:5000]}\n\n{story}".strip()}
        try:
            self._writer.flush()
        finally:
            self.tags(tags)
            with answers():
                self.mlflow.set_terminated(self.id, status)


class Night(Run):
    """The parent run of a night; a context manager that never leaves a run open behind it."""

    def __init__(self, mlflow: Any, run_id: str, experiment_id: str, recipe: str) -> None:
        super().__init__(mlflow, run_id, experiment_id, MetricWriter(mlflow))
        self.recipe = recipe
        self._stopped = threading.Event()
        self._finished = False

    @classmethod
    def start(cls, recipe: Recipe, settings: Sequence[Setting], flow_run_url: str | None = None) -> Night:
        """Open a night: closes what killed nights left open, then records the recipe and where its values come from.

        Raises WorldFailed when MLflow cannot be reached.
        """
        mlflow = client()
        with answers():
            experiment_id = experiment(mlflow, recipe.name)
            close_orphans(mlflow, experiment_id)
            tags = {
                "mlflow.runName": f"night {_now():%Y-%m-%d %H:%M}",
                "mlflow.source.name": "nightowl",
                RECIPE_TAG: recipe.name,
                "nightowl.kind": "night",
                "nightowl.recipe_digest": digest(recipe),
                "nightowl.machine": this_machine(),
                "nightowl.process": this_process(),
                "nightowl.heartbeat": _now().isoformat(),
                "nightowl.flow_run": flow_run_url or "",
                **lineage.code_tags(),
            }
            run = mlflow.create_run(experiment_id, tags={key: _cut(value) for key, value in tags.items() if value})
        night = cls(mlflow, run.info.run_id, experiment_id, recipe.name)
        _OPEN.add(night.id)
        threading.Thread(target=night._beat, name="night-heartbeat", daemon=True).start()
        openlineage.tell_night(recipe.name, night.id, "START")
        night.params({setting.path: setting.value for setting in settings})
        plain = recipe.model_dump(mode="json", exclude_none=True)
        night.text(yaml.safe_dump(plain, sort_keys=False, allow_unicode=True), "recipe.yaml")
        night.text(json.dumps([setting.model_dump(mode="json") for setting in settings], indent=1), "settings.json")
        return night

    @classmethod
    def attach(cls, run_id: str) -> Night:
        """The same night from another process, to log a stage there; whoever started it keeps its heartbeat."""
        mlflow = client()
        with answers():
            run = mlflow.get_run(run_id)
        return cls(mlflow, run_id, run.info.experiment_id, run.data.tags.get(RECIPE_TAG, ""))

    @contextmanager
    def stage(self, name: str, candidate: str | None = None) -> Iterator[Run]:
        """A child run for one stage (of one candidate); FAILED with the reason when the body raises."""
        label = f"{name} {candidate}" if candidate else name
        with answers():
            earlier = [run for run in self.children() if run.data.tags.get("nightowl.label") == label]
            attempt = len(earlier) + 1
            tags = {
                "mlflow.runName": label if attempt == 1 else f"{label}, attempt {attempt}",
                "mlflow.parentRunId": self.id,
                "mlflow.source.name": "nightowl",
                RECIPE_TAG: self.recipe,
                "nightowl.kind": "stage",
                "nightowl.stage": name,
                "nightowl.label": label,
                "nightowl.attempt": str(attempt),
            }
            if candidate:
                tags["nightowl.candidate"] = candidate
            run = self.mlflow.create_run(self.experiment_id, tags=tags)
        stage = Run(self.mlflow, run.info.run_id, self.experiment_id, self._writer)
        try:
            yield stage
        except BaseException as error:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            _end_despite(stage, status, _said(error))
            raise
        stage._end("FINISHED")

    @property
    def flow_run(self) -> str:
        """URL of the flow run in Prefect; empty where there is none."""
        with answers():
            return str(self.mlflow.get_run(self.id).data.tags.get("nightowl.flow_run", ""))

    def children(self) -> list[Any]:
        """The stages' runs, oldest first."""
        query = f"tags.`mlflow.parentRunId` = '{self.id}'"
        found = pages(self.mlflow.search_runs, experiment_ids=[self.experiment_id], filter_string=query)
        return sorted(found, key=lambda run: run.info.start_time)

    def verdict(self, verdict: Verdict) -> None:
        """Record what the gate said: the numbers as metrics, the whole of it by candidate as a tag."""
        self.tags({f"nightowl.verdict.{verdict.candidate}": verdict_tag(verdict)})
        for c in verdict.comparisons:
            self.metrics({f"{c.suite}/{name}": getattr(c, name) for name in ("candidate", "reference", "difference")})
        self._writer.flush()

    def tell_story(self, version: Version) -> None:
        """Show a version and its lineage on the night's page, once the night has ended."""
        page = f"[{version.model} version {version.version}](#/models/{version.model}/versions/{version.version})"
        self.tags({STORY_TAG: f"{page}\n\n![Lineage]({picture(version.run_id, 'lineage.svg')})"})

    def finish(self, outcome: NightOutcome, reason: str) -> None:
        """Close the night. A night that was refused or failed is FAILED in MLflow, every other one FINISHED."""
        self._stopped.set()
        self._finished = True
        _OPEN.discard(self.id)
        self.tags({"nightowl.outcome": outcome})
        failed = outcome in ("refused", "failed")
        openlineage.tell_night(self.recipe, self.id, "FAIL" if failed else "COMPLETE", reason)
        with answers():
            story = self.mlflow.get_run(self.id).data.tags.get(STORY_TAG, "")
        self._end("FAILED" if failed else "FINISHED", reason, story)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._finished:
            return
        if error is None:
            self.finish("failed", "the night ended without an outcome")
            return
        try:
            self.finish("refused" if isinstance(error, Refused) else "failed", _said(error))
        except WorldFailed as trouble:
            log.warning("the night's end could not be recorded: %s", trouble)

    def _beat(self) -> None:
        while not self._stopped.wait(HEARTBEAT):
            try:
                self.mlflow.set_tag(self.id, "nightowl.heartbeat", _now().isoformat())
            # A missed beat is no reason to end a night; SILENCE is many beats long.
            except Exception as error:
                log.warning("heartbeat to MLflow failed: %s", error)


def verdict_tag(verdict: Verdict) -> str:
    """A verdict as JSON that a tag holds whole; of many suites, the last reasons and then suites are left out."""
    reasons = list(verdict.reasons)
    suites = {
        c.suite: [round(x, 6) for x in (c.reference, c.candidate, c.difference, c.low, c.high)]
        for c in verdict.comparisons
    }
    told = {
        "decision": verdict.decision,
        "address": verdict.address,
        "level": verdict.level,
        "asked_at": verdict.asked_at,
        "reasons": reasons,
        "against": verdict.champion or BASE,
        "suites": suites,
    }
    while len(text := lineage.compact(told)) > _LONGEST_TAG:
        if reasons:
            reasons.pop()
        else:
            suites.popitem()
    return text


def close_orphans(mlflow: Any, experiment_id: str) -> list[str]:
    """Mark nights whose process is gone KILLED, their stages with them; returns the ids of those nights."""
    query = "attributes.status = 'RUNNING' and tags.`nightowl.kind` = 'night'"
    orphans = []
    for run in list(pages(mlflow.search_runs, experiment_ids=[experiment_id], filter_string=query)):
        reason = _dead(run.info.run_id, run.data.tags)
        if reason is None:
            continue
        stages = f"attributes.status = 'RUNNING' and tags.`mlflow.parentRunId` = '{run.info.run_id}'"
        for child in list(pages(mlflow.search_runs, experiment_ids=[experiment_id], filter_string=stages)):
            _kill(mlflow, child.info.run_id, reason)
        mlflow.set_tag(run.info.run_id, "nightowl.outcome", "failed")
        _kill(mlflow, run.info.run_id, reason)
        openlineage.tell_night(run.data.tags.get(RECIPE_TAG, ""), run.info.run_id, "ABORT", reason)
        orphans.append(run.info.run_id)
    return orphans


def nights(recipe: str | None = None) -> list[NightRecord]:
    """The history of a recipe's nights, or of all, newest first. Raises WorldFailed when MLflow does not answer."""
    mlflow = client()
    with answers():
        if recipe is None:
            experiments = [e for e in pages(mlflow.search_experiments) if RECIPE_TAG in e.tags]
        else:
            experiments = [e for e in [mlflow.get_experiment_by_name(recipe)] if e is not None]
        ids = [e.experiment_id for e in experiments]
        query = "tags.`nightowl.kind` = 'night'"
        runs = list(pages(mlflow.search_runs, experiment_ids=ids, filter_string=query)) if ids else []
    return sorted((_record(run) for run in runs), key=lambda record: record.started, reverse=True)


def _record(run: Any) -> NightRecord:
    tags, info = run.data.tags, run.info
    prefix = "nightowl.verdict."
    return NightRecord(
        run_id=info.run_id,
        recipe=tags.get(RECIPE_TAG, ""),
        started=datetime.fromtimestamp(info.start_time / 1000, UTC).isoformat(timespec="milliseconds"),
        seconds=(info.end_time - info.start_time) / 1000 if info.end_time else None,
        status=info.status,
        outcome=tags.get("nightowl.outcome"),
        reason=tags.get("nightowl.reason"),
        verdicts={key.removeprefix(prefix): json.loads(text) for key, text in tags.items() if key.startswith(prefix)},
    )


def _dead(run_id: str, tags: Mapping[str, str]) -> str | None:
    """Why a night that claims to run can't be running, or None."""
    process = tags["nightowl.process"]
    if tags["nightowl.machine"] == this_machine():
        if not alive(process):
            return f"the process of the night (pid {process.partition('@')[0]}) is gone"
        left_open = process == this_process() and run_id not in _OPEN
        return "its night was left without an outcome" if left_open else None
    heard = datetime.fromisoformat(tags["nightowl.heartbeat"])
    if _now() - heard < SILENCE:
        return None
    return f"the night on {tags['nightowl.machine']} has not been heard of since {heard:%Y-%m-%d %H:%M} UTC"


def _kill(mlflow: Any, run_id: str, reason: str) -> None:
    mlflow.set_tag(run_id, "nightowl.reason", reason)
    mlflow.set_tag(run_id, "mlflow.note.content", reason)
    mlflow.set_terminated(run_id, "KILLED")


def _end_despite(run: Run, status: str, reason: str) -> None:
    """Close a failed stage; trouble in doing so must not hide why it failed."""
    try:
        run._end(status, reason)
    except WorldFailed as trouble:
        log.warning("the stage's end could not be recorded: %s", trouble)


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _fitting(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if len(text) <= _LONGEST_PARAM:
        return text
    return f"{len(text)} characters, sha256 {digest(text)}; in full in the night's recipe.yaml"


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_TAG else text[: _LONGEST_TAG - 1] + "…"


def _now() -> datetime:
    return datetime.now(UTC)


def training_run(night: Night, adapter: Adapter) -> str | None:
    """The run that made an adapter: of this night, else the latest of any night of the recipe, else None."""
    query = f"tags.`nightowl.adapter` = '{adapter.address}' and tags.`nightowl.kind` = 'stage'"
    with answers():
        found = pages(night.mlflow.search_runs, experiment_ids=[night.experiment_id], filter_string=query)
        runs = sorted(found, key=lambda run: run.info.start_time, reverse=True)
    own = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == night.id]
    return next((str(run.info.run_id) for run in [*own, *runs]), None)
