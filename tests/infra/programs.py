"""What the three programs of the image accept: their own parsers and settings answer."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
# Read by psycopg, by botocore and by the hubs' own clients.
OF_LIBRARIES = {
    *("PGHOST", "PGPORT", "PGUSER", "PGPASSWORD", "HF_TOKEN", "MODELSCOPE_API_TOKEN"),
    *("AWS_ENDPOINT_URL", "AWS_REGION", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"),
}


@cache
def known_variables() -> frozenset[str]:
    """Every variable that our code, Prefect, MLflow or a library below them reads."""
    import mlflow.environment_variables
    from prefect.settings import Settings
    from prefect.settings.legacy import _get_valid_setting_names
    from prefect_kubernetes.settings import KubernetesSettings

    ours = {
        name
        for room in ("tasks", "flows")
        for file in (ROOT / room).rglob("*.py")
        for name in re.findall(r"NIGHTOWL_[A-Z_]+", file.read_text())
    }
    prefect = _get_valid_setting_names(Settings) | _get_valid_setting_names(KubernetesSettings)
    # The server takes this one from the environment beside its settings (prefect.server.utilities.encryption).
    return frozenset(
        ours | prefect | {"PREFECT_SERVER_ENCRYPTION_KEY"} | set(dir(mlflow.environment_variables)) | OF_LIBRARIES
    )


def unknown_variables(names: Iterable[str]) -> list[str]:
    return [name for name in names if name not in known_variables()]


def refusal(command: list[str]) -> str:
    """What the program's own parser says against a command; empty where it would run. Nothing is run."""
    program, *arguments = command
    if program == "python":
        compile(arguments[1], "command", "exec")
        return ""
    if program == "prefect":
        return _cyclopts(arguments)
    if program == "nightowl":
        import typer.main

        from flows.cli import app

        return _click(typer.main.get_command(app), arguments)
    if program == "mlflow":
        from mlflow.cli import cli

        return _click(cli, arguments)
    return f"{program} is not in the image"


def _click(group: Any, arguments: list[str]) -> str:
    name, *rest = arguments
    if name not in group.commands:
        return f"there is no command {name}"
    try:
        group.commands[name].make_context(name, rest)
    except Exception as error:  # Typer may carry a click of its own, with errors of its own
        return str(getattr(error, "message", error)) + " " + str(getattr(error, "option_name", ""))
    return ""


def _cyclopts(arguments: list[str]) -> str:
    from cyclopts import CycloptsError
    from prefect.cli._app import _app

    try:
        _app.parse_args(arguments, exit_on_error=False, print_error=False)
    except CycloptsError as error:
        return str(error)
    return ""
