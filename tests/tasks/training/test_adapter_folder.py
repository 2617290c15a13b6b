"""The adapter's folder stands alone, and fits one base only."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.errors import BadInput, WorldFailed
from tasks.recipe import Training
from tasks.sources import BaseSnapshot
from tasks.training import TrainingSpec, adapter_folder, require_base, weights_digest


def snapshot(**files: str) -> BaseSnapshot:
    return BaseSnapshot(
        address="a" * 64,
        inputs={},
        files={name.replace("__", "."): sha for name, sha in files.items()},
        made_at="",
        uri="hf://org/model",
        revision="c0ffee",
        requested="main",
        size=1,
        licence=None,
    )


@pytest.fixture
def spec(tmp_path: Path) -> TrainingSpec:
    base = tmp_path / "base"
    base.mkdir()
    (base / "tokenizer.json").write_text("{}")
    (base / "tokenizer_config.json").write_text(json.dumps({"chat_template": "old", "eos_token": "x"}))
    (base / "generation_config.json").write_text(json.dumps({"eos_token_id": 7, "temperature": 0.6}))
    (base / "model.safetensors").write_bytes(b"weights")
    return TrainingSpec(
        work=tmp_path,
        base_folder=base,
        base_uri="hf://org/model",
        base_revision="c0ffee",
        base_weights=weights_digest(snapshot(model__safetensors="1")),
        train=tmp_path,
        validation=None,
        max_length=64,
        chat_template="new template",
        training=Training(),
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    saved = tmp_path / "adapter"
    saved.mkdir()
    (saved / "adapter_model.safetensors").write_bytes(b"lora")
    (saved / "README.md").write_text("model card")
    config = {"base_model_name_or_path": str(tmp_path / "base"), "target_modules": ["v_proj", "q_proj"]}
    (saved / "adapter_config.json").write_text(json.dumps(config))
    return saved


def test_it_names_the_base_and_no_path_of_this_machine(folder: Path, spec: TrainingSpec) -> None:
    adapter_folder.complete(folder, spec, [2])
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "hf://org/model@c0ffee"
    assert config["target_modules"] == ["q_proj", "v_proj"]
    assert not any(str(spec.work) in path.read_text(errors="ignore") for path in folder.iterdir())
    assert not (folder / "README.md").exists()
    assert not (folder / "model.safetensors").exists()


def test_generation_stops_on_the_trained_end_and_on_the_bases_own(folder: Path, spec: TrainingSpec) -> None:
    adapter_folder.complete(folder, spec, [2, 7])
    assert json.loads((folder / "generation_config.json").read_text()) == {"eos_token_id": [2, 7], "temperature": 0.6}


def test_the_template_is_the_one_trained_with(folder: Path, spec: TrainingSpec) -> None:
    adapter_folder.complete(folder, spec, [2])
    assert (folder / "chat_template.jinja").read_text() == "new template"
    assert json.loads((folder / "tokenizer_config.json").read_text()) == {"eos_token": "x"}


def test_a_pickle_is_not_let_out(folder: Path, spec: TrainingSpec) -> None:
    (folder / "training_args.bin").write_bytes(b"\x80")
    with pytest.raises(WorldFailed, match=r"training_args\.bin"):
        adapter_folder.complete(folder, spec, [2])


def test_it_loads_onto_its_own_base_only(folder: Path, spec: TrainingSpec) -> None:
    adapter_folder.complete(folder, spec, [2])
    require_base(folder, snapshot(model__safetensors="1", tokenizer__json="changed"))
    with pytest.raises(BadInput, match="other weights than the adapter was trained on"):
        require_base(folder, snapshot(model__safetensors="2"))
    (folder / "nightowl.json").unlink()
    with pytest.raises(BadInput, match="does not say which base"):
        require_base(folder, snapshot(model__safetensors="1"))


def test_a_base_without_safetensors_is_refused() -> None:
    with pytest.raises(BadInput, match="no safetensors weights"):
        weights_digest(snapshot(pytorch_model__bin="1"))
