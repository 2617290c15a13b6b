"""What the server does by itself: a source that moves starts a night, and people are told what went wrong."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from stack import Stack

from tasks.errors import WorldFailed
from tasks.fetch import fetch, fetch_base
from tasks.recipe import parse
from tasks.store import Store

pytestmark = pytest.mark.timeout(900)


def chats(path: Path, rows: int) -> None:
    frame = pl.DataFrame(
        {"instruction": [f"Say {n}." for n in range(rows)], "output": [f"It is {n}." for n in range(rows)]}
    )
    frame.write_ndjson(path)


def test_each_of_the_file_is_there(up: Stack) -> None:
    names = {one["name"] for one in up.server.send("POST", "/automations/filter", {"limit": 200})}
    assert names >= {
        "nightowl: a source of demo moved",
        "nightowl: no successful night of demo in 26 hours",
        "nightowl: a night failed",
        "nightowl: the data gate stopped a night",
        "nightowl: the champion changed",
        "nightowl: the gpu pool has no worker",
        "nightowl: a run whose process is gone is crashed",
    }


def test_the_address_of_the_webhook_is_a_secret(up: Stack) -> None:
    shown = json.dumps(up.server.send("POST", "/block_documents/filter", {}))
    assert "nightowl-notify" in shown
    assert "token-of-the-webhook" not in shown


def test_a_source_that_moves_starts_a_night_and_the_gate_tells(
    up: Stack, tiny_recipe: dict[str, Any], tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    data = tmp_path / "chats.jsonl"
    source = {"name": "chat", "uri": f"file://{data}", "kind": "chat", "share": 1.0}
    plain = {**tiny_recipe, "name": "gated", "sources": [source], "quality": {"min_rows": 10_000}}
    recipe = parse(plain)
    chats(data, 30)
    store = Store(up.home / "store")
    fetch(recipe.sources[0], store)
    fetch_base(recipe.base, store)
    up.deploy(plain, tmp_path / "gated.yaml")

    still = up.start("watch-sources/gated")
    assert up.ended(still["id"], 240)["state"]["type"] == "COMPLETED"
    nightly = up.server.get("/deployments/name/nightly/gated")["id"]
    query = {"deployments": {"id": {"any_": [nightly]}}}
    assert up.runs(**query) == []

    chats(data, 40)
    moved = up.start("watch-sources/gated")
    assert up.ended(moved["id"], 240)["state"]["type"] == "COMPLETED", up.log(moved["id"])
    (night,) = wait_for(lambda: up.runs(**query), 150, lambda: up.log(moved["id"]))
    ended = up.ended(night["id"], 300)
    assert ended["state"]["type"] == "FAILED"
    assert "Refused: sources.chat" in ended["state"]["message"]

    def told(text: str) -> bool:
        return any(text in body for body in up.told)

    wait_for(lambda: told("The data gate stopped gated") and told("Night gated: Failed"), 150, lambda: str(up.told))


def test_a_pool_without_a_worker_is_told(up: Stack, wait_for: Callable[..., Any]) -> None:
    """Once more by a server that was started anew and has not seen the worker come back itself."""
    worker = up.part("--pool gpu")

    def told() -> int:
        return sum("The gpu pool has no worker" in body for body in up.told)

    def status() -> str:
        with suppress(WorldFailed):  # a server that is started again
            return str(up.server.get("/work_pools/gpu")["status"])
        return "unknown"

    def silence() -> None:
        # A server that was busy for long has not heard of a worker that is there, and says so.
        wait_for(lambda: status() == "READY", 90, status)
        before = told()
        worker.suspend()
        try:
            wait_for(lambda: told() > before, 150, lambda: f"{status()}: {up.told}")
        finally:
            worker.resume()
        wait_for(lambda: status() == "READY", 90, status)

    silence()
    server = up.part("prefect", "server", "start")
    server.kill()
    wait_for(lambda: not server.is_running(), 60)
    wait_for(lambda: status() == "READY", 200, status)
    silence()


def test_a_day_without_a_successful_night_is_told(
    up: Stack, tiny_recipe: dict[str, Any], tmp_path: Path, wait_for: Callable[..., Any]
) -> None:
    """As deployed, but for ten seconds instead of 26 hours."""
    up.deploy({**tiny_recipe, "name": "absent", "schedule": {"cron": "0 2 * * *"}}, tmp_path / "absent.yaml")
    name = "nightowl: no successful night of absent in 26 hours"
    (there,) = (one for one in up.server.send("POST", "/automations/filter", {"limit": 200}) if one["name"] == name)
    assert there["enabled"]
    assert there["trigger"]["within"] == 26 * 3600
    up.server.send("DELETE", f"/automations/{there['id']}")
    kept = {field: there[field] for field in ("name", "description", "enabled", "actions", "tags")}
    trigger = {**{key: value for key, value in there["trigger"].items() if key != "id"}, "within": 10}
    up.server.send("POST", "/automations/", {**kept, "trigger": trigger})
    wait_for(lambda: any("No successful night of absent" in body for body in up.told), 150, lambda: str(up.told))


def test_a_run_whose_process_is_gone_is_crashed_and_a_suspended_one_is_not(
    up: Stack, wait_for: Callable[..., Any]
) -> None:
    wait_for(lambda: up.run(up.silent["running"])["state"]["type"] == "CRASHED", 300)
    assert up.run(up.silent["suspended"])["state"]["name"] == "Suspended"
