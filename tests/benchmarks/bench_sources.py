"""What reading a source costs: peak memory against the size of its file, and rows per CPU-second. Not run by pytest.

    python tests/benchmarks/bench_sources.py [MB ...]

Writes files of about so many megabytes (default 200 and 2000) in every form, fetches each into a store and reads its
rows, each in a process of its own, and lets `datasets.load_dataset` do the same with the smallest. Memory must not grow
with the file.
"""

from __future__ import annotations

import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

TEXT = "Night after night the data grows and what was learned is learned anew. " * 6
PEERS = {"jsonl": "json", "jsonl.gz": "json", "json": "json", "csv": "csv", "parquet": "parquet"}


def rows(megabytes: int) -> Iterator[dict[str, Any]]:
    """Rows of about a kilobyte of JSON each."""
    for number in range(megabytes * 1000):
        messages = [
            {"role": "user", "content": f"{number} {TEXT}"},
            {"role": "assistant", "content": f"{TEXT}{number}"},
        ]
        yield {"id": number, "messages": messages}


def write_lines(path: Path, megabytes: int) -> None:
    with gzip.open(path, "wb", 1) if path.suffix == ".gz" else open(path, "wb") as file:
        for row in rows(megabytes):
            file.write(orjson.dumps(row) + b"\n")


def write_array(path: Path, megabytes: int) -> None:
    with open(path, "w") as file:
        for number, row in enumerate(rows(megabytes)):
            file.write("[" if number == 0 else ",\n")
            json.dump(row, file)
        file.write("]")


def write_csv(path: Path, megabytes: int) -> None:
    import csv

    with open(path, "w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["prompt", "completion"])
        for row in rows(megabytes):
            lines.writerow([message["content"] for message in row["messages"]])


def write_parquet(path: Path, megabytes: int) -> None:
    """Row groups of 20,000 rows; one for all rows, where the file's name says so."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    def batches() -> Iterator[pa.RecordBatch]:
        piece: list[dict[str, Any]] = []
        for row in rows(megabytes):
            piece.append(row)
            if len(piece) == 20_000:
                yield pa.RecordBatch.from_pylist(piece)
                piece = []
        if piece:
            yield pa.RecordBatch.from_pylist(piece)

    if path.name.startswith("one."):
        table = pa.Table.from_batches(list(batches()))
        pq.write_table(table, path, row_group_size=table.num_rows, use_dictionary=False, compression="none")
        return
    writer = None
    for batch in batches():
        writer = writer or pq.ParquetWriter(path, batch.schema, use_dictionary=False, compression="none")
        writer.write_batch(batch)
    if writer:
        writer.close()


WRITERS: dict[str, Callable[[Path, int], None]] = {
    "jsonl": write_lines,
    "jsonl.gz": write_lines,
    "json": write_array,
    "csv": write_csv,
    "parquet": write_parquet,
    "one.parquet": write_parquet,
}


def nightowl(file: Path, scratch: Path) -> int:
    from tasks.fetch import fetch
    from tasks.recipe import Source
    from tasks.sources import read_batches
    from tasks.store import Store

    store = Store(scratch)
    snapshot = fetch(Source(name="bench", uri=f"file://{file}", kind="chat", share=1.0), store)
    return sum(batch.frame().height for batch in read_batches(store.folder(snapshot), snapshot))


def peer(file: Path, scratch: Path) -> int:
    import datasets

    datasets.disable_progress_bars()
    form = PEERS[file.name.partition(".")[2]]
    loaded = datasets.load_dataset(form, data_files=str(file), cache_dir=str(scratch), split="train")
    return sum(len(next(iter(batch.values()))) for batch in loaded.iter(batch_size=10_000))


def child(who: str, file: Path, scratch: Path) -> None:
    start = time.process_time()
    count = {"nightowl": nightowl, "datasets": peer}[who](file, scratch)
    took = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    print(json.dumps({"rows": count, "seconds": took, "peak": peak}))


def measured(who: str, file: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=file.parent) as scratch:
        command = [sys.executable, __file__, "--child", who, str(file), scratch]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise SystemExit(done.stderr)
        found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
        return found


def main() -> None:
    sizes = [int(text) for text in sys.argv[1:]] or [200, 2000]
    print("form          file MB   peak MB  peak/size  rows/CPU-s  datasets: peak MB  rows/CPU-s  times as fast")
    growing = []
    with tempfile.TemporaryDirectory() as place:
        for form, write in WRITERS.items():
            least = float("inf")
            for megabytes in sizes:
                file = Path(place) / (form if form.startswith("one.") else f"rows.{form}")
                write(file, megabytes)
                size = file.stat().st_size / 1e6
                own = measured("nightowl", file)
                assert own["rows"] == megabytes * 1000
                speed = own["rows"] / own["seconds"]
                line = f"{form:12} {size:8,.0f} {own['peak']:9,.0f} {own['peak'] / size:10.2f} {speed:11,.0f}"
                if megabytes == sizes[0]:  # of larger ones, datasets holds a JSON array eight times over
                    other = measured("datasets", file)
                    theirs = other["rows"] / other["seconds"]
                    line += f" {other['peak']:18,.0f} {theirs:11,.0f} {speed / theirs:14.2f}"
                print(line, flush=True)
                file.unlink()
                least = min(least, own["peak"])
                if own["peak"] > 1.5 * least:
                    growing.append(f"{form} at {megabytes} MB")
    if growing:
        raise SystemExit(f"memory grows with the file: {', '.join(growing)}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
    else:
        main()
