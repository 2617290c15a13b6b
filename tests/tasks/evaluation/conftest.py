"""A tiny random model, items of every kind, and scores made up by the test."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from judge_stand_in import Judged, serving
from llama import byte_tokenizer, write_llama

from tasks.conversations import CONVERSATION, Renderer, row_ids
from tasks.recipe import PRESETS

TEMPLATE = (PRESETS / "chatml-hybrid.jinja").read_text(encoding="utf-8")
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": "add",
                "description": "Sum.",
                "parameters": {
                    "type": "object",
                    "properties": {
                        "a": {"type": "number"},
                        "b": {"type": "number"},
                        "round": {"type": "integer", "default": 0},
                    },
                    "required": ["a", "b"],
                },
            },
        }
    ],
    sort_keys=True,
    separators=(",", ":"),
)


def turn(role: str, content: str, thinking: str | None = None, calls: Sequence[tuple[str, Any]] = ()) -> dict[str, Any]:
    made = [
        {"name": name, "arguments": json.dumps(arguments, sort_keys=True, separators=(",", ":"))}
        for name, arguments in calls
    ]
    return {"role": role, "content": content, "thinking": thinking, "tool_calls": made or None, "tool_call_id": None}


def rows(each: int) -> pl.DataFrame:
    """`each` conversations of every kind."""
    made: list[dict[str, Any]] = []
    for n in range(each):
        tool = [turn("user", f"Add {n} and {n + 1}."), turn("assistant", "", calls=[("add", {"a": n, "b": n + 1})])]
        reasoning = [turn("user", f"What is {n} + 2?"), turn("assistant", f"The answer is {n + 2}.", f"{n}+2={n + 2}")]
        chat = [turn("user", f"Name number {n}."), turn("assistant", f"It is called {n}.")]
        for kind, messages, tools in (("tool", tool, TOOLS), ("reasoning", reasoning, None), ("chat", chat, None)):
            made.append(
                {"row_id": "", "source": "test", "revision": "1", "source_row": n, "kind": kind}
                | {"messages": messages, "tools": tools}
            )
    return row_ids(pl.DataFrame(made, schema=CONVERSATION))


@pytest.fixture(scope="session", name="rows")
def rows_of() -> Callable[[int], pl.DataFrame]:
    return rows


@pytest.fixture(scope="session", name="turn")
def turn_of() -> Callable[..., dict[str, Any]]:
    return turn


@pytest.fixture(scope="session")
def tools() -> str:
    """One declared tool, add(a, b, round=0), as canonical JSON."""
    return TOOLS


@pytest.fixture(scope="session")
def template() -> str:
    return TEMPLATE


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of two layers with random weights and a tokenizer of bytes."""
    folder = tmp_path_factory.mktemp("tiny-base")
    make_base(folder, seed=0)
    return folder


def make_base(folder: Path, seed: int) -> None:
    import torch

    tokenizer = byte_tokenizer(pad_token="<|endoftext|>", clean_up_tokenization_spaces=False)
    # The range makes answers that differ from prompt to prompt.
    how = {"tie_word_embeddings": True, "initializer_range": 0.2, "dtype": torch.bfloat16}
    write_llama(folder, tokenizer, seed=seed, **how)


@pytest.fixture(scope="session", name="make_base")
def make_base_of() -> Callable[..., None]:
    return make_base


@pytest.fixture(scope="session")
def tiny_renderer(tiny_base: Path) -> Renderer:
    return Renderer.open(tiny_base, TEMPLATE)


def make_adapter(base: Path, folder: Path, seed: int) -> None:
    """A LoRA with random weights that change answers; tokenizer and template beside it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    config = LoraConfig(r=4, lora_alpha=4, target_modules="all-linear", init_lora_weights=False)
    get_peft_model(model, config).save_pretrained(folder)
    Renderer.open(base, TEMPLATE).save(folder)


@pytest.fixture(scope="session", name="make_adapter")
def make_adapter_of() -> Callable[[Path, Path, int], None]:
    return make_adapter


@pytest.fixture(scope="session")
def tiny_adapters(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """Two adapters of the tiny base, by name."""
    folders = {name: tmp_path_factory.mktemp(f"adapter-{name}") for name in ("one", "two")}
    for seed, folder in enumerate(folders.values()):
        make_adapter(tiny_base, folder, seed + 1)
    return folders


@pytest.fixture
def judge() -> Iterator[Judged]:
    """A stand-in for a judge, which likes the longer answer."""
    with serving() as made:
        yield made
