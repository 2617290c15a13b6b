"""register, promote and rollback on MLflow's embedded database."""

from __future__ import annotations

import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tasks import registry
from tasks.errors import BadInput, Refused
from tasks.register import promote, register, rollback
from tasks.registry import Night, Version

Enter = Callable[[Any], Version]
pytestmark = pytest.mark.usefixtures("embedded")


def test_a_version_carries_its_lineage_scores_and_files(world: Any, enter: Enter, tmp_path: Path) -> None:
    started = time.monotonic()
    version = enter(world)
    assert time.monotonic() - started < 30
    mlflow = registry.client()
    entry = mlflow.get_model_version(version.model, str(version.version))
    tags = entry.tags
    assert tags["nightowl.adapter"] == world.adapter.address
    assert "chat hf://org/chat@5f1f5c" in tags["nightowl.sources"]
    assert tags["nightowl.mixture.train"] == world.mixture.splits["train"].digest
    assert tags["nightowl.base"] == "sample://smollm2-135m-instruct@1f0b2c"
    assert tags["nightowl.flow_run"].endswith("/flow-run/1")
    assert tags["nightowl.verdict"] == "promote"
    assert tags["nightowl.code"].startswith("0.")
    assert len(tags["nightowl.lock"]) == 64
    assert "arithmetic (non-commercial)" in entry.description
    assert "chat (not stated)" in entry.description

    run = mlflow.get_run(version.run_id)
    assert run.data.tags["nightowl.stage"] == "train"
    contexts = {
        tag.value: given.dataset for given in run.inputs.dataset_inputs for tag in given.tags if "context" in tag.key
    }
    assert set(contexts) == {"source", "train", "validation", "test"}
    assert run.outputs.model_outputs[0].model_id == version.model_id
    model = mlflow.get_logged_model(version.model_id)
    metrics = {metric.key: metric for metric in model.metrics}
    assert metrics["tool_call"].value == pytest.approx(world.scores[world.adapter.address].suites["tool_call"].mean)
    assert metrics["tool_call/low"].value < metrics["tool_call"].value < metrics["tool_call/high"].value
    assert metrics["tool_call"].dataset_name == "demo-test"

    import mlflow as library

    library.set_tracking_uri(registry.tracking_uri())
    folder = Path(library.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "got")))
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= names
    assert {"chat_template.jinja", "generation_config.json"} <= names
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    everything = "".join(p.read_text(errors="ignore") for p in folder.rglob("*.json"))
    assert str(tmp_path) not in everything

    record = registry.read_record(version)
    assert (record.recipe, record.base, record.mixture, record.adapter) == (
        world.recipe,
        world.base,
        world.mixture,
        world.adapter,
    )
    assert record.snapshots["chat"].files == world.snapshots[2].files
    assert record.code == tags["nightowl.code"]
    assert record.libraries["polars"] == metadata.version("polars")
    assert "<script>" not in record.model_dump_json()  # a row's text


def test_a_version_without_a_readable_record_says_so(world: Any, enter: Enter, tmp_path: Path) -> None:
    version = enter(world)
    assert registry.named(version.model, "challenger") == registry.named(version.model, "1") == version
    assert registry.named(version.model, "champion") is None
    (path,) = (tmp_path / "nightowl-home").rglob("record.json")
    path.write_text('{"recipe": {"nome": "x"}}')
    with pytest.raises(BadInput, match=r"recipe.name is not what this code reads|'recipe.name' is not"):
        registry.read_record(version)
    path.unlink()
    with pytest.raises(BadInput, match=r"has no record\.json"):
        registry.read_record(version)


def test_registering_twice_keeps_the_version_and_takes_the_new_verdict(
    world: Any, enter: Enter, make: Callable[..., Any]
) -> None:
    first = enter(world)
    again = make(decision="keep")
    assert enter(again) == first
    (candidate,) = registry.candidates(world.recipe)
    assert (candidate.name, candidate.values) == ("candidate-1", {})
    guards = {c.suite: c.outcome for c in again.verdict.comparisons if c.role == "guard"}
    assert candidate.broken == tuple(name for name, outcome in guards.items() if outcome != "not worse")
    assert candidate.verdict == "keep"
    assert candidate.aliases == ("challenger",)


def test_the_champion_moves_once_and_what_was_not_let_through_stays(
    world: Any, enter: Enter, make: Callable[..., Any]
) -> None:
    assert registry.champion(world.recipe) is None
    first = enter(world)
    assert promote(first).moved
    assert not promote(first).moved
    champion = registry.champion(world.recipe)
    assert champion is not None
    assert (champion.version, champion.adapter, champion.base) == (1, world.adapter.address, world.base.address)

    kept = enter(make(seed=1, champion=world.adapter.address, decision="keep"))
    with pytest.raises(Refused, match="the gate said keep"):
        promote(kept)
    assert registry.champion(world.recipe) == champion
    assert promote(kept, who="ada", override="the demo needs it").moved
    newest, oldest = registry.candidates(world.recipe)
    assert (newest.aliases, oldest.aliases) == (("champion",), ("previous",))

    back = rollback(first.model, who="ada", why="it swears")
    assert (back.to, back.found, back.who, back.why) == (1, 2, "ada", "it swears")
    journal = registry.moves(registry.client(), first.model)
    assert [move.moved for move in journal] == [True, False, False, True, True]
    assert [move.number for move in journal] == [1, 2, 3, 4, 5]


def test_who_was_judged_against_another_champion_must_be_judged_again(
    world: Any, enter: Enter, make: Callable[..., Any]
) -> None:
    first, second = enter(world), enter(make(seed=1))
    promote(first)
    with pytest.raises(Refused, match=r"judged against the base model, but champion is version 1 now. Evaluate it"):
        promote(second)
    assert registry.champion(world.recipe).version == 1  # type: ignore[union-attr]


def test_rollback_needs_somewhere_to_go(world: Any, enter: Enter) -> None:
    version = enter(world)
    with pytest.raises(BadInput, match="no previous champion"):
        rollback(version.model)
    promote(version)
    with pytest.raises(BadInput, match="no previous champion"):
        rollback(version.model)
    with pytest.raises(BadInput, match="is no version"):
        rollback(version.model, to=7)


def test_another_tools_registered_model_is_left_alone(world: Any, enter: Enter) -> None:
    registry.client().create_registered_model(world.recipe.registered_model)
    with pytest.raises(BadInput, match="did not make"):
        enter(world)


def test_a_changed_adapter_file_is_not_registered(world: Any, enter: Enter) -> None:
    path = world.store.folder(world.adapter) / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")
    with pytest.raises(Exception, match="has changed since training"):
        enter(world)
    assert registry.candidates(world.recipe) == []


def test_an_adapter_trained_before_its_run_was_recorded_gets_a_run(world: Any, enter: Enter) -> None:
    night = Night.start(world.recipe, world.settings)
    version = register(
        world.recipe,
        night,
        world.adapter,
        world.mixture,
        world.snapshots,
        world.conversations,
        world.base,
        world.scores,
        world.verdict,
        world.store,
    )
    night.finish("kept", "test")
    run = registry.client().get_run(version.run_id)
    assert run.data.tags["nightowl.stage"] == "register"
    assert run.data.tags["mlflow.parentRunId"] == night.id
