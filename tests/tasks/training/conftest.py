"""A model small enough to train in a second, with a tokenizer of its own, and rows rendered for it."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkdtemp

import polars as pl
import pytest

from tasks.mixture import Split, TokenisedMixture
from tasks.recipe import Recipe, parse
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.train import training_spec
from tasks.training import TrainingResult

START, END = 1, 2


@pytest.fixture
def store(nightowl_home: Path) -> Store:
    return Store.open()


@pytest.fixture
def make_base(store: Store) -> Callable[[Callable[[Path], None], str], BaseSnapshot]:
    """Puts a base in the store; `write` gets the folder to fill."""

    def make(write: Callable[[Path], None], name: str) -> BaseSnapshot:
        def build(folder: Path) -> dict[str, object]:
            write(folder)
            size = sum(p.stat().st_size for p in folder.iterdir())
            return {"uri": f"file://{name}", "revision": "0", "requested": None, "size": size, "licence": None}

        return store.make(BaseSnapshot, {"name": name}, build)[0]

    return make


@pytest.fixture
def base(
    make_base: Callable[[Callable[[Path], None], str], BaseSnapshot], tiny_base: Callable[[Path], None]
) -> BaseSnapshot:
    return make_base(tiny_base, "tiny")


def conversation(question: str, answer: str) -> tuple[list[int], list[bool]]:
    """Ids and loss mask of one ChatML exchange in the tiny tokenizer: its bytes, three places up."""
    from tokenizers import pre_tokenizers

    place = {char: i + 3 for i, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}

    def encode(text: str) -> list[int]:
        return [place[c] for c in pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)[0][0]]

    prompt = [START, *encode(f"u{question}"), END, START, *encode("a")]
    reply = [*encode(answer), END]
    return prompt + reply + encode("n"), [False] * len(prompt) + [True] * len(reply) + [False]


def make_mixture(
    store: Store, train: list[tuple[list[int], list[bool]]], validation: list[tuple[list[int], list[bool]]] = ()
) -> TokenisedMixture:
    """A mixture in the store of these rows."""
    splits = {"train": list(train), "validation": list(validation), "test": []}

    def build(folder: Path) -> dict[str, object]:
        for name, rows in splits.items():
            frame = pl.DataFrame(
                {"input_ids": [r[0] for r in rows], "loss_mask": [r[1] for r in rows]},
                schema={"input_ids": pl.List(pl.Int32), "loss_mask": pl.List(pl.Boolean)},
            )
            frame.write_parquet(folder / f"{name}.parquet")
        total = sum(map(len, splits.values()))
        return {
            "rows_in": total,
            "rows_out": total,
            "set_aside": {},
            "recipe": "test",
            "splits": {
                name: Split(
                    rows=len(rows),
                    tokens=sum(len(r[0]) for r in rows),
                    supervised_tokens=sum(sum(r[1]) for r in rows),
                    digest=name,
                )
                for name, rows in splits.items()
            },
            "shares": {},
            "chat_template": "template",
            "tokenizer": "tokenizer",
        }

    return store.make(TokenisedMixture, {"rows": [r[0] for r in train]}, build)[0]


@pytest.fixture(name="conversation")
def conversation_of() -> Callable[[str, str], tuple[list[int], list[bool]]]:
    return conversation


@pytest.fixture
def mixture(store: Store) -> TokenisedMixture:
    """Twenty-two questions of different lengths, each with one right answer; two held out."""
    rows = [conversation(chr(97 + i % 26) * (3 + 5 * i % 17), chr(65 + i % 26) * 3) for i in range(24)]
    return make_mixture(store, rows[:22], rows[22:])


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """A recipe with these training fields; six steps of four rows, a checkpoint every second step."""

    def make(**training: object) -> Recipe:
        defaults = {"rank": 4, "learning_rate": 0.01, "batch_size": 4, "warmup_steps": 1, "save_steps": 2}
        return parse(
            {
                "name": "test",
                "base": {"uri": "file://tiny", "chat_template": "{{ messages }}", "max_length": 128},
                "sources": [{"name": "s", "uri": "sample://chat", "kind": "chat", "share": 1.0}],
                "training": defaults | training,
                "evaluation": {"suites": [{"name": "chat_format", "kind": "chat", "role": "target"}]},
            }
        )

    return make


@dataclass(frozen=True)
class Trained:
    """What an attempt in this process left."""

    result: TrainingResult
    losses: list[float]
    adapter: Path


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Sums in one order: what is compared is compared bit for bit."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def train_here(
    recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot, store: Store, tmp_path: Path
) -> Callable[..., Trained]:
    """Trains in this process, with the transformers backend: a second instead of a child's ten.

    `rows`: to train on, else the mixture's; `work`: a folder of an earlier attempt to go on in; `on`: another base.
    """
    from tasks.training import transformers_backend
    from tasks.training.child import Attempt

    def make(
        rows: list[tuple[list[int], list[bool]]] | None = None,
        work: Path | None = None,
        on: BaseSnapshot = base,
        arrange: Callable[[Attempt], object] = lambda attempt: None,
        **training: object,
    ) -> Trained:
        night = recipe(backend="transformers", **training)
        trained_on = make_mixture(store, rows) if rows else mixture
        work = work or Path(mkdtemp(dir=tmp_path))
        work.mkdir(exist_ok=True)
        attempt = Attempt(training_spec(night, trained_on, on, store, work), os.open(os.devnull, os.O_WRONLY))
        arrange(attempt)
        result = transformers_backend.train(attempt)
        assert result is not None
        lines = (work / "progress.jsonl").read_text().splitlines()
        return Trained(result, [json.loads(line)["loss"] for line in lines], work / "adapter")

    return make
