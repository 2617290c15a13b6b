"""Gated sources made in memory, for whatever takes them in."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.conversations import CONVERSATION, Conversations, write_conversations
from tasks.store import Store

Row = dict[str, Any]


def conversation(
    prompt: str, answer: str, kind: str = "chat", tokens: int | None = None, thinking: str | None = None
) -> Row:
    """A conversation of one question and one answer; `tokens`: supervised tokens, by default words of the answer."""
    messages = [
        {"role": "user", "content": prompt, "thinking": None, "tool_calls": None, "tool_call_id": None},
        {"role": "assistant", "content": answer, "thinking": thinking, "tool_calls": None, "tool_call_id": None},
    ]
    content = json.dumps([kind, messages], sort_keys=True)
    return {
        "row_id": hashlib.sha256(content.encode()).hexdigest()[:32],
        "kind": kind,
        "messages": messages,
        "tools": None,
        "prompt_tokens": len(prompt.split()) + 4,
        "answer_tokens": tokens if tokens is not None else len(answer.split()) + 1,
    }


def varied(source: str, rows: int, kind: str = "chat", words: tuple[int, int] = (3, 60)) -> list[Row]:
    """Distinct conversations with answers of various lengths; the first n of them are the same for any `rows` >= n."""
    made = []
    for number in range(rows):
        draw = random.Random(f"{source} {number}")
        answer = " ".join(draw.choice(WORDS) for _ in range(draw.randint(*words)))
        made.append(conversation(f"{source} question {number}: {draw.choice(WORDS)}?", f"{number} {answer}", kind))
    return made


WORDS = [a + b for a in ("ka", "lo", "mi", "ne", "ru", "sa", "to") for b in ("ban", "der", "fin", "gol", "hem", "jas")]


@pytest.fixture(scope="session", name="conversation")
def conversation_of() -> Callable[..., Row]:
    return conversation


@pytest.fixture(scope="session", name="varied")
def varied_rows() -> Callable[..., list[Row]]:
    return varied


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def gated(store: Store) -> Callable[..., Conversations]:
    """Puts rows into the store as a source that has passed the data gate."""

    def put(source: str, rows: Sequence[Row], *, passed: bool = True, **inputs: Any) -> Conversations:
        kind = rows[0]["kind"] if rows else "chat"
        digest = hashlib.sha256("".join(row["row_id"] for row in rows).encode()).hexdigest()
        columns = ("row_id", "kind", "messages", "tools")
        given = [
            {"source": source, "revision": "r1", "source_row": n, **{name: row[name] for name in columns}}
            for n, row in enumerate(rows)
        ]
        frame = pl.DataFrame(given, schema=CONVERSATION)
        lengths = [(row["prompt_tokens"], row["answer_tokens"]) for row in rows]
        frame = frame.with_columns(
            input_ids=pl.Series([list(range(p + a)) for p, a in lengths], dtype=pl.List(pl.Int32)),
            loss_mask=pl.Series([[False] * p + [True] * a for p, a in lengths], dtype=pl.List(pl.Boolean)),
        )

        def build(work: Path) -> dict[str, Any]:
            write_conversations(work, [frame])
            return {
                "source": source,
                "snapshot": "0" * 64,
                "row_kind": kind,
                "format": "native",
                "passed": passed,
                "findings": (),
                "tokens": sum(p + a for p, a in lengths),
                "supervised_tokens": sum(a for _, a in lengths),
                "rows_in": len(rows),
                "rows_out": len(rows),
                "set_aside": {},
            }

        manifest, _ = store.make(
            Conversations, {"source": source, "rows": digest, "tokenizer": "t" * 64, **inputs}, build
        )
        return manifest

    return put


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Writes a random two-layer Llama. Its pad token is its end-of-turn token."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    def write(folder: Path) -> None:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
        inner = Tokenizer(models.BPE({t: i for i, t in enumerate(specials + alphabet)}, []))
        inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        inner.decoder = decoders.ByteLevel()
        inner.add_special_tokens(specials)
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>", bos_token="<|im_start|>"
        )
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            tie_word_embeddings=True,
            initializer_range=0.3,  # large enough for the head to tell tokens apart
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
        model = LlamaForCausalLM(config)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    return write
