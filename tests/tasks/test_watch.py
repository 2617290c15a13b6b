"""Whether anything upstream moved since a recipe's last night."""

from __future__ import annotations

from pathlib import Path

from tasks.fetch import fetch
from tasks.recipe import parse
from tasks.sources import Snapshot
from tasks.store import Store
from tasks.watch import watch


def test_a_source_has_moved_when_it_points_elsewhere_than_its_last_snapshot(tmp_path: Path, store: Store) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"instruction": "a", "output": "b"}\n')
    recipe = parse(
        {
            "name": "watched",
            "base": {"uri": "sample://smollm2-135m-instruct"},
            "sources": [
                {"name": "rows", "uri": f"file://{data}", "kind": "chat", "share": 0.5},
                {"name": "still", "uri": "sample://chat?size=20&seed=0", "kind": "chat", "share": 0.5},
            ],
            "evaluation": {"suites": [{"name": "chat_format", "kind": "chat", "role": "target"}]},
        }
    )
    assert [(look.name, look.moved, look.before) for look in watch(recipe, store)] == [
        ("base", False, None),
        ("rows", False, None),
        ("still", False, None),
    ]
    before = {source.name: fetch(source, store).revision for source in recipe.sources}
    assert not any(look.moved for look in watch(recipe, store))
    data.write_text('{"instruction": "a", "output": "c"}\n')
    by_name = {look.name: look for look in watch(recipe, store)}
    assert {name: look.moved for name, look in by_name.items()} == {"base": False, "rows": True, "still": False}
    assert by_name["rows"].before == before["rows"] != by_name["rows"].revision
    assert len(store.all(Snapshot)) == 2, "looking fetched something"
