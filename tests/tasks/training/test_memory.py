"""The estimate of training's memory: the true parameters from a config alone, and what was measured within 15 %."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest

from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe, Training
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.train import training_spec
from tasks.training import memory, process

_QWEN3 = {
    # (hidden, intermediate, layers, heads, tied): parameters as the published weights have them
    "0.6B": ((1024, 3072, 28, 16, True), 596_049_920),
    "4B": ((2560, 9728, 36, 32, True), 4_022_468_096),
    "8B": ((4096, 12288, 36, 32, False), 8_190_735_360),
}
_SMOLLM2 = {
    "model_type": "llama",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "tie_word_embeddings": True,
}


def qwen3(folder: Path, size: str) -> Path:
    hidden, intermediate, layers, heads, tied = _QWEN3[size][0]
    config = {
        "model_type": "qwen3",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": 8,
        "head_dim": 128,
        "vocab_size": 151936,
        "tie_word_embeddings": tied,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("size", _QWEN3)
def test_parameters_are_the_published_ones_from_the_config_alone(tmp_path: Path, size: str) -> None:
    found = memory.shape_of(qwen3(tmp_path, size), Training())
    assert found.parameters == _QWEN3[size][1]
    assert len(found.adapted) == 7 * found.layers
    assert found.normed


@pytest.mark.parametrize(
    ("backend", "method", "batch", "micro", "length", "measured"),
    # Peaks of training SmolLM2-135M on two cores, in GB, as bench_training.py measures them anew.
    [
        ("unsloth", "qlora", 2, 2, 64, 1.88),
        ("unsloth", "qlora", 4, 4, 128, 2.41),
        ("unsloth", "qlora", 8, 8, 128, 2.79),
        ("unsloth", "qlora", 4, 4, 512, 4.65),
        ("unsloth", "lora", 4, 4, 128, 2.27),
        ("transformers", "qlora", 4, 4, 128, 2.63),
        ("transformers", "qlora", 4, 4, 512, 5.70),
        ("transformers", "full", 4, 4, 128, 4.06),
        ("transformers", "full", 2, 2, 512, 4.88),
        ("transformers", "full", 4, 2, 512, 5.51),
    ],
)
def test_the_estimate_is_within_15_percent_of_what_was_measured(
    tmp_path: Path, backend: str, method: str, batch: int, micro: int, length: int, measured: float
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_SMOLLM2))
    training = Training(backend=backend, method=method, batch_size=batch)
    found = memory.estimate(memory.shape_of(tmp_path, training), training, length=length, micro=micro, gpu=False)
    assert found.total / 1e9 == pytest.approx(measured, rel=0.15)


def test_a_model_trained_takes_about_what_was_said(
    recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot, store: Store, tmp_path: Path
) -> None:
    """Coarse: the libraries are most of it."""
    night = recipe(backend="transformers")
    shape = memory.shape_of(store.folder(base), night.training)
    found = memory.estimate(shape, night.training, length=60, micro=4, gpu=False)
    made = process.run(training_spec(night, mixture, base, store, tmp_path), "tasks.training.transformers_backend")
    assert 0.5 < found.total / made.peak_memory < 2


def test_what_does_not_fit_is_cut_by_rows_then_by_length(tmp_path: Path) -> None:
    training = Training(batch_size=8)
    shape = memory.shape_of(qwen3(tmp_path, "8B"), training)

    def total(micro: int, length: int = 2048, **more: object) -> int:
        given = training.model_copy(update=more)
        return memory.estimate(shape, given, length=length, micro=micro, gpu=True).total

    assert memory.fitting(shape, training, length=2048, memory=total(8), gpu=True) == 8
    assert memory.fitting(shape, training, length=2048, memory=total(8) - 1, gpu=True) == 4
    assert memory.fitting(shape, training, length=2048, memory=total(1) - 1, gpu=True) == 0
    assert memory.longest(shape, training, memory=total(1), gpu=True) in (2047, 2048)
    assert memory.longest(shape, training, memory=0, gpu=True) == 0
    assert total(1, method="lora") > 2 * shape.parameters > total(1) > shape.quantised / 2
    assert total(1, optimizer="adamw_8bit") < total(1)


@pytest.mark.parametrize("method", ["qlora", "lora"])
def test_a_split_base_takes_its_part_and_what_is_gathered(tmp_path: Path, method: Literal["qlora", "lora"]) -> None:
    whole = Training(backend="transformers", method=method, batch_size=16, processes=8, nodes=2, rendezvous="a:1")
    split = whole.model_copy(update={"sharding": "base"})
    shape = memory.shape_of(qwen3(tmp_path, "8B"), whole)

    def parts(training: Training, gpu: bool = True) -> memory.Memory:
        return memory.estimate(shape, training, length=2048, micro=1, gpu=gpu)

    before, after = parts(whole), parts(split)
    assert before.gathered == 0
    assert after.weights == before.weights // 16
    ends = 2 * (2 * 151936 * 4096)  # embeddings and head, in 16 bit
    layer = (before.weights - ends) / 36
    assert after.gathered == pytest.approx(ends + 3 * layer, rel=0.01)
    assert after.model_copy(update={"weights": before.weights, "gathered": 0}) == before
    assert parts(split, gpu=False) == parts(whole, gpu=False)
