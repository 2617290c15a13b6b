"""What every command has in common: arguments, how it answers and how it fails.

Each command answers in words, or with `--json` in one JSON object on standard output. Exit codes:
0 done, 1 the night said no (data or gate), 2 bad input, 3 the world failed (hub, server, disk).
Everything heavy is imported by the command that needs it, so that `--help` answers at once.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from tasks.recipe import Recipe, Setting

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a preset by name (demo).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one value of the recipe; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on standard output.")]


def answers(command: Callable[..., Any]) -> Callable[..., None]:
    """Print what a command returns, and turn errors into one message and an exit code.

    A command returns (plain data, a function that prints it for people).
    """

    @wraps(command)
    def answer(*args: Any, **kwargs: Any) -> None:
        from tasks.errors import NightowlError

        as_json = kwargs.get("as_json", False)
        try:
            data, say = command(*args, **kwargs)
        except NightowlError as error:
            if as_json:
                print(json.dumps({"error": str(error), "exit_code": error.exit_code}))
            print(f"nightowl: {error}", file=sys.stderr)
            raise typer.Exit(error.exit_code) from error
        except KeyboardInterrupt:
            print(
                "nightowl: interrupted; what is finished is kept, the same command goes on from there", file=sys.stderr
            )
            raise typer.Exit(128 + signal.SIGINT) from None
        if as_json and data is not None:
            print(json.dumps(data, indent=2, default=str))
        elif not as_json:
            say()
        if isinstance(data, Mapping) and data.get("exit_code"):
            raise typer.Exit(int(data["exit_code"]))

    return answer


def prepare(*, asks: bool = True) -> None:
    """Set the environment before Prefect and MLflow are imported: they read it at import.

    `asks`: whether the command asks the servers of a home that has any. Raises WorldFailed where they are not up.
    """
    from flows.component import environment
    from flows.passwords import access
    from flows.screen import tell

    if asks and access() and "MLFLOW_TRACKING_URI" not in os.environ:
        from flows.services import is_up
        from tasks.errors import WorldFailed
        from tasks.store import home

        if is_up() is None:
            raise WorldFailed(str(home()), "has its registry on servers that are not up", "Start them: nightowl up")
    os.environ.update(environment())
    tell()


def terminal() -> Any:
    """Standard output, for tables."""
    from rich.console import Console

    return Console(highlight=False)


def load(recipe: str, changes: list[str] | None = None) -> tuple[Recipe, list[Setting]]:
    """The recipe that an argument names, with the command line's changes."""
    from tasks.recipe import load as load_recipe

    return load_recipe(recipe, changes or ())
