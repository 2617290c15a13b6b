"""Making a version again: the same when nothing moved, and the name of what moved otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.fetch import fetch, fetch_base
from tasks.mix import mix
from tasks.recipe import Recipe, parse
from tasks.registry import Record, make_record
from tasks.reproduce import Reproduction, distance, reproduce
from tasks.store import Store
from tasks.train import train
from tasks.training import Adapter
from tasks.validate import validate

TEMPLATE = Path(__file__).resolve().parents[2] / "deployments" / "recipes" / "chatml-hybrid.jinja"


def write_rows(path: Path, rows: int) -> None:
    lines = [
        {
            "messages": [
                {"role": "user", "content": f"{n} plus {n}?"},
                {"role": "assistant", "content": f"It is {2 * n}."},
            ]
        }
        for n in range(rows)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture
def recipe(tiny_base: Callable[[Path], None], tmp_path: Path) -> Recipe:
    """A recipe on a file of 60 rows and a tiny base, both on this disk."""
    (tmp_path / "base").mkdir()
    tiny_base(tmp_path / "base")
    write_rows(tmp_path / "rows.jsonl", 60)
    return parse(
        {
            "name": "again",
            "base": {
                "uri": f"file://{tmp_path}/base",
                "chat_template": TEMPLATE.read_text(encoding="utf-8"),
                "max_length": 200,
            },
            "sources": [{"name": "sums", "uri": f"file://{tmp_path}/rows.jsonl", "kind": "chat", "share": 1.0}],
            "training": {"rank": 4, "learning_rate": 0.001, "warmup_steps": 1, "max_steps": 3},
            "evaluation": {"suites": [{"name": "chat_format", "kind": "chat", "role": "target"}]},
        }
    )


def record_of(recipe: Recipe, store: Store, trained: bool = False) -> Record:
    """The record of a night; the adapter's manifest is all that is looked at where nothing is trained."""
    base = fetch_base(recipe.base, store)
    snapshots = {source.name: fetch(source, store) for source in recipe.sources}
    gated = [validate(recipe, source, snapshots[source.name], base, store)[0] for source in recipe.sources]
    mixture = mix(recipe, gated, store)
    if trained:
        adapter = train(recipe, mixture, base, store)
    else:

        def build(work: Path) -> dict[str, Any]:
            (work / "adapter").mkdir()
            (work / "adapter" / "adapter_model.safetensors").write_bytes(b"")
            figures = {"steps": 3, "loss": 1.0, "validation_loss": None, "tokens": 1, "supervised_tokens": 1}
            figures |= {"seconds": 1.0, "peak_memory": 1, "device": "CPU", "resumed": 0, "environment": {}}
            return {"base": base.address, "mixture": mixture.address, "base_weights": "w", **figures}

        adapter, _ = store.make(Adapter, {"code": "c"}, build)
    return make_record(recipe, base, snapshots, gated, mixture, adapter)


def states(made: Reproduction) -> dict[str, str]:
    return {part.name: part.state for part in made.outcome}


def told(made: Reproduction, name: str) -> str:
    return next(part.told for part in (*made.outcome, *made.circumstances) if part.name == name)


def test_it_is_the_same_until_a_source_is_edited_or_other_code_runs(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store.open()
    record = record_of(recipe, store)
    pages = sorted((tmp_path / "nightowl-home" / "expectations").rglob("*.html"))
    made = reproduce(record, store)
    assert made.same
    assert states(made) == dict.fromkeys(
        ("base", "source sums", "gate sums", "split train", "split validation", "split test"), "same"
    )
    assert "fetched again" in told(made, "source sums")
    assert "from the store" in told(made, "base")
    assert {part.state for part in made.circumstances if part.name != "code of training"} == {"same"}
    # Nothing is left behind, and the pages of the nights do not know of it.
    assert not list((tmp_path / "nightowl-home").glob("reproduce-*"))
    assert sorted((tmp_path / "nightowl-home" / "expectations").rglob("*.html")) == pages

    write_rows(tmp_path / "rows.jsonl", 61)
    made = reproduce(record, store)
    assert not made.same
    assert states(made)["source sums"] == "differs"
    assert "data/rows.jsonl has sha256" in told(made, "source sums")
    assert "copy in the store" in told(made, "source sums")
    assert states(made)["split train"] == "same"

    # Without the store's copy the edited file is all there is, and every split is another.
    elsewhere = Store(tmp_path / "empty")
    made = reproduce(record, elsewhere)
    assert "made of what is there" in told(made, "source sums")
    assert told(made, "gate sums").startswith("rows_in 61, then 60")
    assert states(made)["split train"] == "differs"

    write_rows(tmp_path / "rows.jsonl", 60)
    monkeypatch.setattr("tasks.reproduce.code_version", lambda: ("0.9.0", record.lock))
    other = record.model_copy(update={"libraries": {**record.libraries, "polars": "0.1"}})
    made = reproduce(other, store)
    assert made.same
    assert told(made, "code") == f"{record.code} then, 0.9.0 now"
    assert told(made, "library polars").startswith("0.1 then, ")


def test_a_source_that_is_gone_is_named(recipe: Recipe, tmp_path: Path) -> None:
    store = Store.open()
    record = record_of(recipe, store)
    (tmp_path / "rows.jsonl").unlink()
    made = reproduce(record, store)
    assert states(made)["source sums"] == "differs"
    assert "does not exist" in told(made, "source sums")
    assert states(made)["split train"] == "same"
    made = reproduce(record, Store(tmp_path / "empty"))
    assert "no whole copy" in told(made, "source sums")
    assert states(made)["split train"] == "not compared"


def test_one_thread_trains_the_same_weights_bit_for_bit(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    store = Store.open()
    record = record_of(recipe, store, trained=True)
    monkeypatch.delenv("OMP_NUM_THREADS")
    made = reproduce(record, store, with_training=True)
    assert told(made, "adapter") == "the same weights bit for bit"
    assert made.same


def test_the_distance_is_relative_to_what_training_did(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import save_file

    def put(name: str, **weights: list[float]) -> Path:
        (tmp_path / name).mkdir()
        tensors = {key: torch.tensor(value) for key, value in weights.items()}
        save_file(tensors, tmp_path / name / "model.safetensors")
        return tmp_path / name

    one, two, three = put("one", a=[3.0, 0.0], b=[4.0]), put("two", a=[3.0, 0.5], b=[4.0]), put("three", a=[3.0, 0.5])
    assert distance(one, one) == 0
    assert distance(one, two) == pytest.approx(0.1)
    assert distance(one, three) == float("inf")
    # A whole model has hardly moved from its base, and so a small difference is a large one.
    base = put("base", a=[3.0, -0.3], b=[4.4])
    assert distance(one, two, base) == pytest.approx(1.0)
    assert distance(base, base, base) == 0
