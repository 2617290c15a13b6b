"""What mixing costs: rows per CPU-second of each step, and peak memory. Not run by pytest.

    python tests/benchmarks/bench_mix.py [ROWS] [FOLDER]

Makes ROWS (default 300,000) conversations of about 300 tokens in FOLDER (default: a temporary one), one in twenty a
near copy of another, one in fifty an exact one, and mixes them. Numbers of one machine mean little: read the ratios.
"""

from __future__ import annotations

import hashlib
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.conversations import CONVERSATION, Conversations
from tasks.mix import mix
from tasks.recipe import parse
from tasks.store import Store

SOURCES = {"first": ("chat", 0.5), "second": ("reasoning", 0.5)}
CHUNK = 20_000


def make_source(store: Store, name: str, kind: str, rows: int, seed: int) -> Conversations:
    """A gated source of texts drawn from a skewed vocabulary, in the store."""
    draw = np.random.Generator(np.random.PCG64(seed))
    letters = np.array(list("etaoinshrdlucmfwygpb"))
    vocabulary = ["".join(draw.choice(letters, draw.integers(2, 11))) for _ in range(30_000)]
    chances = 1 / np.arange(3, 30_003)
    chances /= chances.sum()

    def build(work: Path) -> dict[str, Any]:
        tokens = supervised = 0
        conversations, token_files = [], []
        for first in range(0, rows, CHUNK):
            chunk: list[tuple[str, str]] = []
            for number in range(first, min(first + CHUNK, rows)):
                chance = draw.random()
                if chunk and chance < 0.02:
                    chunk.append(chunk[draw.integers(len(chunk))])
                elif chunk and chance < 0.07:
                    asked, answer = chunk[draw.integers(len(chunk))]
                    chunk.append((asked, f"{answer} {vocabulary[number % 30_000]}"))
                else:
                    words = draw.choice(30_000, int(draw.integers(60, 400)), p=chances)
                    spelled = [vocabulary[word] for word in words]
                    chunk.append((f"{' '.join(spelled[:40])} {number}?", " ".join(spelled[40:]) + "."))
            lengths = [(60, max(1, len(answer) // 4)) for _, answer in chunk]
            frame = pl.DataFrame(
                {
                    "row_id": [hashlib.sha256("\0".join((kind, *pair)).encode()).hexdigest()[:32] for pair in chunk],
                    "source": name,
                    "revision": "r",
                    "source_row": range(first, first + len(chunk)),
                    "kind": kind,
                    "messages": [
                        [{"role": "user", "content": a}, {"role": "assistant", "content": b}] for a, b in chunk
                    ],
                    "tools": None,
                },
                schema=CONVERSATION,
            )
            part = pl.DataFrame(
                {
                    "row_id": frame["row_id"],
                    "input_ids": pl.Series([range(a + b) for a, b in lengths], dtype=pl.List(pl.Int32)),
                    "loss_mask": pl.Series([[False] * a + [True] * b for a, b in lengths], dtype=pl.List(pl.Boolean)),
                }
            )
            tokens += sum(a + b for a, b in lengths)
            supervised += sum(b for _, b in lengths)
            for files, piece in ((conversations, frame), (token_files, part)):
                files.append(work / f"part{len(files)}-{'messages' in piece.columns}.parquet")
                piece.write_parquet(files[-1])
        for files, target in ((conversations, "conversations"), (token_files, "tokens")):
            pl.scan_parquet(files).sink_parquet(work / f"{target}.parquet")
            for file in files:
                file.unlink()
        return {
            "source": name, "snapshot": "0" * 64, "row_kind": kind, "format": "native", "passed": True, "findings": (),
            "tokens": tokens, "supervised_tokens": supervised, "rows_in": rows, "rows_out": rows, "set_aside": {},
        }  # fmt: skip

    return store.make(Conversations, {"source": name, "rows": rows, "seed": seed, "tokenizer": "t" * 64}, build)[0]


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


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 300_000
    with tempfile.TemporaryDirectory() as scratch:
        store = Store(Path(sys.argv[2] if len(sys.argv) > 2 else scratch))
        sources = [make_source(store, n, kind, rows // 2, i) for i, (n, (kind, _)) in enumerate(SOURCES.items())]
        recipe = parse(
            {
                "name": "bench",
                "base": {"uri": "sample://base"},
                "sources": [
                    {"name": n, "uri": f"sample://{n}", "kind": k, "share": s} for n, (k, s) in SOURCES.items()
                ],
                "evaluation": {"suites": [{"name": "held_out_loss", "kind": "chat", "role": "target"}]},
                "mixture": {"seed": int(time.time())},
            }
        )
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        spent = measured(["gather", "_duplicates", "_given_away", "write_splits", "draw_composition"])
        start = time.process_time()
        mixture = mix(recipe, sources, store)
        whole = time.process_time() - start
        mean = sum(source.tokens for source in sources) / rows
        print(f"{rows} rows of mean {mean:.0f} tokens; set aside: {mixture.set_aside}")
        for step, seconds in {**spent, "other": whole - sum(spent.values()), "mix": whole}.items():
            print(
                f"{step.lstrip('_'):18} {seconds / whole:6.1%} {rows / max(seconds, 1e-9):12,.0f} rows per CPU-second"
            )
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(f"peak memory {peak / 2**20:.2f} GB (before mixing: {before / 2**20:.2f} GB)")


if __name__ == "__main__":
    main()
