"""What mixing costs: rows per CPU-second of each step, and peak memory. Not run by pytest.

    python tests/benchmarks/bench_mix.py [ROWS] [FOLDER] [--without-tokens]

Makes ROWS (default 300,000) conversations of about 300 tokens in FOLDER (default: a temporary one), one in twenty a
near copy of another, one in fifty an exact one, mixes them, and applies the gate's default row rules to some of them.
Numbers of one machine mean little: read the ratios, to each other and to what is asked. Great Expectations and
matplotlib are imported before the clock runs: in a night, the data gate has done it. Reading, moving and writing 300
token ids and as many bits of loss mask a row is a good part of it: --without-tokens says what is left without (each
row carries one), which is what a mixture costs that is not tokenised.
"""

from __future__ import annotations

import hashlib
import os
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.conversations import CONVERSATION, Conversations, read_conversations, write_conversations
from tasks.mix import mix
from tasks.quality import row_flags
from tasks.recipe import Kind, Quality, parse
from tasks.store import Store

SOURCES: dict[str, tuple[Kind, float]] = {"first": ("chat", 0.5), "second": ("reasoning", 0.5)}
CHUNK = 20_000
ASKED = 15_000  # rows per CPU-second of mixing and row rules together
VOCABULARY = 30_000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def make_source(store: Store, name: str, kind: Kind, rows: int, seed: int, *, tokens: bool = True) -> Conversations:
    """A gated source of sentences drawn from a skewed vocabulary, in the store; without `tokens`, with one a row."""
    draw = np.random.Generator(np.random.PCG64(seed))
    letters = np.array(list("etaoinshrdlucmfwygpb"))
    words = ["".join(draw.choice(letters, draw.integers(2, 11))) for _ in range(VOCABULARY)]
    # Every twelfth word ends a sentence; now and then a paragraph.
    spelled = np.array([words, [f"{word}, {word.capitalize()}" for word in words], [f"{w}.\n\nSo" for w in words]])
    chances = np.cumsum(1 / np.arange(3, VOCABULARY + 3))
    chances /= chances[-1]

    def texts(first: int, last: int) -> Iterator[tuple[str, str]]:
        made: list[tuple[str, str]] = []
        for number in range(first, last):
            chance = draw.random()
            if made and chance < 0.02:
                pair = made[draw.integers(len(made))]
            elif made and chance < 0.07:
                asked, answer = made[draw.integers(len(made))]
                pair = (f"{words[number % VOCABULARY]} {asked}", f"{answer} {words[number % 977]}")
            else:
                length = int(draw.integers(40, 262))
                style = np.zeros(length, np.int64)
                style[11::12] = 1
                style[59::60] = 2
                chosen = spelled[style, np.searchsorted(chances, draw.random(length))].tolist()
                pair = (f"{' '.join(chosen[:30])} {number}?", " ".join(chosen[30:]) + ".")
            made.append(pair)
            yield pair

    counted = {"tokens": 0, "supervised_tokens": 0}

    def batches() -> Iterator[pl.DataFrame]:
        for first in range(0, rows, CHUNK):
            chunk = list(texts(first, min(first + CHUNK, rows)))
            thought = [answer[: len(answer) // 2] if kind == "reasoning" else None for _, answer in chunk]
            said = [answer[len(t or "") :] for t, (_, answer) in zip(thought, chunk, strict=True)]
            frame = pl.DataFrame(
                {
                    "row_id": [hashlib.sha256("\0".join((kind, *pair)).encode()).hexdigest()[:32] for pair in chunk],
                    "source": name,
                    "revision": "r",
                    "source_row": range(first, first + len(chunk)),
                    "kind": kind,
                    "messages": [
                        [{"role": "user", "content": a}, {"role": "assistant", "thinking": t, "content": b}]
                        for (a, _), t, b in zip(chunk, thought, said, strict=True)
                    ],
                    "tools": None,
                },
                schema=CONVERSATION,
            )
            asked, answered = (np.array([len(pair[n]) // 4 + 4 for pair in chunk]) for n in (0, 1))
            if not tokens:
                asked, answered = np.zeros_like(asked), np.ones_like(answered)
            counts = asked + answered
            offsets = np.concatenate([[0], np.cumsum(counts)])
            ids = np.searchsorted(chances, draw.random(int(offsets[-1]))).astype(np.int32)
            mask = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts) >= np.repeat(asked, counts)
            counted["tokens"] += int(counts.sum())
            counted["supervised_tokens"] += int(answered.sum())
            yield frame.with_columns(
                pl.Series("input_ids", pa.LargeListArray.from_arrays(offsets, ids)),
                pl.Series("loss_mask", pa.LargeListArray.from_arrays(offsets, pa.array(mask))),
            )

    def build(work: Path) -> dict[str, Any]:
        write_conversations(work, batches())
        return {
            "source": name, "snapshot": "0" * 64, "row_kind": kind, "format": "native", "passed": True, "findings": (),
            "rows_in": rows, "rows_out": rows, "set_aside": {}, "answers": rows, "trained_answers": rows, **counted,
        }  # fmt: skip

    return store.make(
        Conversations, {"source": name, "rows": rows, "seed": seed, "tokens": tokens, "tokenizer": "t" * 64}, build
    )[0]


def measured(names: list[str]) -> dict[str, float]:
    """Wrap functions of tasks.mix so that the CPU seconds spent in each are added up."""
    import tasks.mix

    spent = dict.fromkeys(names, 0.0)

    def wrap(name: str, function: Any) -> Any:
        def timed(*arguments: Any, **options: Any) -> Any:
            start = time.process_time()
            try:
                return function(*arguments, **options)
            finally:
                spent[name] += time.process_time() - start

        return timed

    for name in names:
        setattr(tasks.mix, name, wrap(name, getattr(tasks.mix, name)))
    return spent


def rules_per_second(store: Store, source: Conversations) -> float:
    """Rows per CPU-second of the data gate's default row rules, over the first batches of a source."""
    batches = list(islice(read_conversations(store.folder(source), counts=True), 6))
    start = 0.0
    for number, batch in enumerate(batches):
        if number == 1:  # the first batch pays for imports and tables
            start = time.process_time()
        rendered = batch.select("row_id", "tokens", "supervised_tokens", problem=pl.lit(None, pl.String))
        row_flags(batch.drop("at"), rendered, quality=Quality(), special_tokens=SPECIAL, max_length=4096)
    return sum(batch.height for batch in batches[1:]) / (time.process_time() - start)


def main() -> None:
    tokens = "--without-tokens" not in sys.argv
    given = [argument for argument in sys.argv[1:] if not argument.startswith("--")]
    rows = int(given[0]) if given else 300_000
    with tempfile.TemporaryDirectory() as scratch:
        os.environ.setdefault("NIGHTOWL_HOME", scratch)
        store = Store(Path(given[1] if len(given) > 1 else scratch))
        sources = [
            make_source(store, n, kind, rows // 2, i, tokens=tokens) for i, (n, (kind, _)) in enumerate(SOURCES.items())
        ]
        recipe = parse(
            {
                "name": "bench",
                "base": {"uri": "sample://base", "max_length": 4096},
                "sources": [
                    {"name": n, "uri": f"sample://{n}", "kind": k, "share": s} for n, (k, s) in SOURCES.items()
                ],
                "evaluation": {"suites": [{"name": "held_out_loss", "kind": "chat", "role": "target"}]},
                "mixture": {"seed": int(time.time()), "measure": "supervised_tokens" if tokens else "rows"},
            }
        )
        import great_expectations  # noqa: F401
        import matplotlib.figure  # noqa: F401

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        steps = [
            "gather",
            "_duplicates",
            "_astray",
            "_given_away",
            "write_splits",
            "leaks",
            "_check",
            "draw_composition",
        ]
        spent = measured(steps)
        start = time.process_time()
        mixture = mix(recipe, sources, store)
        whole = time.process_time() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        mean = sum(source.tokens for source in sources) / rows
        print(f"{rows} rows of mean {mean:.0f} tokens; set aside: {mixture.set_aside}")
        for step, seconds in {**spent, "other": whole - sum(spent.values()), "mix": whole}.items():
            print(
                f"{step.lstrip('_'):18} {seconds / whole:6.1%} {rows / max(seconds, 1e-9):12,.0f} rows per CPU-second"
            )
        ruled = rules_per_second(store, sources[0])
        both = 1 / (whole / rows + 1 / ruled)
        print(f"{'row rules':18} {'':6} {ruled:12,.0f} rows per CPU-second")
        print(f"{'both':18} {'':6} {both:12,.0f} rows per CPU-second, {both / ASKED:.2f} times what is asked")
        print(f"peak memory {peak / 2**20:.2f} GB (before mixing: {before / 2**20:.2f} GB)")


if __name__ == "__main__":
    main()
