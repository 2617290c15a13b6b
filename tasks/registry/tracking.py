"""The way to MLflow: a server where MLFLOW_TRACKING_URI names one, else a SQLite file in the home.

Everything else in this folder talks to MLflow through `client()`, so that both cases run the same code.
"""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock

from tasks.errors import WorldFailed
from tasks.store import digest, home

RECIPE_TAG = "nightowl.recipe"
_DENIED = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")


def tracking_uri() -> str:
    """MLFLOW_TRACKING_URI, else the embedded SQLite file under the home."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{home()}/mlflow/mlflow.db"


def registry_id() -> str:
    """Which registry this is, in a few letters."""
    return digest(tracking_uri())[:12]


def site() -> str:
    """Where a person looks at MLflow: NIGHTOWL_MLFLOW_UI, else the tracking server, else `nightowl up`'s port."""
    uri = tracking_uri()
    tracking = uri.rstrip("/") if uri.startswith("http") else "http://127.0.0.1:5000"
    return os.environ.get("NIGHTOWL_MLFLOW_UI", tracking)


def client() -> Any:
    """An MlflowClient on `tracking_uri()`; makes the embedded database where there is none.

    Raises WorldFailed when MLflow cannot be reached or its database cannot be opened.
    """
    uri = tracking_uri()
    with _uncollected():
        if not os.environ.get("MLFLOW_TRACKING_URI"):
            folder = home() / "mlflow"
            folder.mkdir(exist_ok=True)
            ready = folder / "ready"
            if not ready.exists():
                # Two processes that create the tables at the same time would trip over each other.
                with FileLock(folder / "ready.lock"), answers():
                    _connect(uri).search_experiments(max_results=1)
                    ready.touch()
        with answers():
            return _connect(uri)


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection in here: the first client imports MLflow and SQLAlchemy, hundreds of thousands of objects
    that all stay, and a fifth of its time went into looking for garbage among them."""
    collected = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collected:
            gc.enable()


def _connect(uri: str) -> Any:
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    import mlflow
    from mlflow.tracking import MlflowClient

    # The registry looks logged models up at the process-wide address, whatever the client was given.
    if mlflow.get_tracking_uri() != uri:
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
    for name in ("mlflow.store.db.utils", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(tracking_uri=uri, registry_uri=uri)


@contextmanager
def answers() -> Iterator[None]:
    """Turn what MLflow raises when it cannot be reached or refuses into WorldFailed."""
    import requests
    import sqlalchemy.exc
    from mlflow.exceptions import MlflowException

    try:
        yield
    except (MlflowException, requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError) as error:
        first_line = str(error).strip().partition("\n")[0][:500]
        way_out = "Check that the tracking server runs and its disk has space, or unset MLFLOW_TRACKING_URI."
        if "error code 401" in first_line or "error code 403" in first_line or error_code(error) in _DENIED:
            way_out = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD to those of a user who may."
        raise WorldFailed(tracking_uri(), f"MLflow did not do it ({first_line})", way_out) from error


def download(uri: str, folder: Path) -> Path | None:
    """A file or folder of MLflow's artifacts into `folder`; None where there is no such thing."""
    client()
    import mlflow
    from mlflow.exceptions import MlflowException

    with answers():
        try:
            path = Path(mlflow.artifacts.download_artifacts(uri, dst_path=str(folder)))
        except FileNotFoundError:
            return None
        except MlflowException as error:
            if error_code(error) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE", "NOT_FOUND"):
                return None
            raise
    return path if path.exists() else None


def error_code(error: BaseException) -> str:
    """MLflow's code of an error, such as RESOURCE_ALREADY_EXISTS; empty for other errors."""
    return str(getattr(error, "error_code", ""))


def experiment(mlflow: Any, recipe: str) -> str:
    """Id of the recipe's experiment, made if absent; its artifacts go under the home in the embedded case."""
    found = mlflow.get_experiment_by_name(recipe)
    if found is None:
        from mlflow.exceptions import MlflowException

        # A server knows where its artifacts go; a database alone would put them in today's working directory.
        served = tracking_uri().startswith("http")
        location = None if served else (home() / "mlflow" / "artifacts" / recipe).as_uri()
        try:
            return str(mlflow.create_experiment(recipe, artifact_location=location, tags={RECIPE_TAG: recipe}))
        except MlflowException as error:
            if error_code(error) != "RESOURCE_ALREADY_EXISTS":
                raise
            found = mlflow.get_experiment_by_name(recipe)
    if found.lifecycle_stage != "active":
        raise WorldFailed(
            f"MLflow experiment {recipe!r}",
            "was deleted, and MLflow keeps its name",
            f"Restore it (`mlflow experiments restore -x {found.experiment_id}`) or rename the recipe.",
        )
    return str(found.experiment_id)


def pages(search: Any, **query: Any) -> Iterator[Any]:
    """All results of one of MLflow's paged searches."""
    token = None
    while True:
        page = search(page_token=token, **query)
        yield from page
        token = page.token
        if not token:
            return
