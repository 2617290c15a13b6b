"""register, promote and rollback on MLflow's embedded database."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from tasks import registry
from tasks.errors import BadInput, Refused
from tasks.register import promote, rollback
from tasks.registry import Night, Version

Enter = Callable[[Any], Version]
pytestmark = pytest.mark.usefixtures("embedded")


def test_a_version_carries_its_lineage_scores_and_files(world: Any, enter: Enter, tmp_path: Path) -> None:
    version = enter(world)
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
    assert json.loads(tags["nightowl.splits"])["train"] == {"rows": 90, "tokens": 9000, "supervised_tokens": 2250}
    assert "arithmetic (non-commercial)" in entry.description
    assert "chat (not stated)" in entry.description

    run = mlflow.get_run(version.run_id)
    assert run.data.tags["nightowl.stage"] == "train"
    contexts = {
        tag.value: given.dataset for given in run.inputs.dataset_inputs for tag in given.tags if "context" in tag.key
    }
    assert set(contexts) == {"source", "train", "validation", "test"}
    assert run.outputs.model_outputs[0].model_id == version.model_id
    profile = next(json.loads(given.profile) for given in contexts_of(run, "source") if given.name == "chat")
    assert profile["sha256_by_file"] == world.snapshots[2].files
    model = mlflow.get_logged_model(version.model_id)
    metrics = {metric.key: metric for metric in model.metrics}
    assert metrics["tool_call"].value == pytest.approx(world.scores[world.adapter.address].suites["tool_call"].mean)
    assert metrics["tool_call/low"].value < metrics["tool_call"].value < metrics["tool_call/high"].value
    assert metrics["tool_call"].dataset_name == "demo-test"

    import mlflow as library
    import torch

    library.set_tracking_uri(registry.tracking_uri())
    folder = Path(library.artifacts.download_artifacts(version.uri, dst_path=str(tmp_path / "got")))
    names = {path.name for path in folder.rglob("*") if path.is_file()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= names
    assert {"chat_template.jinja", "generation_config.json", "mixture.png", "lineage.svg"} <= names
    assert "](mixture.png)" in (folder / "artifacts" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert not [name for name in names if name.endswith((".bin", ".pt", ".pkl"))]
    from safetensors.torch import load_file

    (weights,) = folder.rglob("adapter_model.safetensors")
    trained = load_file(world.store.folder(world.adapter) / "adapter" / "adapter_model.safetensors")
    # In the precision in which it was judged, and no wider.
    narrow = torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    for name, matrix in load_file(weights).items():
        assert matrix.equal(trained[name].to(torch.bfloat16) if narrow else trained[name])
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


def contexts_of(run: Any, context: str) -> list[Any]:
    given = run.inputs.dataset_inputs
    return [entry.dataset for entry in given if context in {tag.value for tag in entry.tags}]


def test_a_versions_page_leads_to_everything_in_one_click(world: Any, enter: Enter) -> None:
    version = enter(world)
    mlflow = registry.client()
    text = mlflow.get_model_version(version.model, "1").description
    links = dict(re.findall(r"(?<!!)\[([^\]]+)\]\(([^)]+)\)", text))
    pictures = re.findall(r"!\[[^\]]*\]\(get-artifact\?path=([^&]+)&run_uuid=(\w+)\)", text)
    assert pictures == [("lineage/lineage.svg", version.run_id), ("lineage/mixture.png", version.run_id)]
    assert links.pop("flow run") == "http://127.0.0.1:4200/runs/flow-run/1"
    night = mlflow.get_run(version.run_id).data.tags["mlflow.parentRunId"]
    (reports, report) = (links.pop("report").partition("/artifacts/"), "report/report.html")
    assert (reports[0], reports[2]) == (links["training run"], report)  # the night's report is yet to come
    experiment = mlflow.get_run(night).info.experiment_id
    for name, place in [
        *links.items(),
        *((path, f"#/experiments/{experiment}/runs/{run}/artifacts/{path}") for path, run in pictures),
    ]:
        found = re.fullmatch(rf"#/experiments/{experiment}/runs/(\w+)(?:/artifacts/(.+))?", place)
        assert found, (name, place)
        run, path = found.groups()
        assert run in (night, version.run_id)
        if path:
            folder = path.rpartition("/")[0]
            assert path in {entry.path for entry in mlflow.list_artifacts(run, folder or None)}, name
    assert {f"data gate of {source.name}" for source in world.recipe.sources} <= set(links)
    # The night shows it as well, and so does the logged model.
    note = mlflow.get_run(night).data.tags["mlflow.note.content"]
    assert note.startswith("test\n\n[nightowl-demo version 1](#/models/nightowl-demo/versions/1)")
    assert mlflow.get_logged_model(version.model_id).tags["mlflow.note.content"] == text


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
    assert "**Verdict: keep.**" in registry.client().get_model_version(first.model, "1").description
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


def test_rollback_needs_somewhere_to_go(world: Any, enter: Enter, make: Callable[..., Any]) -> None:
    version = enter(world)
    with pytest.raises(BadInput, match="no previous champion"):
        rollback(version.model)
    promote(version)
    with pytest.raises(BadInput, match="no previous champion"):
        rollback(version.model)
    with pytest.raises(BadInput, match="is no version"):
        rollback(version.model, to=7)
    # What the gate kept back is not let out by the back door.
    enter(make(seed=1, champion=world.adapter.address, decision="keep"))
    with pytest.raises(Refused, match=r"never was champion, and the gate said keep\. `nightowl promote`"):
        rollback(version.model, to=2)
    assert registry.alias_version(registry.client(), version.model, "champion") == 1


def test_a_second_rollback_does_not_bring_back_what_was_rolled_back(
    world: Any, enter: Enter, make: Callable[..., Any]
) -> None:
    first = enter(world)
    promote(first)
    promote(enter(make(seed=1, champion=world.adapter.address)))
    assert rollback(first.model, why="it swears").to == 1
    with pytest.raises(BadInput, match="no previous champion"):
        rollback(first.model)
    assert registry.alias_version(registry.client(), first.model, "champion") == 1
    assert rollback(first.model, to=2, why="it was the prompt").moved


def test_a_champion_that_somebody_moved_or_deleted_by_hand_is_noticed(
    world: Any, enter: Enter, make: Callable[..., Any]
) -> None:
    first, second = enter(world), enter(make(seed=1, champion=world.adapter.address))
    model, mlflow = first.model, registry.client()
    promote(first)
    other = mlflow.create_model_version(model, "file:///of/another/tool", tags={"team": "them"})
    # Other tools' versions are left alone, and not taken for adapters.
    assert [candidate.version for candidate in registry.candidates(world.recipe)] == [2, 1]
    with pytest.raises(BadInput, match="none that Nightowl made"):
        registry.get(model, int(other.version))
    assert registry.sort_out_versions(world.recipe, 1, 2e10)[1] == []
    mlflow.set_registered_model_alias(model, "champion", other.version)
    with pytest.raises(BadInput, match="Nightowl did not make"):
        registry.champion(world.recipe)
    with pytest.raises(Refused, match=r"judged against adapter .*, but champion is version 3 now\. Evaluate it again"):
        promote(second)
    assert rollback(model, why="who was that?").to == 1

    mlflow.set_registered_model_alias(model, "champion", "2")
    with pytest.raises(Refused, match=r"judged against the base model, but champion is version 2 now"):
        promote(first)
    assert rollback(model, to=1, why="it was better").moved
    mlflow.delete_model_version(model, "1")  # and its aliases with it
    assert registry.champion(world.recipe) is None
    assert rollback(model, to=2).moved
    assert registry.champion(world.recipe).version == 2  # type: ignore[union-attr]
    with pytest.raises(BadInput, match="is gone"):
        promote(first)


def test_reasons_of_any_length_are_recorded_whole_enough_to_read(world: Any, enter: Enter) -> None:
    version = enter(world)
    said = json.dumps(['a "quoted" reason\n' * 900])
    registry.client().set_model_version_tag(version.model, "1", "nightowl.reasons", said)
    registry.client().set_model_version_tag(version.model, "1", "nightowl.verdict", "keep")
    with pytest.raises(Refused, match="the gate said keep"):
        promote(version)
    assert promote(version, who="ada", override="because " * 3000).moved
    refused, moved = registry.moves(registry.client(), version.model)
    assert refused.outcome.startswith("refused: the gate said keep")
    assert moved.why.startswith("override: because because")


def test_two_recipes_may_share_a_model(world: Any, enter: Enter, make: Callable[..., Any]) -> None:
    shared = {"registry": world.recipe.registry.model_copy(update={"model": "shared"})}
    mine, theirs = world, make(seed=1, champion=world.adapter.address)
    mine.recipe = mine.recipe.model_copy(update={**shared, "name": "mine"})
    theirs.recipe = theirs.recipe.model_copy(update={**shared, "name": "theirs"})
    first, second = enter(mine), enter(theirs)
    assert (first.model, second.version) == ("shared", 2)
    promote(first)
    assert promote(second).moved
    assert registry.champion(mine.recipe) == registry.champion(theirs.recipe)
    assert [night.recipe for night in registry.nights("theirs")] == ["theirs"]


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
    version = world.register(night)
    night.finish("kept", "test")
    run = registry.client().get_run(version.run_id)
    assert run.data.tags["nightowl.stage"] == "register"
    assert run.data.tags["mlflow.parentRunId"] == night.id
