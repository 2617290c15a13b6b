"""Which versions stay in the registry, what they hold on to, and the removal of the others."""

from __future__ import annotations

from collections.abc import Set
from typing import Any

from tasks.recipe import Recipe
from tasks.registry.journal import moves
from tasks.registry.schema import Version
from tasks.registry.tracking import RECIPE_TAG, answers, client, pages
from tasks.registry.versions import as_version

_HOLDS = ("nightowl.adapter", "nightowl.mixture", "nightowl.base_address", "nightowl.verdict_address")


def sort_out_versions(recipe: Recipe, newest: int, since: float) -> tuple[list[Version], list[Version]]:
    """The recipe's versions that stay and those that go, newest first.

    Champions, of today or ever, and versions with an alias stay, and so do the `newest` ones and those made `since`
    (seconds since 1970). Raises WorldFailed when MLflow does not answer.
    """
    mlflow, model = client(), recipe.registered_model
    with answers():
        entries = list(pages(mlflow.search_model_versions, filter_string=f"name = '{model}'"))
        if not entries:
            return [], []
        entries.sort(key=lambda entry: int(entry.version), reverse=True)
        held = {int(version) for version in mlflow.get_registered_model(model).aliases.values()}
        held |= {version for move in moves(mlflow, model) if move.moved for version in (move.to, move.found) if version}
    held |= {int(entry.version) for entry in entries[:newest]}
    held |= {int(entry.version) for entry in entries if entry.creation_timestamp / 1000 >= since}
    kept = [as_version(entry) for entry in entries if int(entry.version) in held]
    return kept, [as_version(entry) for entry in entries if int(entry.version) not in held]


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


def remove(version: Version) -> None:
    """Delete a version with its logged model and its files; done again after a crash, it goes on.

    The files go first: what is left of a half removed version is a version that says it has lost its artifacts.
    """
    from mlflow.exceptions import MlflowException
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository

    mlflow: Any = client()
    with answers():
        try:
            model = mlflow.get_logged_model(version.model_id)
        except MlflowException:
            model = None
        if model is not None:
            get_artifact_repository(model.artifact_location).delete_artifacts()
            mlflow.delete_logged_model(version.model_id)
        mlflow.delete_model_version(version.model, str(version.version))
