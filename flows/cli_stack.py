"""Commands of the `nightowl` command about the stack: start it, and put what Nightowl needs on a Prefect server."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from enum import StrEnum
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Annotated, Any

import typer

from flows.command import JsonOption, SetOption, answers, load, prepare

if TYPE_CHECKING:
    from flows.server import Change, Server, Wanted
    from tasks.recipe import Recipe


class Profile(StrEnum):
    """The profiles of the stack, as choices of an option; flows/profile.py says what each is."""

    embedded = "embedded"
    server = "server"


SHOWN = 8
"""Fields of a changed thing that are shown in words."""

app = typer.Typer()

RecipesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[RECIPE]...", help="Recipes to deploy; every preset where not given.")
]


@app.command()
@answers
def up(
    recipes: RecipesArgument = None,
    prefect_port: Annotated[int, typer.Option(help="Port of the Prefect server; another where it is taken.")] = 4200,
    mlflow_port: Annotated[int, typer.Option(help="Port of the MLflow server; another where it is taken.")] = 5000,
    hook_port: Annotated[
        int, typer.Option(help="Port of the webhook that starts nights, where NIGHTOWL_TRIGGER_SECRET is set.")
    ] = 4201,
    profile: Annotated[
        Profile | None,
        typer.Option(help="embedded: SQLite and files. server: PostgreSQL, S3 (NIGHTOWL_STORE) and passwords."),
    ] = None,
    postgres: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            envvar="NIGHTOWL_POSTGRES_URL",
            help="Your PostgreSQL for --profile server, its password in PGPASSWORD; without it one is started.",
        ),
    ] = None,
    as_json: JsonOption = False,
) -> Any:
    """Keep the whole stack running on this home, until Ctrl-C: Prefect, MLflow, a data and a gpu worker."""
    deployed = _recipes(recipes)
    prepare(asks=False)
    from flows.component import free_port, keep_running
    from flows.hook import hook
    from flows.passwords import access
    from flows.server import Server, apply
    from flows.services import AlreadyUp, is_up, stack
    from tasks.errors import BadInput
    from tasks.store import home

    # A home stays with the profile that its registry is in.
    kind = profile or (Profile.server if access() else Profile.embedded)
    if postgres and kind is not Profile.server:
        raise BadInput("--postgres", postgres, "is for the server profile", "Add --profile server, or leave it out.")

    def already(running: dict[str, str]) -> Any:
        return running, lambda: print(f"already up: Prefect {running['prefect'][:-4]}, MLflow {running['mlflow']}")

    if running := is_up():
        return already(running)

    def deploy(server: Server) -> None:
        for asked in asked_of(server, deployed):
            _say_changes(apply(asked()))

    signal.signal(signal.SIGTERM, _interrupt)
    print(f"starting Prefect, MLflow and two workers on {home()} ...", file=sys.stderr, flush=True)
    secret = os.environ.get("NIGHTOWL_TRIGGER_SECRET")
    meanwhile = partial(import_module, "flows.nightly")
    try:
        with stack(prefect_port, mlflow_port, kind, postgres, deploy, meanwhile) as (urls, parts), ExitStack() as also:
            if secret:
                urls["hook"] = also.enter_context(hook(free_port(hook_port), Server(urls["prefect"]), secret))
            if as_json:
                print(json.dumps(urls), flush=True)
            print(f"Prefect  {urls['prefect'][:-4]}", file=sys.stderr)
            print(f"MLflow   {urls['mlflow']}", file=sys.stderr)
            if secret:
                print(f"Webhook  POST {urls['hook']}", file=sys.stderr)
            if kind is Profile.server:
                said = f"Both ask for a password: user nightowl, PASSWORD in {home() / 'passwords.json'}"
                print(f"{said} (Prefect's page takes nightowl:PASSWORD)", file=sys.stderr)
            print("Ctrl-C stops it all; logs are in " + str(home() / "logs"), file=sys.stderr, flush=True)
            keep_running(parts)
    except AlreadyUp as other:
        return already(other.urls)
    except KeyboardInterrupt:
        pass
    return None, lambda: print("stopped", file=sys.stderr)


def _interrupt(_signal: int, _frame: Any) -> None:
    raise KeyboardInterrupt


@app.command(name="hook")
@answers
def serve_hook(
    host: Annotated[str, typer.Option(help="Address to listen on; anyone who reaches it needs the secret.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=0, max=65535, help="TCP port; 0: one that is free.")] = 4201,
    as_json: JsonOption = False,
) -> Any:
    """Serve the webhook that starts nights, where `nightowl up` does not, until Ctrl-C (NIGHTOWL_TRIGGER_SECRET)."""
    prepare()
    from flows.hook import hook
    from tasks.errors import BadInput, WorldFailed

    secret = os.environ.get("NIGHTOWL_TRIGGER_SECRET")
    if not secret:
        raise BadInput("NIGHTOWL_TRIGGER_SECRET", secret, "is no secret", "Set it to what callers have to know.")
    server = _server()
    signal.signal(signal.SIGTERM, _interrupt)
    with ExitStack() as listening:
        try:
            url = listening.enter_context(hook(port, server, secret, host))
        except OSError as error:
            raise WorldFailed(f"{host}:{port}", f"can't be listened on ({error})", "Give another --port.") from error
        print(json.dumps({"hook": url}) if as_json else f"Webhook  POST {url}", flush=True)
        with suppress(KeyboardInterrupt):
            signal.pause()
    return None, lambda: print("stopped", file=sys.stderr)


def _server() -> Server:
    """The Prefect server of `nightowl up` on this home, or of PREFECT_API_URL."""
    from flows.server import Server
    from flows.services import is_up

    running = is_up()
    return Server(running["prefect"]) if running else Server.of_environment()


@app.command()
@answers
def deploy(
    recipes: RecipesArgument = None,
    settings: SetOption = None,
    only_show: Annotated[bool, typer.Option("--show", help="Only show what would change.")] = False,
    pool_type: Annotated[
        str | None, typer.Option(help="Type of pools that are made now: process, docker, kubernetes.")
    ] = None,
    as_json: JsonOption = False,
) -> Any:
    """Show what would change on the Prefect server (that of `nightowl up`, or PREFECT_API_URL), and apply it."""
    deployed = _recipes(recipes, settings)
    prepare()
    from flows.server import apply, changes

    asked = asked_of(_server(), deployed, pool_type)
    found = [change for wanted in asked for change in changes(wanted())]
    if not as_json:
        _say_changes(found)
    if not only_show:
        for wanted in asked:
            apply(wanted())
    done = "to change" if only_show else "changed"
    told = {"changes": [change.model_dump(mode="json") for change in found], "applied": not only_show}
    return told, lambda: print(f"{len(found) or 'nothing'} {done}")


def _recipes(names: Sequence[str] | None, settings: list[str] | None = None) -> list[Recipe]:
    from tasks.recipe import PRESETS

    names = names or sorted(path.stem for path in PRESETS.glob("*.yaml"))
    return [load(name, settings)[0] for name in names]


def asked_of(
    server: Server, recipes: Sequence[Recipe], pool_type: str | None = None
) -> list[Callable[[], Sequence[Wanted]]]:
    """What the files ask of a server, in the order of application: what comes later needs what comes before."""
    from flows.automations import automations, notification
    from flows.deploy import deployments, pools, variables

    return [
        partial(pools, server, pool_type),
        partial(variables, server),
        partial(notification, server),
        partial(deployments, server, recipes),
        partial(automations, server, recipes),
    ]


def _say_changes(changes: Sequence[Change]) -> None:
    for change in changes:
        print(f"{change.what:8} {change.kind:12} {change.name}", file=sys.stderr)
        for field, (before, after) in list(change.fields.items())[:SHOWN]:
            print(f"{'':21} {field}: {_short(before)} -> {_short(after)}", file=sys.stderr)
        if len(change.fields) > SHOWN:
            print(f"{'':21} and {len(change.fields) - SHOWN} more; --json has them all", file=sys.stderr)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 100 else text[:99] + "…"
