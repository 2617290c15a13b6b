"""The commands about what has been registered: candidates, the champion and its moves, the nights."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.command import JsonOption, RecipeArgument, SetOption, answers, load, prepare, terminal

if TYPE_CHECKING:
    from tasks.recipe import Recipe
    from tasks.registry import Candidate, Move, Version

app = typer.Typer()


@app.command()
@answers
def candidates(
    recipe: RecipeArgument,
    plot: Annotated[Path | None, typer.Option(help="Draw the targets' scores into this .png or .svg file.")] = None,
    against: Annotated[
        str | None, typer.Option(metavar="FIELD", help="The field of the plot; the first of search.vary if not given.")
    ] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> Any:
    """Every candidate of all nights: what varied, scores, guards, verdict and version, newest first."""
    loaded, _ = load(recipe, changes)
    prepare()
    from tasks.gate import year
    from tasks.propose import unfinished
    from tasks.registry import candidates as registered
    from tasks.registry import nights
    from tasks.store import Store

    store, past = Store.open(), nights(loaded.name)
    found, not_judged, left = registered(loaded), unfinished(loaded, store), year(loaded, store, past)
    if plot is not None:
        _draw(loaded, found, plot, against)

    def say() -> None:
        from flows.tables import candidates_table

        targets = [suite.name for suite in loaded.evaluation.suites if suite.role == "target"]
        table = candidates_table(found, not_judged, past, targets)
        terminal().print(table if table.rows else f"{loaded.registered_model} has no versions yet")
        print(left)
        if plot is not None:
            print(plot)

    told = [candidate.model_dump(mode="json") for candidate in found]
    others = [one.model_dump(mode="json") for one in not_judged]
    answer = {"model": loaded.registered_model, "candidates": told, "not_judged": others, "year": left.model_dump()}
    return answer | ({"plot": str(plot)} if plot else {}), say


def _draw(recipe: Recipe, found: list[Candidate], file: Path, field: str | None) -> None:
    """The plot of the targets' scores against a field that varied."""
    from tasks.errors import BadInput
    from tasks.registry import search_plot

    form = file.suffix.lower().removeprefix(".")
    if form not in ("png", "svg"):
        raise BadInput("--plot", str(file), "is neither a .png nor a .svg file", "Name it so.")
    varied = list(dict.fromkeys(name for candidate in found for name in candidate.values))
    field = field or (recipe.search.vary[0].field if recipe.search else None)
    if field not in varied:
        way_out = f"These did: {', '.join(varied)}." if varied else "Give the recipe a search, and run a night."
        raise BadInput("--against", field, "varied in no candidate that was judged", way_out)
    targets = [suite.name for suite in recipe.evaluation.suites if suite.role == "target"]
    log = recipe.search is not None and any(vary.field == field and vary.log for vary in recipe.search.vary)
    shown = [candidate for candidate in found if field in candidate.values]
    picture = search_plot(shown, field, targets, log, form)
    try:
        file.write_bytes(picture)
    except OSError as error:
        raise BadInput("--plot", str(file), f"cannot be written ({error.strerror})", "Name another file.") from error


@app.command()
@answers
def champion(recipe: RecipeArgument, changes: SetOption = None, as_json: JsonOption = False) -> Any:
    """The adapter that is let out, and what it came from; exit code 1 where there is none yet."""
    loaded, _ = load(recipe, changes)
    prepare()
    from tasks.errors import Refused
    from tasks.registry import candidates as registered
    from tasks.registry import lineage_of

    reigning = next((c for c in registered(loaded) if "champion" in c.aliases), None)
    if reigning is None:
        raise Refused(f"{loaded.registered_model} has no champion yet. `nightowl run {recipe}` makes a candidate.")
    lineage = lineage_of(loaded.registered_model, reigning.version)
    told = {"model": loaded.registered_model, **reigning.model_dump(mode="json"), "lineage": lineage}

    def say() -> None:
        from flows.tables import champion_table

        terminal().print(champion_table(loaded.registered_model, reigning, lineage))

    return told, say


VersionArgument = Annotated[int, typer.Argument(metavar="VERSION", help="Version of the recipe's registered model.")]
VersionOrAlias = Annotated[
    str, typer.Argument(metavar="VERSION", help="Version of the recipe's registered model, or an alias: champion.")
]
WhyOption = Annotated[str, typer.Option(help="Why; kept in the record of moves.")]


@app.command()
@answers
def promote(recipe: RecipeArgument, version: VersionArgument, why: WhyOption, as_json: JsonOption = False) -> Any:
    """Make a version champion by hand, whatever the gate said; recorded with who and why."""
    found = _version(recipe, str(version))
    from tasks.register import promote as move_champion

    moved = move_champion(found, override=why)
    _tell_prefect(found.model, moved)
    return moved.model_dump(mode="json"), lambda: print(f"version {version}: {moved.outcome}")


@app.command()
@answers
def rollback(
    recipe: RecipeArgument,
    to: Annotated[
        int | None,
        typer.Option(help="Version to go back to; the champion before where not given."),
    ] = None,
    why: WhyOption = "",
    as_json: JsonOption = False,
) -> Any:
    """Make an earlier champion the champion again; recorded with who and why."""
    loaded, _ = load(recipe)
    prepare()
    from tasks.register import rollback as move_back

    moved = move_back(loaded.registered_model, to=to, why=why)
    _tell_prefect(loaded.registered_model, moved)
    return moved.model_dump(mode="json"), lambda: print(f"version {moved.to}: {moved.outcome}")


@app.command()
@answers
def report(
    recipe: Annotated[
        str | None, typer.Argument(metavar="[RECIPE]", help="A recipe file, or a preset by name (demo).")
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Instead: what contains a source, by URI (hf://org/name@commit) or by name.")
    ] = None,
    row: Annotated[str | None, typer.Option(help="Instead: what contains a conversation, by its row_id.")] = None,
    changes: SetOption = None,
    as_json: JsonOption = False,
) -> Any:
    """The nights of a recipe, newest first, and the page of the last verdict; exit code 1 where there was no night.

    With --source or --row: the mixtures, adapters, versions and champions of all recipes that contain it.
    """
    from tasks.errors import BadInput

    given = [name for name, value in (("RECIPE", recipe), ("--source", source), ("--row", row)) if value is not None]
    if len(given) != 1:
        raise BadInput("report", " ".join(given), "is not one of RECIPE, --source and --row", "Give one of them.")
    if recipe is not None:
        return _nights(recipe, changes)
    prepare()
    from tasks.registry import containing_row, containing_source
    from tasks.store import Store

    found = containing_source(source) if source is not None else containing_row(row or "", Store.open())

    def say() -> None:
        from flows.tables import holders_table

        terminal().print(holders_table(found))
        if found.not_looked_into:
            count = len(found.not_looked_into)
            print(f"not looked into: {count} mixtures that are in MLflow and not in this store; see --json")

    return found.model_dump(mode="json"), say


def _nights(recipe: str, changes: list[str] | None) -> Any:
    loaded, _ = load(recipe, changes)
    prepare()
    from tasks.errors import Refused
    from tasks.gate import year
    from tasks.registry import Report, nights
    from tasks.store import Store

    store = Store.open()
    past = nights(loaded.name)
    left = year(loaded, store, past)
    if not past:
        raise Refused(f"{loaded.name} has had no night yet. `nightowl run {recipe}` is one.")
    judged = {address for night in past for address in night.verdicts}
    pages = [page for page in store.all(Report) if page.inputs["adapter"] in judged]
    page = str(store.folder(pages[-1]) / "report.html") if pages else None

    def say() -> None:
        from flows.tables import nights_table

        terminal().print(nights_table(past))
        print(left)
        if pages:
            print((store.folder(pages[-1]) / "report.md").read_text(encoding="utf-8"))
            print(page)

    told = [night.model_dump(mode="json") for night in past]
    return {"nights": told, "report": page, "year": left.model_dump()}, say


@app.command()
@answers
def reproduce(
    recipe: RecipeArgument,
    version: VersionOrAlias,
    train: Annotated[bool, typer.Option("--train", help="Train the adapter again as well, and compare it.")] = False,
    as_json: JsonOption = False,
) -> Any:
    """Make a version's mixture again from its pinned sources; exit code 1 when anything comes out different."""
    found = _version(recipe, version)
    from tasks.registry import read_record
    from tasks.reproduce import reproduce as make_again
    from tasks.store import Store

    made = make_again(read_record(found), Store.open(), train)

    def say() -> None:
        from flows.tables import reproduction_table

        terminal().print(reproduction_table(made))
        circumstances = sum(part.state == "differs" for part in made.circumstances)
        aside = f" ({circumstances} circumstances differ)" if circumstances else ""
        print(f"{found.model} version {found.version}: {'reproduced' if made.same else 'NOT reproduced'}{aside}")

    told = {"model": found.model, "version": found.version, "same": made.same, **made.model_dump(mode="json")}
    return {**told, "exit_code": 0 if made.same else 1}, say


@app.command()
@answers
def export(
    recipe: RecipeArgument,
    version: VersionOrAlias,
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Folder to write; absent or empty.")],
    to: Annotated[str, typer.Option(help="vllm: adapter and command; merged: 16-bit weights; gguf: for llama.cpp.")],
    as_json: JsonOption = False,
) -> Any:
    """Write a version in the form that a server takes: whole, or not at all."""
    found = _version(recipe, version)
    from tasks.export import export as write
    from tasks.store import Store

    made = write(found, to, out, Store.open())

    def say() -> None:
        for name, size in made.files.items():
            print(f"{size / 1e6:9.2f} MB  {name}")
        parity = f", logits within {made.parity:.1e} of the adapter's" if made.parity is not None else ""
        print(f"{found.model} version {found.version}: {made.folder}{parity}")

    return {"model": found.model, "version": found.version, **made.model_dump(mode="json")}, say


@app.command()
@answers
def prune(
    recipe: RecipeArgument,
    for_real: Annotated[bool, typer.Option("--yes", help="Remove it; without, it is only said.")] = False,
    as_json: JsonOption = False,
) -> Any:
    """Remove candidates that the recipe's policy does not keep, and outputs that no kept version needs."""
    loaded, _ = load(recipe)
    prepare()
    from tasks.prune import prune as remove
    from tasks.store import Store

    done = remove(loaded, Store.open(), for_real)

    def say() -> None:
        for removal in done.removals:
            print(f"{removal.size / 1e6:9.1f} MB  {removal.what:13} {removal.name}")
        verb = "removed" if for_real else "would be removed (--yes does it)"
        print(f"{len(done.removals)} things, {done.size / 1e6:.1f} MB, {verb}")
        print(f"{done.kept_versions} versions and {done.kept_outputs} outputs stay")

    return {"removed": for_real, "size": done.size, **done.model_dump(mode="json")}, say


def _tell_prefect(model: str, moved: Move) -> None:
    """Tell the Prefect server of a move that a person made here, as a night tells it, for whoever waits for it."""
    from flows.services import is_up

    running = is_up()
    if not moved.moved or ("PREFECT_API_URL" not in os.environ and running is None):
        return
    import logging

    from flows.server import Server
    from tasks.errors import NightowlError

    if running:
        os.environ.setdefault("PREFECT_API_URL", running["prefect"])
    try:
        server = Server.of_environment()
        server.emit(f"nightowl.{moved.kind}", f"nightowl.champion.{model}", moved.model_dump(mode="json"))
    except NightowlError as trouble:  # the champion has moved, and the journal has it
        logging.getLogger(__name__).warning("Prefect was not told of the move: %s", trouble)


def _version(recipe: str, version: str) -> Version:
    """The version of a recipe's model that a number or an alias names."""
    loaded, _ = load(recipe)
    prepare()
    from tasks.errors import BadInput
    from tasks.registry import named

    found = named(loaded.registered_model, version)
    if found is None:
        raise BadInput("VERSION", version, f"is no version of {loaded.registered_model}", "See `nightowl candidates`.")
    return found
