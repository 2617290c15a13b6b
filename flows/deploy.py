"""What Nightowl asks of a Prefect server: the pools, queues, variables and deployments of `deployments/prefect.yaml`.

Both files of that folder name places such as ${recipe.name}, which are filled in for each recipe that is deployed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from flows.server import Server, Wanted
from tasks.errors import BadInput
from tasks.recipe import Recipe, Schedule

FOLDER = Path(__file__).resolve().parent.parent / "deployments"
PLACE = re.compile(r"\$\{([a-z_.]+)\}")


def pools(server: Server, pool_type: str | None = None) -> list[Wanted]:
    """The work pools and their queues. `pool_type`: instead of the file's, for pools that are made now."""
    return list(_pools(server, pool_type))


def _pools(server: Server, pool_type: str | None) -> Iterator[Wanted]:
    for name, asked in read("prefect.yaml")["pools"].items():
        path = f"/work_pools/{name}"
        found = server.get(path)
        fields = {"description": asked["description"], "concurrency_limit": asked.get("concurrency_limit")}
        made = {"name": name, "type": pool_type or asked["type"], **fields}
        yield Wanted("work pool", name, fields, found, _writer(server, found, "/work_pools/", path, made, fields))
        for queue, limits in asked.get("queues", {}).items():
            at = f"{path}/queues/{queue}"
            there = server.get(at) if found else None
            # A pool brings its default queue along.
            exists = there or ({} if queue == "default" else None)
            write = _writer(server, exists, f"{path}/queues", at, {"name": queue, **limits}, limits)
            yield Wanted("work queue", f"{name}/{queue}", limits, there, write)


def _writer(
    server: Server, found: object, collection: str, path: str, made: Mapping[str, Any], fields: Mapping[str, Any]
) -> Callable[[], object]:
    if found is None:
        return lambda: server.send("POST", collection, made)
    return lambda: server.send("PATCH", path, fields)


def variables(server: Server) -> list[Wanted]:
    """The file's variables, which a job template reads as {{ prefect.variables.NAME }}; others are left as they are."""
    wanted = []
    for name, value in (read("prefect.yaml").get("variables") or {}).items():
        path, fields = f"/variables/name/{name}", {"value": value}
        found = server.get(path)
        write = _writer(server, found, "/variables/", path, {"name": name, "tags": ["nightowl"], **fields}, fields)
        wanted.append(Wanted("variable", name, fields, found, write))
    return wanted


def deployments(server: Server, recipes: Sequence[Recipe]) -> list[Wanted]:
    """The deployments: those with a recipe's name for each of the recipes, the others once."""
    entries = read("prefect.yaml")["deployments"]
    plain = [entry for entry in entries if not PLACE.search(str(entry))]
    filled = [fill(entry, values(recipe)) for recipe in recipes for entry in entries if entry not in plain]
    return [_deployment(server, entry) for entry in filled + plain]


@cache
def _flow(entrypoint: str) -> tuple[str, dict[str, Any]]:
    """A flow's name, and the JSON schema of its form."""
    from prefect.flows import Flow, load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    flow: Flow[..., Any] = load_flow_from_entrypoint(entrypoint, use_placeholder_flow=False)
    schema = parameter_schema(flow).model_dump()
    # Where values come from is for the command line to say; the form is the recipe alone.
    if schema["properties"].pop("settings", None):
        del schema["definitions"]["Setting"]
    return flow.name, schema


def _deployment(server: Server, entry: Mapping[str, Any]) -> Wanted:
    flow, schema = _flow(entry["entrypoint"])
    limit = entry.get("concurrency_limit", {})
    fields = {
        "description": entry["description"],
        "tags": entry["tags"],
        "entrypoint": entry["entrypoint"],
        "parameters": entry.get("parameters", {}),
        "parameter_openapi_schema": schema,
        "enforce_parameter_schema": True,
        "work_pool_name": entry["work_pool"]["name"],
        "work_queue_name": entry["work_pool"].get("work_queue_name", "default"),
        "concurrency_limit": limit.get("limit"),
        "collision_strategy": limit.get("collision_strategy"),
        "schedules": [_schedule(given) for given in entry.get("schedules", ())],
    }
    found = server.get(f"/deployments/name/{flow}/{entry['name']}")

    def write() -> None:
        flow_id = server.send("POST", "/flows/", {"name": flow})["id"]
        body: dict[str, Any] = {**fields, "name": entry["name"], "flow_id": flow_id, "pull_steps": []}
        if strategy := body.pop("collision_strategy"):
            body["concurrency_options"] = {"collision_strategy": strategy}
        server.send("POST", "/deployments/", body)

    return Wanted("deployment", f"{flow}/{entry['name']}", fields, _as_asked(found), write)


def _schedule(given: Mapping[str, Any]) -> dict[str, Any]:
    timing = {"cron": given["cron"], "timezone": given["timezone"], "day_or": True}
    return {"active": given["active"], "schedule": timing}


def _as_asked(found: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """A deployment as the server has it, in the fields that we ask for."""
    if found is None:
        return None
    limit = found.get("global_concurrency_limit") or {}
    options = found.get("concurrency_options") or {}
    return {
        **found,
        "concurrency_limit": limit.get("limit"),
        "collision_strategy": options.get("collision_strategy"),
        "schedules": [{"active": one["active"], "schedule": one["schedule"]} for one in found["schedules"]],
    }


def values(recipe: Recipe) -> dict[str, Any]:
    """What a recipe puts into the places of an entry."""
    schedule = recipe.schedule or Schedule()
    return {
        # Only what the recipe says: the rest keeps its defaults, and is known as such.
        "recipe": recipe.model_dump(mode="json", exclude_unset=True),
        "recipe.name": recipe.name,
        "recipe.registered_model": recipe.registered_model,
        "recipe.schedule.cron": schedule.cron,
        "recipe.schedule.timezone": schedule.timezone,
        "recipe.scheduled": recipe.schedule is not None,
    }


def fill(entry: Any, known: Mapping[str, Any]) -> Any:
    """An entry of a file with its ${places} filled in; a text that is one place becomes the value itself."""
    if isinstance(entry, Mapping):
        return {key: fill(value, known) for key, value in entry.items()}
    if isinstance(entry, list):
        return [fill(value, known) for value in entry]
    if not isinstance(entry, str):
        return entry
    if unknown := sorted(set(PLACE.findall(entry)) - set(known)):
        raise BadInput(str(FOLDER), f"${{{unknown[0]}}}", "is no place to fill in", f"Known: {', '.join(known)}.")
    if whole := PLACE.fullmatch(entry):
        return known[whole[1]]
    return PLACE.sub(lambda place: str(known[place[1]]), entry)


def read(name: str) -> Any:
    """A file of `deployments/`, as plain data."""
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))
