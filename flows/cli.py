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
    from tasks.conversations import Conversations
    from tasks.quality import Change
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
    from tasks.errors import BadInput

    preflight()
    console.print(f"[bold]nightowl run {loaded.name}[/bold]")
    _say_settings(settings)
    prepare()
    from flows.services import for_one_night, is_up

    if loaded.placement == "pools" and is_up() is None and "PREFECT_API_URL" not in os.environ:
        way_out = "Start them with `nightowl up`, or add --set placement=here."
        raise BadInput("placement", "pools", "needs workers, and none run on this home", way_out)
    with for_one_night() as api:
        os.environ["PREFECT_API_URL"] = api
        # Where `nightowl up` shows this night, or will: the server of this one night has no pages.
        running = is_up()
        os.environ.setdefault("PREFECT_UI_URL", api.removesuffix("/api") if running else "http://127.0.0.1:4200")
        if running:
            os.environ.setdefault("NIGHTOWL_MLFLOW_UI", running["mlflow"])
        from flows.nightly import nightly
        from flows.result import tell

        result = nightly(loaded, settings)
    return result.model_dump(mode="json"), lambda: tell(result)


@app.command()
@answers
def plan(
    recipe: RecipeArgument,
    changes: SetOption = None,
    device_memory: Annotated[
        str | None, typer.Option(metavar="SIZE", help="Plan for a GPU with this much memory instead, such as 24GB.")
    ] = None,
    calibrate: Annotated[bool, typer.Option(help="Train a few steps, thrown away, to tell how long it takes.")] = False,
    as_json: JsonOption = False,
) -> Any:
    """Say what a night would do, without doing it: settings, revisions, stages, and whether it fits here."""
    loaded, settings = load(recipe, changes)
    prepare()
    from tasks.plan import plan as make_plan
    from tasks.store import Store

    made = make_plan(loaded, Store.open(), device_memory, calibrate)

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
    kind: Annotated[RowKind | None, typer.Option(help="What the rows teach; what most show where not given.")] = None,
    model: Annotated[str, typer.Option(help="Base model, by URI or as a recipe names it.")] = "demo",
    query: Annotated[str | None, typer.Option(help="One SELECT, for a postgresql:// source.")] = None,
    cursor: Annotated[list[str] | None, typer.Option(help="Its columns that are unique together and grow.")] = None,
    column: Annotated[list[str] | None, typer.Option(help="A field of ours and its column: question=Frage.")] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> Any:
    """Put data through the gate and say what it finds; exit code 1 when it would have stopped a night.

    --set changes what the gate asks: --set quality.languages=[en] --set base.max_length=4096.
    """
    prepare(asks=False)
    from flows.screen import console
    from tasks.recipe import is_recipe
    from tasks.store import Store
    from tasks.validate import check as check_data
    from tasks.validate import look

    store = Store.open()
    found: list[tuple[Conversations, Change | None]]
    if is_recipe(data):
        from tasks.fetch import fetch, fetch_base

        loaded, _ = load(data, changes)
        base = fetch_base(loaded.base, store)
        found = [look(loaded, source, fetch(source, store), base, store) for source in loaded.sources]
    else:
        loaded, _ = load(model if is_recipe(model) else "demo", changes)
        base_model = loaded.base
        if not is_recipe(model):
            base_model = base_model.model_copy(update={"uri": model, "chat_template": None})
        columns = _columns(column or [])
        with console.status(f"checking {data} (the first check of all fetches and converts the base model)"):
            gated = check_data(
                data,
                base=base_model,
                store=store,
                kind=kind.value if kind else None,
                format=format,
                query=query,
                cursor=cursor or (),
                columns=columns,
                quality=loaded.quality,
            )
        found = [(gated, None)]

    def say() -> None:
        from flows.tables import gate_table, tell_gate

        for gated, change in found:
            terminal().print(gate_table(gated, change))
            tell_gate(gated, change, store.folder(gated))

    told = [
        {
            **gated.model_dump(mode="json"),
            "folder": str(store.folder(gated)),
            "change": {**change.model_dump(mode="json"), "passed": change.passed} if change else None,
        }
        for gated, change in found
    ]
    passed = all(gated.passed and (change is None or change.passed) for gated, change in found)
    return {"sources": told, "exit_code": 0 if passed else 1}, say


def _columns(given: list[str]) -> dict[str, str] | None:
    from tasks.errors import BadInput

    named = {}
    for text in given:
        field, equals, name = text.partition("=")
        if not (field and equals and name):
            raise BadInput("--column", text, "is not FIELD=COLUMN", "Write it as --column question=Frage.")
        named[field] = name
    return named or None


@app.command()
@answers
def mix(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """Fetch, validate and mix, and stop there."""
    loaded, _ = load(recipe, changes)
    prepare(asks=False)
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
