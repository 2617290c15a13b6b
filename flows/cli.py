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
from enum import StrEnum
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


class RowKind(StrEnum):
    """The kinds of a conversation, as choices of an option."""

    chat = "chat"
    reasoning = "reasoning"
    tool = "tool"


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


def _say_settings(settings: list[Setting]) -> None:
    """One line a resolved value, with where it came from."""
    from flows.screen import console

    width = max(len(setting.path) for setting in settings)
    for setting in settings:
        value = str(setting.value)
        shown = value if len(value) <= 60 and "\n" not in value else f"({len(value)} characters)"
        style = "bold" if setting.origin == "command line" else "dim" if setting.origin == "default" else ""
        line = f"  {setting.path:{width}}  {shown}  [{setting.origin}]"
        console.print(line, style=style, markup=False, soft_wrap=True)


def _console() -> Any:
    from rich.console import Console

    return Console(highlight=False)


def _load(recipe: str, changes: list[str] | None = None) -> tuple[Recipe, list[Setting]]:
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
    _say_settings(settings)
    _prepare()
    from flows.services import for_one_night, is_up

    with for_one_night() as api:
        os.environ["PREFECT_API_URL"] = api
        # Where `nightowl up` will show this night; the server of this one night has no pages.
        os.environ.setdefault(
            "PREFECT_UI_URL", "http://127.0.0.1:4200" if is_up() is None else api.removesuffix("/api")
        )
        from flows.nightly import nightly
        from flows.result import tell

        result = nightly(loaded, settings)
    return result.model_dump(mode="json"), lambda: tell(result)


@app.command()
@_answers
def plan(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """Say what a night would do, without doing it: settings, revisions, stages, and whether it fits here."""
    loaded, settings = _load(recipe, changes)
    _prepare()
    from tasks.plan import plan as make_plan
    from tasks.store import Store

    made = make_plan(loaded, Store.open())

    def say() -> None:
        _say_settings(settings)
        for stage in made.stages:
            print(f"{stage.name:22} {stage.state:13} {stage.detail}")
        for need in made.needs:
            print(f"{need.name:22} {'fits' if need.fits else 'DOES NOT FIT':13} {need.detail}")

    return {"settings": [setting.model_dump() for setting in settings], **made.model_dump(mode="json")}, say


@app.command()
@_answers
def check(
    data: Annotated[str, typer.Argument(metavar="DATA", help="A file, a folder, a source URI, or a recipe.")],
    format: Annotated[str | None, typer.Option(help="Row format; detected from the columns where not given.")] = None,
    kind: Annotated[RowKind, typer.Option(help="What the rows teach.")] = RowKind.chat,
    model: Annotated[str, typer.Option(help="Base model, by URI or as a recipe names it.")] = "demo",
    query: Annotated[str | None, typer.Option(help="One SELECT, for a postgresql:// source.")] = None,
    cursor: Annotated[list[str] | None, typer.Option(help="Its columns that are unique together and grow.")] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> Any:
    """Put data through the gate and say what it finds; exit code 1 when it would have stopped a night."""
    _prepare()
    from tasks.recipe import is_recipe
    from tasks.store import Store

    store = Store.open()
    if is_recipe(data):
        from tasks.fetch import fetch, fetch_base
        from tasks.validate import look

        loaded, _ = _load(data, changes)
        base = fetch_base(loaded.base, store)
        gated = [look(loaded, source, fetch(source, store), base, store) for source in loaded.sources]
    else:
        from tasks.recipe import Base
        from tasks.validate import check as check_data

        base_model = _load(model)[0].base if is_recipe(model) else Base(uri=model)
        found = check_data(
            data, kind=kind.value, base=base_model, store=store, format=format, query=query, cursor=cursor or ()
        )
        gated = [found]

    def say() -> None:
        from flows.tables import gate_table

        for source in gated:
            console = _console()
            console.print(gate_table(source))
            console.print(f"pages       {store.folder(source) / 'docs' / 'index.html'}", soft_wrap=True)
            console.print(f"quarantine  {store.folder(source) / 'quarantine.parquet'}", soft_wrap=True)

    told = [{**source.model_dump(mode="json"), "folder": str(store.folder(source))} for source in gated]
    return {"sources": told, "exit_code": 0 if all(source.passed for source in gated) else 1}, say


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
        print("set aside    " + (", ".join(f"{why} {rows}" for why, rows in mixture.set_aside.items()) or "nothing"))
        print(store.folder(mixture))

    return {**mixture.model_dump(mode="json"), "folder": str(store.folder(mixture))}, say


@app.command()
@_answers
def candidates(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """Every registered candidate with its scores and verdict, newest first."""
    loaded, _ = _load(recipe, changes)
    _prepare()
    from tasks.registry import candidates as registered

    found = registered(loaded)

    def say() -> None:
        from flows.tables import candidates_table

        _console().print(candidates_table(found) if found else f"{loaded.registered_model} has no versions yet")

    return {"model": loaded.registered_model, "candidates": [c.model_dump(mode="json") for c in found]}, say


@app.command()
@_answers
def champion(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """The adapter that is let out, and what it came from; exit code 1 where there is none yet."""
    loaded, _ = _load(recipe, changes)
    _prepare()
    from tasks.errors import Refused
    from tasks.registry import candidates as registered
    from tasks.registry import lineage_of

    reigning = next((c for c in registered(loaded) if "champion" in c.aliases), None)
    if reigning is None:
        raise Refused(f"{loaded.registered_model} has no champion yet. `nightowl run {recipe}` makes a candidate.")
    told = {"model": loaded.registered_model, **reigning.model_dump(mode="json")}
    told["lineage"] = lineage_of(loaded.registered_model, reigning.version)

    def say() -> None:
        for name, value in told.items():
            entries = value if isinstance(value, dict) else {"": value}
            for key, entry in entries.items():
                print(f"{name if key == '' else key:24} {entry}")

    return told, say


VersionArgument = Annotated[int, typer.Argument(metavar="VERSION", help="Version of the recipe's registered model.")]
WhyOption = Annotated[str, typer.Option(help="Why; kept in the record of moves.")]


@app.command()
@_answers
def promote(recipe: RecipeArgument, version: VersionArgument, why: WhyOption, as_json: JsonOption = False) -> Any:
    """Make a version champion by hand, whatever the gate said; recorded with who and why."""
    loaded, _ = _load(recipe)
    _prepare()
    from tasks.errors import BadInput
    from tasks.register import promote as move_champion
    from tasks.registry import get

    found = get(loaded.registered_model, version)
    if found is None:
        raise BadInput("VERSION", version, f"is no version of {loaded.registered_model}", "See `nightowl candidates`.")
    moved = move_champion(found, override=why)
    return moved.model_dump(mode="json"), lambda: print(f"version {version}: {moved.outcome}")


@app.command()
@_answers
def rollback(
    recipe: RecipeArgument,
    to: Annotated[
        int | None, typer.Option(help="Version to go back to; the previous champion where not given.")
    ] = None,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> Any:
    """Make an earlier champion the champion again; recorded with who and why."""
    loaded, _ = _load(recipe)
    _prepare()
    from tasks.register import rollback as move_back

    moved = move_back(loaded.registered_model, to=to, why=why)
    return moved.model_dump(mode="json"), lambda: print(f"version {moved.to}: {moved.outcome}")


@app.command()
@_answers
def report(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """The nights of a recipe, newest first, and the page of the last verdict; exit code 1 where there was no night."""
    loaded, _ = _load(recipe, changes)
    _prepare()
    from tasks.errors import Refused
    from tasks.registry import Report, nights
    from tasks.store import Store

    store = Store.open()
    past = nights(loaded.name)
    if not past:
        raise Refused(f"{loaded.name} has had no night yet. `nightowl run {recipe}` is one.")
    judged = {address for night in past for address in night.verdicts}
    pages = [page for page in store.all(Report) if page.inputs["adapter"] in judged]
    page = str(store.folder(pages[-1]) / "report.html") if pages else None

    def say() -> None:
        from flows.tables import nights_table

        _console().print(nights_table(past))
        if pages:
            print((store.folder(pages[-1]) / "report.md").read_text(encoding="utf-8"))
            print(page)

    return {"nights": [night.model_dump(mode="json") for night in past], "report": page}, say


@app.command()
@_answers
def doctor(as_json: JsonOption = False) -> Any:
    """Is this machine fit for a night, and is the home in order? Exit code 3 where it is not."""
    from tasks.doctor import examine

    checks = examine()

    def say() -> None:
        for entry in checks:
            print(f"{entry.state:8} {entry.name:18} {entry.detail}")

    unfit = any(entry.state == "error" for entry in checks)
    return {"checks": [entry.model_dump() for entry in checks], "exit_code": 3 if unfit else 0}, say


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
