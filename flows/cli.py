"""The `nightowl` command: nights and their stages, the machine and its servers.

The commands about what has been registered are in `flows/cli_registry.py`, those about the servers in
`flows/cli_stack.py`.
"""

from __future__ import annotations

import os
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows import cli_registry, cli_stack
from flows.command import JsonOption, RecipeArgument, SetOption, answers, load, prepare, terminal

if TYPE_CHECKING:
    from tasks.recipe import Setting

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


@app.command()
@answers
def run(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """Run one night here: fetch, validate, mix, train, evaluate, gate, register, report."""
    loaded, settings = load(recipe, changes)
    from flows.screen import console
    from tasks.doctor import preflight

    preflight()
    console.print(f"[bold]nightowl run {loaded.name}[/bold]")
    _say_settings(settings)
    prepare()
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
@answers
def plan(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """Say what a night would do, without doing it: settings, revisions, stages, and whether it fits here."""
    loaded, settings = load(recipe, changes)
    prepare()
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
@answers
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
    prepare()
    from tasks.recipe import is_recipe
    from tasks.store import Store

    store = Store.open()
    if is_recipe(data):
        from tasks.fetch import fetch, fetch_base
        from tasks.validate import look

        loaded, _ = load(data, changes)
        base = fetch_base(loaded.base, store)
        gated = [look(loaded, source, fetch(source, store), base, store)[0] for source in loaded.sources]
    else:
        from tasks.recipe import Base
        from tasks.validate import check as check_data

        base_model = load(model)[0].base if is_recipe(model) else Base(uri=model)
        found = check_data(
            data, kind=kind.value, base=base_model, store=store, format=format, query=query, cursor=cursor or ()
        )
        gated = [found]

    def say() -> None:
        from flows.tables import gate_table

        for source in gated:
            paper = terminal()
            paper.print(gate_table(source))
            paper.print(f"pages       {store.folder(source) / 'docs' / 'index.html'}", soft_wrap=True)
            paper.print(f"quarantine  {store.folder(source) / 'quarantine.parquet'}", soft_wrap=True)

    told = [{**source.model_dump(mode="json"), "folder": str(store.folder(source))} for source in gated]
    return {"sources": told, "exit_code": 0 if all(source.passed for source in gated) else 1}, say


@app.command()
@answers
def mix(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """Fetch, validate and mix, and stop there."""
    loaded, _ = load(recipe, changes)
    prepare()
    from tasks.fetch import fetch, fetch_base
    from tasks.mix import mix as mix_splits
    from tasks.store import Store
    from tasks.validate import validate

    store = Store.open()
    base = fetch_base(loaded.base, store)
    gated = [validate(loaded, source, fetch(source, store), base, store)[0] for source in loaded.sources]
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
@answers
def doctor(as_json: JsonOption = False) -> Any:
    """Is this machine fit for a night, and is the home in order? Exit code 3 where it is not."""
    from tasks.doctor import examine

    checks = examine()

    def say() -> None:
        for entry in checks:
            print(f"{entry.state:8} {entry.name:18} {entry.detail}")

    unfit = any(entry.state == "error" for entry in checks)
    return {"checks": [entry.model_dump() for entry in checks], "exit_code": 3 if unfit else 0}, say


app.add_typer(cli_registry.app)
app.add_typer(cli_stack.app)


def main() -> None:
    """Entry point of the `nightowl` command."""
    app()


if __name__ == "__main__":
    main()
