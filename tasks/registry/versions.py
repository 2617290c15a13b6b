"""Registered versions: making one out of a packed adapter, finding them, and who is champion."""

from __future__ import annotations

import hashlib
import json
import tempfile
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from tasks.conversations import carry_reader
from tasks.errors import BadInput, WorldFailed
from tasks.recipe import Recipe
from tasks.registry.journal import alias_version
from tasks.registry.links import LINEAGE
from tasks.registry.record import RECORD, Record
from tasks.registry.schema import Candidate, Champion, Version
from tasks.registry.tracking import answers, client, download, error_code, pages
from tasks.store import file_digest, write_whole

_MODEL_FILE = Path(__file__).with_name("adapter_model.py")
_NEEDS = ("mlflow", "torch", "transformers", "peft", "safetensors", "accelerate", "bitsandbytes")
REMOVED_TAG = "nightowl.removed"


def log_model(
    mlflow: Any,
    run_id: str,
    experiment_id: str,
    name: str,
    packed: Path,
    record: Record,
    work: Path,
    config: Mapping[str, Any],
    params: Mapping[str, str],
    step: int,
) -> str:
    """Log a packed adapter as a pyfunc model of a run, its record beside it; returns the logged model's id.

    Everything goes by the client, so that no active run is needed and a run that has ended stays ended.
    """
    import requests
    from mlflow.entities import LoggedModelOutput
    from mlflow.models import Model
    from mlflow.pyfunc import save_model

    model = mlflow.create_logged_model(
        experiment_id, name=name, source_run_id=run_id, params=dict(params), model_type="adapter"
    )
    try:
        reader = carry_reader(work)
        text = record.model_dump_json(indent=1)
        files = {RECORD: hashlib.sha256(text.encode()).hexdigest(), _MODEL_FILE.name: file_digest(_MODEL_FILE)}
        files |= _digests(packed, "artifacts/adapter") | _digests(reader, f"code/{reader.name}")
        with warnings.catch_warnings():
            # Messages and tool schemas are open JSON: that MLflow can't check their types is as it should be.
            warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType")
            save_model(
                path=str(work / "model"),
                mlflow_model=Model(artifact_path=model.artifact_location, run_id=run_id, model_id=model.model_id),
                python_model=str(_MODEL_FILE),
                artifacts={"adapter": str(packed)},
                model_config={**config, "reader": reader.name, "files": files},
                code_paths=[str(reader)],
                pip_requirements=[f"{package}=={metadata.version(package)}" for package in _NEEDS],
            )
        write_whole(work / "model" / RECORD, text)
        mlflow.log_model_artifacts(model.model_id, str(work / "model"))
    except BaseException as error:
        # Where the server is away, telling it so would take as long again; `nightowl prune` clears away either.
        if not isinstance(error.__context__, requests.RequestException):
            with suppress(Exception):
                mlflow.finalize_logged_model(model.model_id, "FAILED")
        raise
    mlflow.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=step)])
    mlflow.finalize_logged_model(model.model_id, "READY")
    return str(model.model_id)


def log_scores(
    mlflow: Any, run_id: str, model_id: str, values: Mapping[str, float], step: int, dataset: tuple[str, str]
) -> None:
    """Tie figures to the logged model and to the data (name, digest) they were measured on."""
    from mlflow.entities import Metric

    now = int(time.time() * 1000)
    name, content = dataset
    tied = {"model_id": model_id, "run_id": run_id, "dataset_name": name, "dataset_digest": content}
    metrics = [Metric(key, float(value), now, step, **tied) for key, value in values.items()]
    mlflow.log_batch(run_id, metrics=metrics)


def create(
    mlflow: Any, model: str, run_id: str, model_id: str, tags: Mapping[str, str], description: str, adapter: str
) -> Version:
    """Register a logged model as the next version; its tags come with it in the same transaction."""
    made = mlflow.create_model_version(
        model, f"models:/{model_id}", run_id, tags=dict(tags), description=description, model_id=model_id
    )
    link = json.dumps([{"name": model, "version": str(made.version)}])
    told = {**_for_logged_model(tags), "mlflow.note.content": description}
    mlflow.set_logged_model_tags(model_id, {"mlflow.modelVersions": link, **told})
    return Version(model=model, version=int(made.version), adapter=adapter, run_id=run_id, model_id=model_id)


def judge_again(mlflow: Any, version: Version, tags: Mapping[str, str], description: str) -> None:
    """Put a new verdict on a version that is registered already."""
    for key, value in tags.items():
        mlflow.set_model_version_tag(version.model, str(version.version), key, value)
    mlflow.update_model_version(version.model, str(version.version), description=description)
    told = {**_for_logged_model(tags), "mlflow.note.content": description}
    mlflow.set_logged_model_tags(version.model_id, told)


def illustrate(mlflow: Any, version: Version, pictures: Path) -> None:
    """Put the pictures of a folder beside the training run and the version."""
    mlflow.log_artifacts(version.run_id, str(pictures), LINEAGE)
    mlflow.log_model_artifacts(version.model_id, str(pictures))


def download_adapter(version: Version, target: Path) -> None:
    """The folder that was registered, into `target`.

    Raises WorldFailed when MLflow or its artifact store fails, and for files that are not, byte for byte, those that
    were registered.
    """
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".adapter-") as folder:
        got = download(version.uri, Path(folder))
        if got is None or not (got / "artifacts" / "adapter").is_dir():
            raise WorldFailed(version.uri, "has lost its artifacts", "See MLflow's artifact store.")
        model = yaml.safe_load((got / "MLmodel").read_text(encoding="utf-8"))
        registered = model["flavors"]["python_function"]["config"].get("files", {})
        for name, expected in registered.items():
            if not (got / name).is_file() or file_digest(got / name) != expected:
                raise WorldFailed(
                    f"{version.uri}/{name}",
                    "is not the file that was registered",
                    "Restore MLflow's artifact store from a backup, or train the adapter again: `nightowl reproduce`.",
                )
        (got / "artifacts" / "adapter").replace(target)


def _digests(folder: Path, prefix: str) -> dict[str, str]:
    """sha256 of a folder's files, by where they are in the logged model."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {f"{prefix}/{path.relative_to(folder).as_posix()}": file_digest(path) for path in files}


def find(mlflow: Any, model: str, adapter: str) -> Version | None:
    """The version that holds an adapter, by the adapter's address; one that is being removed counts no more."""
    query = f"name = '{model}' and tags.`nightowl.adapter` = '{adapter}'"
    found = pages(mlflow.search_model_versions, filter_string=query)
    return next((as_version(entry) for entry in found if is_ours(entry)), None)


def get(model: str, version: int) -> Version | None:
    """A version by its number, or None where there is none.

    Raises BadInput for one that another tool made in this model.
    """
    with answers():
        entry = entry_of(client(), model, version)
    if entry is not None and not is_ours(entry):
        way_out = "It is left alone; `nightowl candidates` lists those that Nightowl made."
        raise BadInput("VERSION", version, f"of {model} is none that Nightowl made, or is being removed", way_out)
    return as_version(entry) if entry else None


def entry_of(mlflow: Any, model: str, version: int) -> Any | None:
    """MLflow's own record of a version, whoever made it; None where there is none."""
    from mlflow.exceptions import MlflowException

    try:
        return mlflow.get_model_version(model, str(version))
    except MlflowException as error:
        if error_code(error) == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


def is_ours(entry: Any) -> bool:
    """Whether a version is an adapter that Nightowl registered and has not begun to remove."""
    return "nightowl.adapter" in entry.tags and REMOVED_TAG not in entry.tags


def named(model: str, name: str) -> Version | None:
    """A version by its number or by an alias, or None where there is none."""
    if name.isdecimal():
        return get(model, int(name))
    with answers():
        number = alias_version(client(), model, name)
    return get(model, number) if number is not None else None


def as_version(entry: Any) -> Version:
    """MLflow's model version as ours."""
    return Version(
        model=entry.name,
        version=int(entry.version),
        adapter=entry.tags["nightowl.adapter"],
        run_id=entry.run_id or "",
        model_id=entry.source.rpartition("/")[2],
    )


def champion(recipe: Recipe) -> Champion | None:
    """Who is champion of the recipe's registered model; None before the first promotion.

    Raises BadInput for a champion that is no adapter of Nightowl's (somebody moved the alias by hand), WorldFailed
    when MLflow does not answer.
    """
    mlflow = client()
    with answers():
        number = alias_version(mlflow, recipe.registered_model, "champion")
        if number is None:
            return None
        entry = mlflow.get_model_version(recipe.registered_model, str(number))
    if not is_ours(entry):
        raise BadInput(
            f"champion of {entry.name}",
            number,
            "is a version that Nightowl did not make, so no candidate can be judged against it",
            "Go back to one of its own with `nightowl rollback`, or name another registry.model in the recipe.",
        )
    return Champion(
        model=entry.name,
        version=number,
        adapter=entry.tags["nightowl.adapter"],
        run_id=entry.run_id,
        base=entry.tags["nightowl.base_address"],
    )


def candidates(recipe: Recipe) -> list[Candidate]:
    """Every version of the recipe's model that Nightowl registered, newest first."""
    mlflow = client()
    with answers():
        query = f"name = '{recipe.registered_model}'"
        entries = [entry for entry in pages(mlflow.search_model_versions, filter_string=query) if is_ours(entry)]
        aliases: dict[int, list[str]] = {}
        if entries:
            for alias, number in mlflow.get_registered_model(recipe.registered_model).aliases.items():
                aliases.setdefault(int(number), []).append(alias)
    found = [
        Candidate(
            version=int(entry.version),
            adapter=entry.tags["nightowl.adapter"],
            base=entry.tags["nightowl.base"],
            aliases=tuple(sorted(aliases.get(int(entry.version), []))),
            verdict=entry.tags["nightowl.verdict"],
            reasons=tuple(json.loads(entry.tags["nightowl.reasons"])),
            scores=json.loads(entry.tags["nightowl.scores"]),
            run_id=entry.run_id,
            made_at=datetime.fromtimestamp(entry.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
            night=entry.tags.get("nightowl.night", ""),
            name=entry.tags.get("nightowl.candidate", ""),
            values=json.loads(entry.tags.get("nightowl.values", "{}")),
            intervals=json.loads(entry.tags.get("nightowl.intervals", "{}")),
            broken=json.loads(entry.tags.get("nightowl.broken_guards", "null")),
        )
        for entry in entries
    ]
    return sorted(found, key=lambda candidate: candidate.version, reverse=True)


def lineage_of(model: str, version: int) -> dict[str, str]:
    """What a version carries of where it came from, by name; raises WorldFailed when MLflow does not answer."""
    with answers():
        tags = client().get_model_version(model, str(version)).tags
    return {key.removeprefix("nightowl."): value for key, value in sorted(tags.items()) if key.startswith("nightowl.")}


def _for_logged_model(tags: Mapping[str, str]) -> dict[str, str]:
    """The logged model's page shows the most, so it carries the lineage as well."""
    return {key: value[:7900] for key, value in tags.items()}
