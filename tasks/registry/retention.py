"""Which versions stay in the registry, what they hold on to, and the removal of the others."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.recipe import Recipe
from tasks.registry.journal import Decision, alias_version, move, moves
from tasks.registry.schema import Version
from tasks.registry.tracking import RECIPE_TAG, answers, client, error_code, pages
from tasks.registry.versions import REMOVED_TAG, as_version, is_ours

_HOLDS = ("nightowl.adapter", "nightowl.mixture", "nightowl.base_address", "nightowl.verdict_address")


class Unregistered(BaseModel):
    """A logged adapter that became no version. `run_id`: the run it was logged by."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_id: str
    name: str
    run_id: str


def sort_out_versions(recipe: Recipe, newest: int, since: float) -> tuple[list[Version], list[Version]]:
    """The recipe's versions that stay and those that go, newest first.

    Champions, of today or ever, and versions with an alias or with a copy in another model stay, and so do the `newest`
    ones and those made `since` (seconds since 1970). Raises WorldFailed when MLflow does not answer.
    """
    mlflow, model = client(), recipe.registered_model
    with answers():
        found = pages(mlflow.search_model_versions, filter_string=f"name = '{model}'")
        # What other tools made stays; what an earlier prune was killed at goes.
        entries = [entry for entry in found if "nightowl.adapter" in entry.tags]
        if not entries:
            return [], []
        entries.sort(key=lambda entry: int(entry.version), reverse=True)
        # A copy that somebody made in another model ("Promote model" in MLflow) has no files of its own.
        copies = pages(mlflow.search_model_versions, filter_string=f"source_path LIKE 'models:/{model}/%'")
        held = {int(number) for copy in copies if (number := copy.source.rpartition("/")[2]).isdecimal()}
        held |= {int(version) for version in mlflow.get_registered_model(model).aliases.values()}
        held |= {
            version for move in moves(mlflow, model) if move.moved for version in (move.to, move.found) if version
        }  # a champion, then or ever
    whole = [entry for entry in entries if is_ours(entry)]
    held |= {int(entry.version) for entry in whole[:newest]}
    held |= {int(entry.version) for entry in whole if entry.creation_timestamp / 1000 >= since}
    kept = [as_version(entry) for entry in entries if int(entry.version) in held]
    return kept, [as_version(entry) for entry in entries if int(entry.version) not in held]


def holdings() -> dict[str, tuple[int, int | None]]:
    """Every registered model of Nightowl's, with how many of its versions there are and who is champion."""
    mlflow = client()
    with answers():
        models = [model for model in pages(mlflow.search_registered_models) if RECIPE_TAG in model.tags]
        return {
            model.name: (
                sum(map(is_ours, pages(mlflow.search_model_versions, filter_string=f"name = '{model.name}'"))),
                alias_version(mlflow, model.name, "champion"),
            )
            for model in models
        }


def roots(leaving_out: Set[tuple[str, int]]) -> set[str]:
    """Addresses of what the versions of all recipes hold, but for those that go (model, version)."""
    mlflow = client()
    with answers():
        models = [model for model in pages(mlflow.search_registered_models) if RECIPE_TAG in model.tags]
        found: set[str] = set()
        for model in models:
            for entry in pages(mlflow.search_model_versions, filter_string=f"name = '{model.name}'"):
                if (entry.name, int(entry.version)) not in leaving_out:
                    found |= {entry.tags[tag] for tag in _HOLDS if tag in entry.tags}
    return found


def unregistered(since: float) -> list[Unregistered]:
    """Logged adapters that no version holds, made before `since` (seconds since 1970), oldest first.

    A registration that was killed or whose server went away leaves one.
    """
    mlflow = client()
    with answers():
        ids = [entry.experiment_id for entry in pages(mlflow.search_experiments) if RECIPE_TAG in entry.tags]
        if not ids:
            return []
        logged = [
            model
            for model in pages(mlflow.search_logged_models, experiment_ids=ids)
            if model.model_type == "adapter" and model.creation_timestamp / 1000 < since
        ]
        held = {v.source.rpartition("/")[2] for v in pages(mlflow.search_model_versions)} if logged else set()
    return [
        Unregistered(model_id=model.model_id, name=model.name, run_id=model.source_run_id or "")
        for model in sorted(logged, key=lambda model: model.creation_timestamp)
        if model.model_id not in held
    ]


def remove_unregistered(model_id: str) -> None:
    """Delete a logged model that no version holds, with its files."""
    with answers():
        _remove_logged(client(), model_id)


def remove(version: Version) -> bool:
    """Delete a version with its logged model and its files, in its turn among the moves of the champion.

    False where it has got an alias meanwhile. Done again after a crash, it goes on: the tag comes first, so that what
    is half removed counts as a version no more; the files go before the version.
    """
    mlflow: Any = client()

    def decide(found: int | None, previous: int | None) -> Decision:
        aliases = {int(number) for number in mlflow.get_registered_model(version.model).aliases.values()}
        if version.version in aliases:
            return Decision(None, "refused: it has an alias")
        mlflow.set_model_version_tag(version.model, str(version.version), REMOVED_TAG, "true")
        _remove_logged(mlflow, version.model_id)
        mlflow.delete_model_version(version.model, str(version.version))
        return Decision(None, "removed")

    why = "registry.keep_versions and registry.keep_days do not keep it"
    return move(mlflow, version.model, "prune", version.version, decide, None, why).outcome == "removed"


def _remove_logged(mlflow: Any, model_id: str) -> None:
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    try:
        model = mlflow.get_logged_model(model_id)
    except MlflowException as error:
        if error_code(error) != "RESOURCE_DOES_NOT_EXIST":
            raise
        return
    get_artifact_repository(model.artifact_location).delete_artifacts()
    mlflow.delete_logged_model(model_id)
