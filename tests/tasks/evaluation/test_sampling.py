from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks.conversations import Renderer
from tasks.errors import BadInput
from tasks.evaluation.generation import Network, drawn
from tasks.evaluation.models_process import _bound
from tasks.evaluation.sampling import Sampling, draws, recommended, sampling_of
from tasks.recipe import Suite

QWEN3 = {"do_sample": True, "temperature": 0.6, "top_p": 0.95, "top_k": 20}


def model(folder: Path, kind: str, generation: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps({"model_type": kind}))
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def suite(**more: Any) -> Suite:
    return Suite(name="s", measure="final_answer", kind="reasoning", role="target", **{"decoding": "sampled"} | more)


def test_what_the_card_recommends(tmp_path: Path) -> None:
    hybrid = model(tmp_path, "qwen3", QWEN3)
    assert recommended(hybrid, "thinking") == {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
    assert recommended(hybrid, "direct") == {"temperature": 0.7, "top_p": 0.8, "top_k": 20}
    # One mode only, and its file says what is right for it; another family; nothing at all.
    one = model(tmp_path, "qwen3", {"temperature": 0.7, "top_p": 0.8, "top_k": 20})
    assert recommended(one, "thinking")["temperature"] == 0.7
    assert recommended(model(tmp_path, "llama", {"temperature": 0.8}), "direct") == {"temperature": 0.8}
    silent = model(tmp_path, "llama", {"eos_token_id": 2})
    with pytest.raises(BadInput, match=r"evaluation\.suites\.s\.temperature.*recommends none"):
        sampling_of(suite(), silent)
    assert sampling_of(suite(temperature=0.5, top_k=3), silent) == Sampling(temperature=0.5, top_k=3)
    hybrid = model(tmp_path, "qwen3", QWEN3)
    assert sampling_of(suite(top_p=0.5), hybrid) == Sampling(temperature=0.7, top_p=0.5, top_k=20)
    assert sampling_of(suite(decoding="greedy"), silent) is None


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"decoding": "greedy", "samples": 4}, "samples"),
        ({"decoding": "greedy", "temperature": 0.5}, "temperature"),
        ({"decoding": "greedy", "top_k": 5}, "top_k"),
        ({"measure": "held_out_loss", "kind": "chat"}, "nothing is decoded"),
    ],
)
def test_settings_that_do_nothing_are_refused(bad: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Suite.model_validate({"name": "s", "measure": "final_answer", "kind": "reasoning", "role": "target",
                              "decoding": "sampled", **bad})  # fmt: skip


def shares(sampling: Sampling, logits: list[float], count: int = 20_000) -> np.ndarray:
    import torch

    luck = (np.arange(count) + 0.5) / count
    tokens = drawn(torch.tensor(logits).expand(count, -1), sampling, luck).numpy()
    return np.bincount(tokens, minlength=len(logits)) / count


def test_tokens_come_as_often_as_they_are_likely() -> None:
    logits = [0.0, 2.0, 1.0, -1.0]
    for temperature in (0.5, 1.0, 2.0):
        expected = np.exp(np.array(logits) / temperature)
        assert shares(Sampling(temperature=temperature), logits) == pytest.approx(expected / expected.sum(), abs=1e-3)
    two = np.exp([2.0, 1.0]) / np.exp([2.0, 1.0]).sum()
    assert shares(Sampling(temperature=1, top_k=2), logits)[[1, 2]] == pytest.approx(two, abs=1e-3)
    # 0.64, 0.24, 0.09, 0.03: two tokens hold 0.8, and the first alone 0.6 and next to nothing.
    assert shares(Sampling(temperature=1, top_p=0.8), logits)[[1, 2]] == pytest.approx(two, abs=1e-3)
    for share in (0.6, 1e-9):
        assert shares(Sampling(temperature=1, top_p=share), logits)[1] == 1
    assert shares(Sampling(temperature=1, top_k=100), logits).min() > 0


def test_draws_are_an_item_s_own() -> None:
    one = draws(0, "a" * 32, 0, 10)
    assert (one == draws(0, "a" * 32, 0, 20)[:10]).all(), "a longer answer begins alike"
    others = [draws(1, "a" * 32, 0, 10), draws(0, "b" * 32, 0, 10), draws(0, "a" * 32, 1, 10)]
    assert all((one != other).all() for other in others)


def test_calls_are_bounded_by_twice_the_longest_right_ones(
    rows: Callable[[int], pl.DataFrame], turn: Callable[..., dict[str, Any]], tiny_renderer: Renderer
) -> None:
    """So that a model that never stops costs no more than twice the steps of one that stops."""
    items = rows(4).filter(pl.col("kind") == "tool")

    def bound(items: pl.DataFrame, **more: Any) -> int:
        calls = Suite.model_validate(
            {"name": "tool_call", "kind": "tool", "role": "target", "max_new_tokens": 512} | more
        )
        expected = tiny_renderer.prompts(items, calls.mode)["expected"].to_list()
        return _bound(calls, expected, items, tiny_renderer)

    longest = len('[{"name": "add", "arguments": {"a": 0, "b": 1}}]')  # a token is a byte here
    assert bound(items) == 2 * longest
    assert bound(items, max_new_tokens=20) == 20
    assert bound(items, mode="thinking") == 512
    # Where no call fits, one may come late.
    none = pl.DataFrame(
        {"messages": [[turn("user", "Hello."), turn("assistant", "Hi.")]]},
        schema_overrides={"messages": items.schema["messages"]},
    )
    assert bound(pl.concat([items, items.head(1).with_columns(none["messages"])])) == 512


def test_a_drawn_answer_does_not_depend_on_its_batch(tiny_base: Path, tiny_renderer: Renderer) -> None:
    network = Network(tiny_base, four_bit=False)
    network.model.float()
    prompts = tiny_renderer.encoder.encode([f"Say {'so ' * n}{n}." for n in range(7)])
    luck = [draws(0, f"{n:032x}", 0, 24).tolist() for n in range(7)]
    options: Any = {"max_new_tokens": 24, "stop_ids": tiny_renderer.stop_ids, "pad_id": tiny_renderer.pad_id}
    sampling = Sampling(temperature=1.0, top_p=0.9, top_k=50)
    one, many = (network.answers(prompts, batch_size=size, sampling=sampling, draws=luck, **options) for size in (1, 7))
    assert one == many
    assert one != network.answers(prompts, batch_size=7, **options)
    again = network.answers(prompts[::-1], batch_size=3, sampling=sampling, draws=luck[::-1], **options)
    assert again[::-1] == one
