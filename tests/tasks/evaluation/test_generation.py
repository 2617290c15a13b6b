from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tasks.conversations import Renderer
from tasks.evaluation.generation import Network, in_circles

PROMPTS = ["Hello", "What is 2 + 2?", "Name a colour, one word please, and say why you like it.", "x", "Add 1 and 2."]


@pytest.fixture(scope="module")
def network(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> Network:
    made = Network(tiny_base, four_bit=True)
    for name, folder in tiny_adapters.items():
        made.add(name, folder)
    return made


def logits(model: Any, ids: list[int]) -> Any:
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([ids])).logits.float()


def distance(left: Any, right: Any) -> float:
    """Largest difference of two models' logits, as a share of the largest logit."""
    return float((left - right).abs().max() / right.abs().max())


def four_bit(base: Path, dtype: Any) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return AutoModelForCausalLM.from_pretrained(base, dtype=dtype, quantization_config=config)


def test_adapters_are_switched_and_the_base_stays_what_it_was(
    network: Network, tiny_base: Path, tiny_adapters: Mapping[str, Path], tiny_renderer: Renderer
) -> None:
    import torch
    from peft import PeftModel

    (ids,) = tiny_renderer.encoder.encode([PROMPTS[2]])
    seen = {}
    for name in ("one", None, "two", "one", None):
        network.use(name)
        found = logits(network.model, ids)
        assert torch.equal(found, seen.setdefault(name, found))
    assert not torch.equal(seen["one"], seen["two"])
    # As the 4-bit kernels compute it, for the base and with an adapter.
    plain = four_bit(tiny_base, network.model.dtype)
    assert distance(seen[None], logits(plain, ids)) < 0.05
    assert type(plain.model.layers[0].self_attn.q_proj).__name__ == "Linear4bit"
    adapted = PeftModel.from_pretrained(plain, tiny_adapters["one"], autocast_adapter_dtype=False)
    assert distance(seen["one"], logits(adapted, ids)) < 0.05
    assert distance(seen["one"], seen["two"]) > 0.1


def test_batches_answer_as_single_prompts_do(network: Network, tiny_renderer: Renderer) -> None:
    """Against `generate`, one prompt at a time, in 32 bit so that rounding cannot tip a choice."""
    import torch

    network.use("two")
    network.model.float()
    prompts = [ids[: 40 + 5 * n] for n, ids in enumerate(tiny_renderer.encoder.encode(PROMPTS))]
    stops, pad = list(tiny_renderer.stop_ids), tiny_renderer.pad_id
    expected = []
    for ids in prompts:
        out = network.model.generate(
            torch.tensor([ids]), max_new_tokens=24, do_sample=False, eos_token_id=stops, pad_token_id=pad
        )
        expected.append(out[0, len(ids) :].tolist())
    # A token that one of the answers has in its middle is made a stop token, so that rows end at different times.
    stops.append(expected[1][5])
    done: list[int] = []
    options: dict[str, Any] = {"max_new_tokens": 24, "stop_ids": stops, "pad_id": pad}
    written = network.answers(prompts, batch_size=1, on_done=done.append, **options)  # of so short ones, four
    for answer, ids in zip(written, expected, strict=True):
        ends = next((at for at, token in enumerate(ids) if token in stops), None)
        assert answer.ids == ids[:ends]
        assert answer.stopped == (ends is not None)
    assert {answer.stopped for answer in written} == {True, False} or all(answer.stopped for answer in written)
    assert len(written[1].ids) <= 5
    assert done == [4, 5]
    assert network.answers([], batch_size=4, **options) == []


def test_losses_are_those_of_single_rows(network: Network, tiny_renderer: Renderer) -> None:
    import torch

    network.use("one")
    network.model.float()
    rows = []
    for ids in tiny_renderer.encoder.encode(PROMPTS):
        rows.append((ids, [at >= len(ids) // 2 for at in range(len(ids))]))
    rows = [row for row in rows if any(row[1][1:])]
    found = network.losses(rows, batch_size=3, pad_id=tiny_renderer.pad_id)
    for loss, (ids, mask) in zip(found, rows, strict=True):
        labels = torch.tensor([[i if m else -100 for i, m in zip(ids, mask, strict=True)]])
        with torch.inference_mode():
            expected = float(network.model(input_ids=torch.tensor([ids]), labels=labels).loss)
        assert loss == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(
    ("ids", "circles"),
    [([7] * 64, True), ([1, 2, 3] * 22, True), ([7] * 63, False), (list(range(64)), False), ([7] * 63 + [8], False)],
)
def test_in_circles(ids: list[int], circles: bool) -> None:
    assert in_circles(ids) is circles
    assert in_circles([9, 9, 1, *ids]) is circles or len(ids) == 63
