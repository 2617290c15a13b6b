"""The `nightowl` command.

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

app = typer.Typer(
    name="nightowl",
    help="Retrains a language-model adapter every night and only lets it out if it is better.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

RecipeArgument = Annotated[str, typer.Argument(metavar="RECIPE", help="A recipe file, or a preset by name (demo).")]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="PATH=VALUE", help="Change one value of the recipe; repeatable.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Answer with one JSON object on standard output.")]


def _answers(command: Callable[..., Any]) -> Callable[..., None]:
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


def _prepare() -> None:
    """Set the environment before Prefect and MLflow are imported: they read it at import."""
    from flows.screen import tell
    from flows.services import environment

    os.environ.update(environment())
    tell()


def _settings_table(settings: list[Setting]) -> Any:
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("setting")
    table.add_column("value")
    table.add_column("from")
    for setting in settings:
        value = str(setting.value)
        shown = value if len(value) <= 60 and "\n" not in value else f"{value[:40]!r} ... ({len(value)} characters)"
        style = "bold" if setting.origin == "command line" else "dim" if setting.origin == "default" else ""
        table.add_row(setting.path, shown, setting.origin, style=style)
    return table


def _load(recipe: str, changes: list[str] | None) -> tuple[Recipe, list[Setting]]:
    from tasks.recipe import load

    return load(recipe, changes or ())


@app.command()
@_answers
def run(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """Run one night here: fetch, validate, mix, train, evaluate, gate, register, report."""
    loaded, settings = _load(recipe, changes)
    from flows.screen import console
    from tasks.doctor import preflight

    preflight()
    console.print(f"[bold]nightowl run {loaded.name}[/bold]")
    console.print(_settings_table([setting for setting in settings if setting.value is not None]))
    _prepare()
    from flows.services import for_one_night

    with for_one_night() as api:
        os.environ["PREFECT_API_URL"] = api
        from flows.nightly import nightly, tell_result

        result = nightly(loaded, settings)
    return result.model_dump(mode="json"), lambda: tell_result(result)


@app.command()
@_answers
def plan(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """Say what a night would do, without doing it: settings, revisions, stages, memory, disk and time."""
    loaded, settings = _load(recipe, changes)
    _prepare()
    from tasks.plan import plan as make_plan
    from tasks.store import Store

    made = make_plan(loaded, Store.open())

    def say() -> None:
        from rich import print as show

        show(_settings_table(settings))
        for stage in made.stages:
            show(f"{stage.name:10} {stage.state:12} {stage.detail}")
        for need in made.needs:
            show(f"{need.name:10} {'fits' if need.fits else 'DOES NOT FIT':12} {need.detail}")

    return {"settings": [s.model_dump() for s in settings], **made.model_dump(mode="json")}, say


@app.command()
@_answers
def mix(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """Fetch, validate and mix, and stop there."""
    loaded, _ = _load(recipe, changes)
    _prepare()
    from tasks.fetch import fetch, fetch_base
    from tasks.mix import mix as mix_splits
    from tasks.store import Store
    from tasks.validate import validate

    store = Store.open()
    base = fetch_base(loaded.base, store)
    gated = [validate(loaded, source, fetch(source, store), base, store) for source in loaded.sources]
    mixture = mix_splits(loaded, gated, store)

    def say() -> None:
        for name, split in mixture.splits.items():
            print(f"{name:12} {split.rows:7} rows {split.tokens:9} tokens {split.supervised_tokens:9} supervised")
        for name, part in mixture.shares.items():
            print(f"{name:12} asked {part.asked:6.1%}, reached {part.reached:6.1%}, {part.rows} rows")
        print(f"set aside    {mixture.set_aside}")
        print(store.folder(mixture))

    return {**mixture.model_dump(mode="json"), "folder": str(store.folder(mixture))}, say


@app.command()
@_answers
def up(
    prefect_port: Annotated[int, typer.Option(help="Port of the Prefect server; another where it is taken.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow server; another where it is taken.")] = 5000,
    as_json: JsonOption = False,
) -> Any:
    """Keep Prefect and MLflow running on this home, on 127.0.0.1, until Ctrl-C."""
    _prepare()
    from flows.services import is_up, stack
    from tasks.store import home

    if running := is_up():
        return running, lambda: print(f"already up: Prefect {running['prefect'][:-4]}, MLflow {running['mlflow']}")

    def stop(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    print(f"starting Prefect and MLflow on {home()} ...", file=sys.stderr, flush=True)
    try:
        with stack(prefect_port, mlflow_port) as urls:
            if as_json:
                print(json.dumps(urls), flush=True)
            print(f"Prefect  {urls['prefect'][:-4]}", file=sys.stderr)
            print(f"MLflow   {urls['mlflow']}", file=sys.stderr)
            print("Ctrl-C stops both; logs are in " + str(home() / "logs"), file=sys.stderr, flush=True)
            signal.pause()
    except KeyboardInterrupt:
        pass
    return None, lambda: print("stopped", file=sys.stderr)


def main() -> None:
    """Entry point of the `nightowl` command."""
    app()


if __name__ == "__main__":
    main()
