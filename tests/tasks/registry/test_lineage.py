"""The way back, from a source's commit or a row to the adapters that were made of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import BadInput
from tasks.registry import Version, client, containing_row, containing_source, ensure_model, pinned
from tasks.registry.journal import JOURNAL_TAG
from tasks.registry.lineage import contains_tag

pytestmark = pytest.mark.usefixtures("embedded")


def test_a_commit_and_a_row_lead_to_the_versions_made_of_them(world: Any, enter: Callable[[Any], Version]) -> None:
    version = enter(world)
    chat = pinned(world.snapshots[2].uri, world.snapshots[2].revision)
    (found,) = containing_source(chat)
    assert (found["model"], found["version"], found["aliases"]) == (version.model, version.version, ["challenger"])
    assert containing_source(chat + "0") == []
    (trained,) = containing_row("tools-0003", world.store)
    assert trained["splits"] == ["train"]
    assert [entry["version"] for entry in trained["versions"]] == [version.version]
    (held_out,) = containing_row("chat-0037", world.store)
    assert held_out["splits"] == ["test"]
    assert containing_row("no-such-row", world.store) == []
    with pytest.raises(BadInput, match="names no commit"):
        containing_source("hf://org/chat")


@pytest.mark.parametrize(
    ("uri", "expected"),
    [
        ("hf://org/chat@main", "hf://org/chat@c1"),
        ("modelscope://org/chat", "modelscope://org/chat@c1"),
        ("gym://chain_sum?size=5&seed=0", "gym://chain_sum@c1?size=5&seed=0"),
        ("file:///data/me@home.jsonl", "file:///data/me@home.jsonl@c1"),
    ],
)
def test_a_source_is_named_by_its_commit(uri: str, expected: str) -> None:
    assert pinned(uri, "c1") == expected


def test_a_thousand_nights_are_searched_in_about_a_second(embedded: Path) -> None:
    mlflow = client()
    ensure_model(mlflow, "m", "test")
    run_id = mlflow.get_registered_model("m").tags[JOURNAL_TAG]
    mlflow.create_model_version("m", "file:///nowhere", run_id)
    _thousand_versions(embedded / "mlflow" / "mlflow.db")
    wanted = "hf://org/chat@commit-500"
    containing_source(wanted)  # opens the connection
    started = time.perf_counter()
    (found,) = containing_source(wanted)
    assert time.perf_counter() - started < 3  # under one on an idle machine
    assert found["version"] == 500


def _thousand_versions(database: Path) -> None:
    """Copies of version 1 with tags of their own, straight into the database: by the API it takes minutes."""
    import sqlite3

    with sqlite3.connect(database) as connection:
        columns = [row[1] for row in connection.execute("PRAGMA table_info(model_versions)")]
        copied = ", ".join("?" if name == "version" else name for name in columns)
        copy = (
            f"INSERT INTO model_versions ({', '.join(columns)}) SELECT {copied} FROM model_versions WHERE version = 1"
        )
        tags = [row[1] for row in connection.execute("PRAGMA table_info(model_version_tags)")]
        assert {"name", "version", "key", "value"} <= set(tags)
        extra = [name for name in tags if name not in ("name", "version", "key", "value")]
        named = ", ".join(["name", "version", "key", "value", *extra])
        for version in range(2, 1001):
            connection.execute(copy, (version,))
            source = f"hf://org/chat@commit-{version}"
            entries = {
                contains_tag(source): source,
                "nightowl.adapter": f"a{version}",
                "nightowl.mixture": f"m{version}",
            }
            entries |= {"nightowl.base": "b@1"} | {f"nightowl.filler.{i}": "x" * 100 for i in range(20)}
            for key, value in entries.items():
                rest = "".join(", 'default'" for _ in extra)
                connection.execute(
                    f"INSERT INTO model_version_tags ({named}) VALUES ('m', ?, ?, ?{rest})", (version, key, value)
                )
    connection.close()
