"""The way back, from a source's commit or a row to the adapters that were made of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

from tasks.errors import BadInput
from tasks.register import promote
from tasks.registry import Night, Version, containing_row, containing_source, pinned, source_tags
from tasks.registry.lineage import sources_said
from tasks.store import Store

pytestmark = pytest.mark.usefixtures("embedded")


def test_a_source_leads_to_everything_made_of_it(
    world: Any, enter: Callable[[Any], Version], make: Callable[..., Any]
) -> None:
    first = enter(world)
    promote(first)
    second = enter(make(seed=1, champion=world.adapter.address))
    promote(second, who="ada")
    chat = pinned(world.snapshots[2].uri, world.snapshots[2].revision)
    found = containing_source(chat)
    assert [(entry.version, entry.aliases) for entry in found.versions] == [(2, ("champion",)), (1, ("previous",))]
    (now,), (then,) = (entry.reigns for entry in found.versions)
    assert now.until is None
    assert then.until == now.since
    assert [entry.address for entry in found.mixtures] == [world.mixture.address]
    assert len(found.mixtures[0].runs) == 2
    assert {entry.address for entry in found.adapters} == {first.adapter, second.adapter}
    for spelled in ("chat", "hf://org/chat", chat[:-30]):
        assert containing_source(spelled) == found.model_copy(update={"asked": spelled})
    gym = world.snapshots[1].uri
    assert len(containing_source(gym).versions) == 2
    assert len(containing_source(gym.partition("?")[0]).versions) == 2
    for other in (chat[:-1] + "0", "hf://org/cha", "hf://org/chats", "cha", "no'such"):
        assert containing_source(other).versions == ()
    with pytest.raises(BadInput, match="names a branch"):
        containing_source("hf://org/chat@main")


def test_an_adapter_that_was_never_registered_is_found(world: Any) -> None:
    with Night.start(world.recipe, world.settings) as night:
        with night.stage("train", "candidate-1") as stage:
            stage.inputs(world.mixture, world.snapshots, world.conversations)
            stage.made(world.adapter)
        night.finish("failed", "evaluation ran out of memory")
    found = containing_source("tools")
    assert [entry.address for entry in found.adapters] == [world.adapter.address]
    assert found.versions == ()


def test_a_row_leads_to_the_versions_made_of_it(world: Any, enter: Callable[[Any], Version]) -> None:
    version = enter(world)
    splits = {
        name: pl.read_parquet(world.store.folder(world.mixture) / f"{name}.parquet") for name in ("train", "test")
    }
    for name, rows in splits.items():
        found = containing_row(rows["row_id"][3], world.store)
        assert [mixture.splits for mixture in found.mixtures] == [(name,)]
        assert [entry.version for entry in found.versions] == [version.version]
        assert found.not_looked_into == ()
    absent = containing_row("0" * 32, world.store)
    assert (absent.mixtures, absent.versions) == ((), ())
    elsewhere = containing_row(splits["train"]["row_id"][3], Store(world.store.root.with_name("another-store")))
    assert elsewhere.versions == ()
    assert elsewhere.not_looked_into == (world.mixture.address,)
    with pytest.raises(BadInput, match="is no row id"):
        containing_row("chat-3", world.store)


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


def test_many_sources_fill_several_tags_and_none_is_lost(world: Any) -> None:
    many = {f"source-{n:03d}": world.snapshots[2] for n in range(300)}
    tags = source_tags(many, ())
    assert max(map(len, tags.values())) < 8000 < sum(map(len, tags.values()))
    assert [line.partition(" ")[0] for line in sources_said(tags).splitlines()] == list(many)
    with Night.start(world.recipe, world.settings) as night:
        with night.stage("train", "candidate-1") as stage:
            stage.inputs(world.mixture, many, ())
            stage.made(world.adapter)
        night.finish("failed", "a test")
    assert len(containing_source("source-299").adapters) == 1
