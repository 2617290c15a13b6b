"""The plan's needs: training's memory from the base's config, on this machine or on a stated GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.errors import BadInput
from tasks.fetch import fetch, fetch_base
from tasks.mix import mix
from tasks.plan import Need, plan, prepared
from tasks.recipe import parse
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.validate import validate

_QWEN3_8B = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
}


@pytest.fixture
def memory(nightowl_home: Path, byte_model: Path, tmp_path: Path) -> object:
    """The plan's need of memory for a base of Qwen3-8B's shape, with these training fields."""
    folder = tmp_path / "base"
    folder.mkdir()
    for file in byte_model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "config.json").write_text(json.dumps(_QWEN3_8B))
    store = Store.open()

    def need(device_memory: str | None, **training: object) -> Need:
        recipe = parse(
            {
                "name": "test",
                "base": {"uri": f"file://{folder}", "max_length": 2048},
                "sources": [{"name": "s", "uri": "sample://chat?size=10", "kind": "chat", "share": 1.0}],
                "training": {"batch_size": 16, **training},
                "evaluation": {"suites": [{"name": "chat_format", "kind": "chat", "role": "target"}]},
            }
        )
        assert isinstance(fetch_base(recipe.base, store), BaseSnapshot)
        return next(found for found in plan(recipe, store, device_memory).needs if found.name == "memory")

    return need


def test_a_stated_gpu_is_planned_for(memory) -> None:  # type: ignore[no-untyped-def]
    fits = memory("80GB")
    assert fits.fits
    assert "16 rows of up to 2048 tokens" in fits.detail
    assert "never measured on a GPU" in fits.detail
    cut = memory("12GB")
    assert cut.fits
    assert "passes a step" in cut.detail
    small = memory("12GB", method="lora")
    assert not small.fits
    assert "no row would fit, or method qlora" in small.detail
    with pytest.raises(BadInput, match="--device-memory"):
        memory("much")


def test_a_base_that_fits_no_gpu_whole_fits_several(memory) -> None:  # type: ignore[no-untyped-def]
    several = {"method": "lora", "backend": "transformers", "processes": 8}
    whole = memory("12GB", **several)
    assert not whole.fits
    assert "or training.sharding base" in whole.detail
    split = memory("12GB", sharding="base", **several)
    assert split.fits
    assert "gathered" in split.detail
    assert "sharding" not in memory("12GB", method="lora").detail


def test_what_is_free_here_is_what_counts_otherwise(memory, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    import tasks.plan

    monkeypatch.setattr(tasks.plan, "free_memory", lambda: 25 * 10**9)
    here = memory(None, micro_batch_size=1)
    assert not here.fits  # a CPU keeps all activations
    assert "base.max_length up to" in here.detail
    shared = memory(None, micro_batch_size=1, backend="transformers", processes=2)
    assert "11.6 GiB are free for each process" in shared.detail


def test_data_is_prepared_where_the_store_has_all_of_what_the_sources_are_now(
    nightowl_home: Path, byte_model: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    said = [{"prompt": f"What is {n} and {n}?", "completion": f"It is {2 * n}, as twice {n} is."} for n in range(60)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in said))
    recipe = parse(
        {
            "name": "test",
            "base": {"uri": f"file://{byte_model}", "max_length": 2048},
            "sources": [{"name": "s", "uri": f"file://{rows}", "kind": "chat", "share": 1.0}],
            "evaluation": {"suites": [{"name": "chat_format", "kind": "chat", "role": "target"}]},
        }
    )
    store = Store.open()
    (source,) = recipe.sources
    assert prepared(recipe, store) is None
    base, snapshot = fetch_base(recipe.base, store), fetch(source, store)
    assert prepared(recipe, store) is None
    gated, _ = validate(recipe, source, snapshot, base, store)
    assert prepared(recipe, store) is None
    mixture = mix(recipe, [gated], store)
    assert prepared(recipe, store) == mixture
    stream = source.model_copy(update={"uri": "postgresql://nobody@asks/for-it"})
    assert prepared(recipe.model_copy(update={"sources": (source, stream)}), store) is None
    rows.write_text(rows.read_text() + json.dumps({"prompt": "And 99?", "completion": "It is 198."}) + "\n")
    assert prepared(recipe, store) is None
