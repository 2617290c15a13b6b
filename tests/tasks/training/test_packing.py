"""Packed rows see themselves alone, train as padded ones do, and are refused where attention would mix them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import BadInput
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.train import train
from tasks.training import packing

pytestmark = pytest.mark.usefixtures("one_thread")

ROWS = [[1, 40, 2, 1, 90, 91, 92, 2], [1, 50, 2, 1, *range(100, 140), 2], [1, 60, 61, 2], [1, 70, 2, 1, 71, 2]]


def load(store: Store, base: BaseSnapshot, attention: str) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    folder = store.folder(base)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention).eval()
    model.config.use_cache = False
    return model


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_logits_of_a_packed_row_are_those_of_the_row_alone(
    attention: str, store: Store, base: BaseSnapshot
) -> None:
    import torch

    model = load(store, base, attention)
    with torch.no_grad():
        for together, row in zip(packing.logits(model, ROWS), ROWS, strict=True):
            alone = model(input_ids=torch.tensor([row])).logits[0]
            assert torch.allclose(together, alone, atol=1e-5)
    packing.require_apart(model, ROWS)


def test_a_base_that_mixes_packed_rows_is_refused(store: Store, base: BaseSnapshot) -> None:
    """As it does with a cache, or with a kernel that does not look at positions."""
    model = load(store, base, "sdpa")
    model.config.use_cache = True
    with pytest.raises(BadInput, match=r"training\.packing.*packed rows see each other"):
        packing.require_apart(model, ROWS)


def test_simulated_a_row_whose_positions_go_on_from_its_neighbours_is_refused(
    store: Store, base: BaseSnapshot, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load(store, base, "sdpa")
    rotary = model.model.rotary_emb.forward
    monkeypatch.setattr(model.model.rotary_emb, "forward", lambda x, position_ids: rotary(x, position_ids % 3 * 40))
    packing.require_apart(model, ROWS)  # the same wrong positions alone and together
    monkeypatch.setattr(
        model.model.rotary_emb,
        "forward",
        lambda x, position_ids: rotary(x, (position_ids == 0).cumsum(-1) * position_ids),
    )
    with pytest.raises(BadInput, match="away from how each does alone"):
        packing.require_apart(model, ROWS)


def test_packed_batches_train_as_padded_ones_do(train_here: Callable[..., Any], tmp_path: Path) -> None:
    how = {"method": "lora", "learning_rate": 0.003}
    padded = train_here(**how)
    packed = train_here(packing=True, **how)
    assert packed.losses == pytest.approx(padded.losses, rel=0.01)
    assert packed.result.validation_loss == pytest.approx(padded.result.validation_loss, rel=0.01)
    assert packed.result.environment["useful_tokens"] == [1.0]
    assert padded.result.environment["useful_tokens"][0] < 1


def test_with_unsloth_it_is_refused(
    recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot, store: Store
) -> None:
    with pytest.raises(BadInput, match=r"training\.packing: True .* transformers"):
        train(recipe(packing=True), mixture, base, store)
