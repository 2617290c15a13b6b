"""A Prefect server, compared with what the files ask of it: what differs, field by field, and how to make it so.

What is already as asked is not touched, so that applying twice changes nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal, Self
from uuid import uuid4

import httpx
from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInput, WorldFailed

# A server on SQLite has its writers wait for one another for up to 60 seconds; one that is not ours may answer nobody
# meanwhile (flows/sqlite.py).
BUSY_SECONDS = 150


class Change(BaseModel):
    """One thing on the server that is not as the files have it. `fields`: before and after, by path."""

    model_config = ConfigDict(frozen=True)

    kind: str
    name: str
    what: Literal["new", "changed", "gone"]
    fields: dict[str, tuple[Any, Any]]


@dataclass(frozen=True)
class Wanted:
    """Something the files ask for: its fields as the server's API has them (None: that it goes), and how to do it."""

    kind: str
    name: str
    fields: Mapping[str, Any] | None
    found: Mapping[str, Any] | None
    write: Callable[[], object]

    @property
    def change(self) -> Change | None:
        """What writing it would change; None where the server has it so."""
        if self.fields is None:
            return Change(kind=self.kind, name=self.name, what="gone", fields={})
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
    """A Prefect API; its errors become WorldFailed.

    `auth`: who asks (user:password); PREFECT_API_AUTH_STRING where not given.
    """

    def __init__(self, url: str, auth: str | None = None) -> None:
        auth = auth or os.environ.get("PREFECT_API_AUTH_STRING")
        user, _, password = (auth or "").partition(":")
        self._client = httpx.Client(
            base_url=url,
            auth=(user, password) if auth else None,
            timeout=httpx.Timeout(BUSY_SECONDS, connect=10),
            trust_env=not _is_local(url),
        )

    @classmethod
    def of_environment(cls) -> Self:
        """Raises BadInput where no server is named."""
        url = os.environ.get("PREFECT_API_URL")
        if not url:
            raise BadInput("PREFECT_API_URL", None, "names no Prefect server", "Set it, or start one: nightowl up.")
        return cls(url)

    def get(self, path: str) -> Any:
        """The answer of a GET, or None where there is no such thing."""
        return self._ask("GET", path)

    def send(self, method: str, path: str, body: object = None) -> Any:
        """The answer of a request with a JSON body."""
        return self._ask(method, path, json=body)

    def emit(self, event: str, resource: str, payload: Mapping[str, Any]) -> None:
        """Tell of an event now, as Prefect's `emit_event` does inside a run."""
        told = {"id": str(uuid4()), "occurred": datetime.now(UTC).isoformat(), "event": event}
        self.send("POST", "/events", [{**told, "resource": {"prefect.resource.id": resource}, "payload": payload}])

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


def _is_local(url: str) -> bool:
    return httpx.URL(url).host in ("127.0.0.1", "localhost")
