"""What goes and what stays: nothing that a kept version needs, and nothing that is in use."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import registry
from tasks.prune import prune
from tasks.register import champion_adapter, promote
from tasks.registry import Version
from tasks.sources import Snapshot
from tasks.store import MANIFEST, Store
from tasks.training import Adapter

pytestmark = pytest.mark.usefixtures("embedded")
Enter = Callable[[Any], Version]
DAYS = 100


@pytest.fixture
def old(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred days later."""
    now = time.time() + DAYS * 86_400
    monkeypatch.setattr("tasks.prune.now", lambda: now)


def make_snapshot(store: Store, name: str) -> Snapshot:
    def build(work: Path) -> dict[str, Any]:
        (work / "rows").write_bytes(b"x" * 1000)
        return {"uri": f"file://{name}", "revision": "r", "requested": None, "rows": 1, "size": 1000, "licence": None}

    return store.make(Snapshot, {"name": name}, build)[0]


def few(world: Any) -> Any:
    return world.recipe.model_copy(update={"registry": world.recipe.registry.model_copy(update={"keep_versions": 1})})


@pytest.mark.usefixtures("old")
def test_what_no_kept_version_needs_goes(world: Any, enter: Enter, make: Callable[..., Any]) -> None:
    store, recipe = world.store, few(world)
    dropped, other = enter(world), make(seed=1)
    champion = enter(other)
    promote(champion)
    orphan = make_snapshot(store, "orphan")
    leftover = store.root / "work" / "adapter-dead"
    leftover.mkdir(parents=True)

    said = prune(recipe, store)
    assert {(r.what, r.name) for r in said.removals} >= {
        ("version", f"{dropped.model} 1"),
        ("adapter", world.adapter.address),
        ("snapshot", orphan.address),
        ("unfinished", "adapter-dead"),
    }
    assert said.size > 1000
    # So far it has only been said.
    assert registry.get(dropped.model, 1) == dropped
    assert store.find(Adapter, world.adapter.address)

    done = prune(recipe, store, for_real=True)
    assert [r.name for r in done.removals if r.what != "snapshot"] == [
        r.name for r in said.removals if r.what != "snapshot"
    ]
    assert registry.get(dropped.model, 1) is None
    assert [c.version for c in registry.candidates(recipe)] == [2]
    assert store.find(Adapter, world.adapter.address) is None
    assert not leftover.exists()
    reigning = registry.champion(recipe)
    assert reigning is not None
    assert champion_adapter(reigning, store) == other.adapter
    for needed in (world.base, world.mixture, *world.snapshots, *world.conversations, other.verdict):
        assert (store.root / needed.kind / needed.address / MANIFEST).is_file(), needed.kind
    assert registry.read_record(champion).adapter == other.adapter
    artifacts = list((store.root.parent / "mlflow" / "artifacts").rglob("adapter_model.safetensors"))
    assert len(artifacts) == 1
    assert prune(recipe, store, for_real=True).removals == ()


@pytest.mark.usefixtures("old")
def test_champions_of_old_and_the_newest_stay(world: Any, enter: Enter, make: Callable[..., Any]) -> None:
    first = enter(world)
    promote(first)
    second = enter(make(seed=1, champion=world.adapter.address))
    promote(second)
    registry.client().delete_registered_model_alias(first.model, "previous")
    assert [r for r in prune(few(world), world.store).removals if r.what == "version"] == []


def test_what_is_young_or_in_use_stays(world: Any, enter: Enter, make: Callable[..., Any]) -> None:
    enter(world)
    enter(make(seed=1))
    assert prune(few(world), world.store).removals == ()
    # Made long ago, and taken by a night that runs now.
    store = world.store
    used, unused = make_snapshot(store, "used"), make_snapshot(store, "unused")
    for snapshot in (used, unused):
        os.utime(store.root / "snapshot" / snapshot.address / MANIFEST, (1, 1))
    assert store.find(Snapshot, used.address) == used
    done = prune(few(world), store, for_real=True)
    assert [(r.what, r.name) for r in done.removals] == [("snapshot", unused.address)]
    assert store.find(Snapshot, used.address) == used
