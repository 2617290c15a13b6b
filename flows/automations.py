"""What the Prefect server does by itself: the automations of `deployments/automations.yaml`, and whom they tell."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flows.deploy import PLACE, fill, read, values
from flows.server import Server, Wanted
from tasks.recipe import Recipe
from tasks.store import digest

NOTIFY = "nightowl-notify"
TAG = "nightowl"
NONE_YET = "00000000-0000-0000-0000-000000000000"


def automations(server: Server, recipes: Sequence[Recipe]) -> list[Wanted]:
    """The automations; those with `${notify}` only where there is that block, and those no longer in the file to go."""
    block = _block(server)
    entries = [entry for entry in read("automations.yaml") if block or "${notify}" not in str(entry)]
    known = {"notify": block["id"]} if block else {}
    filled = []
    for entry in entries:
        if "${recipe" not in str(entry):
            filled.append(fill(entry, known))
            continue
        for recipe in recipes:
            nightly = server.get(f"/deployments/name/nightly/{recipe.name}")
            # Before a first deploy has been applied there is none, and what is shown needs no id.
            filled.append(fill(entry, {**known, **values(recipe), "nightly": nightly["id"] if nightly else NONE_YET}))
    there = {one["name"]: one for one in server.send("POST", "/automations/filter", {}) if TAG in one["tags"]}
    ours = re.compile("|".join(PLACE.sub("\0", entry["name"]).replace("\0", ".+") for entry in entries))
    gone = [_removed(server, one) for name, one in there.items() if not ours.fullmatch(name)]
    return gone + [_automation(server, entry, there.get(entry["name"])) for entry in filled]


def _removed(server: Server, found: Mapping[str, Any]) -> Wanted:
    def write() -> None:
        server.send("DELETE", f"/automations/{found['id']}")

    return Wanted("automation", found["name"], None, found, write)


def _automation(server: Server, entry: Mapping[str, Any], found: Mapping[str, Any] | None) -> Wanted:
    from prefect.events.schemas.automations import AutomationCore

    def plain(automation: Mapping[str, Any]) -> dict[str, Any]:
        dumped = AutomationCore.model_validate(automation).model_dump(mode="json")
        dumped["trigger"].pop("id", None)
        # Sets have no order.
        dumped["trigger"].update({name: sorted(dumped["trigger"][name]) for name in ("after", "expect", "for_each")})
        return dumped

    fields = plain({**entry, "tags": [TAG]})

    def write() -> None:
        # The server keeps what a trigger has seen so far under its id; a new one starts afresh.
        if found:
            server.send("DELETE", f"/automations/{found['id']}")
        server.send("POST", "/automations/", fields)

    return Wanted("automation", entry["name"], fields, plain(found) if found else None, write)


def notification(server: Server) -> list[Wanted]:
    """The block that notifications go to, where NIGHTOWL_NOTIFY_URL names a webhook; else one made by hand stays."""
    url = os.environ.get("NIGHTOWL_NOTIFY_URL")
    if not url:
        return []
    found = _block(server)
    slug = "slack-webhook" if url.startswith("https://hooks.slack.com/") else "custom-webhook"
    data: dict[str, Any] = {"url": url}
    if slug == "custom-webhook":
        # The address of a webhook is as good as a password, and only what is in `secrets` is kept as one.
        data = {"url": "{{address}}", "secrets": {"address": url}, "name": "nightowl", "method": "POST", "timeout": 10}
        data["json_data"] = {"text": "{{subject}}\n{{body}}"}

    def write() -> None:
        kind = server.get(f"/block_types/slug/{slug}")["id"]
        schemas = server.send("POST", "/block_schemas/filter", {"block_schemas": {"block_type_id": {"any_": [kind]}}})
        if found:
            server.send("DELETE", f"/block_documents/{found['id']}")
        document = {"name": NOTIFY, "data": data, "block_type_id": kind, "block_schema_id": schemas[0]["id"]}
        server.send("POST", "/block_documents/", document)

    # Of the address only a digest is shown.
    there = {"address": digest(_address(found["data"]))[:12]} if found else None
    return [Wanted("block", NOTIFY, {"address": digest(url)[:12]}, there, write)]


def _address(data: Mapping[str, Any]) -> Any:
    secrets = data.get("secrets")
    return secrets.get("address") if isinstance(secrets, Mapping) else data.get("url")


def _block(server: Server) -> Any:
    query = {"block_documents": {"name": {"any_": [NOTIFY]}}, "include_secrets": True}
    found = server.send("POST", "/block_documents/filter", query)
    return found[0] if found else None
