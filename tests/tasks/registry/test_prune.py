"""What goes and what stays: nothing that a kept version needs, and nothing that is in use."""

from __future__ import annotations

import importlib
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tasks import registry
from tasks.conversations import Conversations
from tasks.doctor import examine
from tasks.errors import WorldFailed
from tasks.evaluation import Scores, Verdict
from tasks.mixture import TokenisedMixture
from tasks.prune import prune
from tasks.recipe import Recipe, load
from tasks.register import champion_adapter, promote
from tasks.registry import Decision, Version
from tasks.sources import BaseSnapshot, Snapshot
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


def test_one_that_became_champion_meanwhile_stays(
    world: Any, enter: Enter, make: Callable[..., Any], old: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = enter(world)
    enter(make(seed=1))
    remove = registry.remove

    def too_late(version: Version) -> bool:
        assert promote(first).moved
        return remove(version)

    monkeypatch.setattr("tasks.registry.remove", too_late)
    done = prune(few(world), world.store, for_real=True)
    assert [r for r in done.removals if r.what in ("version", "adapter")] == []
    reigning = registry.champion(world.recipe)
    assert reigning is not None
    assert champion_adapter(reigning, world.store) == world.adapter
    assert registry.read_record(first).adapter == world.adapter
    last = registry.moves(registry.client(), first.model)[-1]
    assert (last.kind, last.to, last.outcome) == ("prune", 1, "refused: it has an alias")


def test_what_a_version_in_another_registry_needs_stays(
    world: Any, enter: Enter, old: None, embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(world)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{embedded}/another.db")
    registry.client()
    orphan = make_snapshot(world.store, "orphan")
    done = prune(world.recipe, world.store, for_real=True)
    # The base's scores are of no version.
    gone = {("snapshot", orphan.address), ("scores", world.scores["base"].address)}
    assert {(removal.what, removal.name) for removal in done.removals} == gone
    assert world.store.find(Adapter, world.adapter.address) == world.adapter


def test_what_a_killed_prune_half_removed_is_no_version_any_more(
    world: Any, enter: Enter, make: Callable[..., Any], old: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = enter(world)
    enter(make(seed=1))
    with monkeypatch.context() as killed:
        killed.setattr("mlflow.tracking.MlflowClient.delete_model_version", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            prune(few(world), world.store, for_real=True)
    assert [candidate.version for candidate in registry.candidates(world.recipe)] == [2]
    assert registry.find(registry.client(), first.model, first.adapter) is None
    # The same adapter again is another version, whole; and what was begun is ended.
    assert enter(make()).version == 3
    assert [r.name for r in prune(world.recipe, world.store, for_real=True).removals if r.what == "version"] == [
        f"{first.model} 1"
    ]
    assert sorted(candidate.version for candidate in registry.candidates(world.recipe)) == [2, 3]


def test_a_registration_that_broke_off_is_seen_made_good_and_cleared_away(
    world: Any, enter: Enter, old: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlflow.exceptions import MlflowException

    def away(*_: object, **__: object) -> None:
        raise MlflowException("the server went away")

    with monkeypatch.context() as broken:
        broken.setattr("mlflow.tracking.MlflowClient.create_model_version", away)
        with pytest.raises(WorldFailed, match="the server went away"):
            enter(world)
    version = enter(world)
    (lost,) = registry.unregistered(time.time() + 1)
    assert lost.model_id != version.model_id
    checks = {check.name: check for check in examine()}
    assert f"{version.model} 1 versions (champion: none)" in checks["registry"].detail
    assert (checks["unregistered"].state, lost.model_id in checks["unregistered"].detail) == ("warning", True)
    done = prune(world.recipe, world.store, for_real=True)
    assert [r.name for r in done.removals if r.what == "unregistered"] == [f"{version.model} {lost.model_id}"]
    assert registry.unregistered(time.time() + 1) == []
    assert len(list((world.store.root.parent / "mlflow" / "artifacts").rglob("adapter_model.safetensors"))) == 1


class Past:
    """Years of nights without their work: manifests that lead to one another, and versions that hold on to them."""

    def __init__(self, recipe: Recipe, luck: random.Random) -> None:
        self.recipe, self.luck, self.store = recipe, luck, Store.open()
        self.mlflow: Any = registry.client()
        registry.ensure_model(self.mlflow, recipe.registered_model, recipe.name)
        self.base = self.made(BaseSnapshot, {"base": luck.random()}, uri="sample://b", revision="r", requested=None)

    def made(self, kind: Any, inputs: dict[str, Any], **fields: Any) -> Any:
        def build(work: Path) -> dict[str, Any]:
            (work / "file").write_text(str(inputs))
            return {name: value for name, value in {**FIELDS, **fields}.items() if name in kind.model_fields}

        return self.store.make(kind, inputs, build)[0]

    def night(self, number: int) -> None:
        """A night whose adapter is registered, or not; nights share sources as luck has it."""
        luck = self.luck
        snapshots = [make_snapshot(self.store, f"source {luck.randrange(6)}") for _ in range(2)]
        gated = [
            self.made(Conversations, {"snapshot": s.address}, source=f"s{n}", snapshot=s.address)
            for n, s in enumerate(snapshots)
        ]
        mixture = self.made(TokenisedMixture, {"conversations": [entry.address for entry in gated]})
        trained = {"base": self.base.address, "mixture": mixture.address}
        adapter = self.made(Adapter, {**trained, "seed": number}, **trained)
        scores = self.made(Scores, {"adapter": adapter.address}, base=self.base.address, adapter=adapter.address)
        verdict = self.made(Verdict, {"scores": scores.address}, candidate=adapter.address)
        if luck.random() < 0.8:
            tags = {
                "nightowl.adapter": adapter.address,
                "nightowl.mixture": mixture.address,
                "nightowl.base_address": self.base.address,
                "nightowl.verdict_address": verdict.address,
            }
            self.mlflow.create_model_version(self.recipe.registered_model, f"s3://nowhere/m-{number}", tags=tags)

    def champion(self, version: int) -> None:
        decision = Decision(version, "moved")
        registry.move(
            self.mlflow, self.recipe.registered_model, "promote", version, lambda found, previous: decision, "past", ""
        )

    def whole(self, version: Any) -> bool:
        """Whether everything that a version was made of, followed link by link, is in the store."""
        adapter = self.store.find(Adapter, version.tags["nightowl.adapter"])
        verdict = self.store.find(Verdict, version.tags["nightowl.verdict_address"])
        if adapter is None or verdict is None or self.store.find(BaseSnapshot, adapter.base) is None:
            return False
        mixture = self.store.find(TokenisedMixture, adapter.mixture)
        gated = [self.store.find(Conversations, a) for a in mixture.inputs["conversations"]] if mixture else [None]
        scores = self.store.find(Scores, verdict.inputs["scores"])
        snapshots = [self.store.find(Snapshot, entry.snapshot) for entry in gated if entry]
        return None not in (mixture, scores, *gated, *snapshots)


FIELDS = {
    **{"size": 1, "licence": None, "row_kind": "chat", "format": "openai", "passed": True, "findings": ()},
    **{"answers": 1, "trained_answers": 1, "tokens": 1, "supervised_tokens": 1, "rows_in": 1, "rows_out": 1},
    **{"set_aside": {}, "recipe": "demo", "splits": {}, "shares": {}, "chat_template": "", "tokenizer": ""},
    **{"base_weights": "", "steps": 1, "loss": 1.0, "validation_loss": None, "seconds": 1.0, "peak_memory": 1},
    **{"device": "", "resumed": 0, "environment": {}, "suites": {}, "champion": None, "decision": "promote"},
    **{"reasons": (), "comparisons": ()},
}


@pytest.mark.usefixtures("old")
@pytest.mark.parametrize("seed", range(3))
def test_whatever_has_happened_nothing_that_a_kept_version_needs_goes(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    luck = random.Random(seed)
    loaded, _ = load("demo")
    keep = luck.randint(1, 4)
    recipe = loaded.model_copy(update={"registry": loaded.registry.model_copy(update={"keep_versions": keep})})
    past = Past(recipe, luck)
    for number in range(12):
        past.night(number)
    model = recipe.registered_model
    numbers = [int(entry.version) for entry in past.mlflow.search_model_versions(f"name = '{model}'")]
    champions = luck.sample(numbers, 3)
    for number in champions:
        past.champion(number)
    past.mlflow.delete_registered_model_alias(model, "previous")
    marked = luck.choice(numbers)
    past.mlflow.set_registered_model_alias(model, "liked", str(marked))
    copied = luck.choice(numbers)
    past.mlflow.create_registered_model("another-teams")
    past.mlflow.copy_model_version(f"models:/{model}/{copied}", "another-teams")
    by_hand = luck.choice(numbers)  # made champion in MLflow, and found so by a move
    past.mlflow.set_registered_model_alias(model, "champion", str(by_hand))
    past.champion(champions[-1])

    left = luck.randint(0, 12)
    steps = ("tasks.prune._remove_output", "tasks.registry.remove")
    with monkeypatch.context() as killed:
        for step in steps:
            module, _, name = step.rpartition(".")
            done = getattr(importlib.import_module(module), name)

            def until_killed(*given: Any, do: Any = done) -> Any:
                nonlocal left
                left -= 1
                if left < 0:
                    raise KeyboardInterrupt
                return do(*given)

            killed.setattr(step, until_killed)
        with suppress(KeyboardInterrupt):
            prune(recipe, past.store, for_real=True)
    expected = {*champions, marked, by_hand, copied, *sorted(numbers)[-keep:]}

    def versions() -> dict[int, Any]:
        return {int(entry.version): entry for entry in past.mlflow.search_model_versions(f"name = '{model}'")}

    assert expected <= set(versions())
    assert all(past.whole(entry) for number, entry in versions().items() if number in expected)
    prune(recipe, past.store, for_real=True)
    assert set(versions()) == expected
    assert all(past.whole(entry) for entry in versions().values())
    kept = {entry.tags["nightowl.adapter"] for entry in versions().values()}
    assert {path.parent.name for path in past.store.root.glob(f"adapter/*/{MANIFEST}")} == kept
    assert prune(recipe, past.store).removals == ()
