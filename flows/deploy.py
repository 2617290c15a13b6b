"""What Nightowl asks of a Prefect server: pools, queues and deployments, from `deployments/prefect.yaml`.

`changes` compares the file with what the server has, field by field; `apply` makes the server so. What is
already as the file has it is not touched, so that applying twice changes nothing.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import httpx
import yaml
from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInput, WorldFailed
from tasks.recipe import Recipe, Schedule

FOLDER = Path(__file__).resolve().parent.parent / "deployments"
BUSY_SECONDS = 30
_PLACE = re.compile(r"\$\{([a-z_.]+)\}")


class Change(BaseModel):
    """One thing on the server that is not as the files have it. `fields`: before and after, by path."""

    model_config = ConfigDict(frozen=True)

    kind: str
    name: str
    what: Literal["new", "changed", "gone"]
    fields: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Wanted:
    """Something the files ask for: its fields as the server's API has them, and how to write it."""

    kind: str
    name: str
    fields: Mapping[str, Any]
    found: Mapping[str, Any] | None
    write: Callable[[], object]

    @property
    def change(self) -> Change | None:
        """What writing it would change; None where the server has it so."""
        if self.found is None:
            return Change(kind=self.kind, name=self.name, what="new", fields={})
        fields = {
            path: both
            for name, value in self.fields.items()
            for path, both in _differences(self.found.get(name), value, name)
        }
        return Change(kind=self.kind, name=self.name, what="changed", fields=fields) if fields else None


def _differences(before: Any, after: Any, path: str) -> Iterator[tuple[str, tuple[Any, Any]]]:
    """Where two pieces of JSON differ, as deep as both have the same form."""
    if before == after:
        return
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys([*before, *after]):
            yield from _differences(before.get(key), after.get(key), f"{path}.{key}")
    elif isinstance(before, list) and isinstance(after, list) and len(before) == len(after):
        for index, pair in enumerate(zip(before, after, strict=True)):
            yield from _differences(*pair, f"{path}.{index}")
    else:
        yield path, (before, after)


class Server:
    """The Prefect API at PREFECT_API_URL; its errors become WorldFailed."""

    def __init__(self, url: str, auth: str | None = None) -> None:
        user, _, password = (auth or "").partition(":")
        self._client = httpx.Client(
            base_url=url, auth=(user, password) if auth else None, timeout=60, trust_env=not _is_local(url)
        )

    @classmethod
    def of_environment(cls) -> Self:
        """Raises BadInput where no server is named."""
        url = os.environ.get("PREFECT_API_URL")
        if not url:
            raise BadInput("PREFECT_API_URL", None, "names no Prefect server", "Set it, or start one: nightowl up.")
        return cls(url, os.environ.get("PREFECT_API_AUTH_STRING"))

    def get(self, path: str) -> Any:
        """The answer of a GET, or None where there is no such thing."""
        return self._ask("GET", path)

    def send(self, method: str, path: str, body: object = None) -> Any:
        """The answer of a request with a JSON body."""
        return self._ask(method, path, json=body)

    def _ask(self, method: str, path: str, **how: Any) -> Any:
        deadline = time.monotonic() + BUSY_SECONDS
        while True:
            try:
                answer = self._client.request(method, path, **how)
            except httpx.HTTPError as error:
                way_out = "Check that it runs, and PREFECT_API_URL."
                raise WorldFailed(str(self._client.base_url), f"Prefect does not answer ({error})", way_out) from error
            # A server on SQLite says so, and has done nothing, while another writer holds the database.
            if answer.status_code != httpx.codes.SERVICE_UNAVAILABLE or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if method == "GET" and answer.status_code == 404:
            return None
        if answer.is_error:
            raise WorldFailed(
                f"{self._client.base_url}{path}",
                f"Prefect answered {answer.status_code}: {answer.text[:500]}",
                "Its log says more (nightowl up keeps it in logs/prefect.log).",
            )
        return answer.json() if answer.content else None


def changes(wanted: Sequence[Wanted]) -> list[Change]:
    """What applying would change, in the order of application."""
    return [change for entry in wanted if (change := entry.change)]


def apply(wanted: Sequence[Wanted]) -> list[Change]:
    """Make the server as the files have it; returns what was changed."""
    done = []
    for entry in wanted:
        if change := entry.change:
            entry.write()
            done.append(change)
    return done


def pools(server: Server, pool_type: str | None = None) -> list[Wanted]:
    """The work pools and their queues. `pool_type`: instead of the file's, for pools that are made now."""
    return list(_pools(server, pool_type))


def _pools(server: Server, pool_type: str | None) -> Iterator[Wanted]:
    for name, asked in _read("prefect.yaml")["pools"].items():
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


def deployments(server: Server, recipes: Sequence[Recipe]) -> list[Wanted]:
    """The deployments: those with a recipe's name for each of the recipes, the others once."""
    entries = _read("prefect.yaml")["deployments"]
    plain = [entry for entry in entries if not _PLACE.search(str(entry))]
    filled = [fill(entry, values(recipe)) for recipe in recipes for entry in entries if entry not in plain]
    return [_deployment(server, entry) for entry in filled + plain]


def _deployment(server: Server, entry: Mapping[str, Any]) -> Wanted:
    from prefect.flows import Flow, load_flow_from_entrypoint
    from prefect.utilities.callables import parameter_schema

    flow: Flow[..., Any] = load_flow_from_entrypoint(entry["entrypoint"], use_placeholder_flow=False)
    schema = parameter_schema(flow).model_dump()
    # Where values come from is for the command line to say; the form is the recipe alone.
    if schema["properties"].pop("settings", None):
        del schema["definitions"]["Setting"]
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
    found = server.get(f"/deployments/name/{flow.name}/{entry['name']}")

    def write() -> None:
        flow_id = server.send("POST", "/flows/", {"name": flow.name})["id"]
        body: dict[str, Any] = {**fields, "name": entry["name"], "flow_id": flow_id, "pull_steps": []}
        if strategy := body.pop("collision_strategy"):
            body["concurrency_options"] = {"collision_strategy": strategy}
        server.send("POST", "/deployments/", body)

    return Wanted("deployment", f"{flow.name}/{entry['name']}", fields, _as_asked(found), write)


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
    if unknown := sorted(set(_PLACE.findall(entry)) - set(known)):
        raise BadInput(str(FOLDER), f"${{{unknown[0]}}}", "is no place to fill in", f"Known: {', '.join(known)}.")
    if whole := _PLACE.fullmatch(entry):
        return known[whole[1]]
    return _PLACE.sub(lambda place: str(known[place[1]]), entry)


def _read(name: str) -> Any:
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def _is_local(url: str) -> bool:
    return httpx.URL(url).host in ("127.0.0.1", "localhost")
