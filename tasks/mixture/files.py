"""Split files: rows gathered from their sources and written in a given order, in bounded memory, byte for byte alike.

Random access into Parquet is slow and a whole split may not fit in memory, so rows go through buckets: each
source is read once, front to back, every row is put in the bucket that its place belongs to, and each bucket is
then sorted and appended. The bytes depend on the rows, their order and the version of Arrow, and on nothing
else: one thread encodes, and row groups, compression and statistics are pinned.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.conversations import CONVERSATION, read_conversations
from tasks.mixture.split import SPLITS

BUCKET_ROWS = 32_768
ROW_GROUP = 4_096
SPLIT = pl.Schema(
    {**CONVERSATION, "input_ids": pl.List(pl.Int32), "loss_mask": pl.List(pl.Boolean), "repeat": pl.Int32}
)


def write_splits(places: pl.DataFrame, folders: Mapping[str, Path], work: Path) -> None:
    """Write `<split>.parquet` for each split in `places` (source, at, repeat, split, place) into `work`.

    `folders`: the store folder of each source. `place` counts from 0 within each split.
    """
    scratch = work / "buckets"
    scratch.mkdir()
    places = places.with_columns(bucket=pl.format("{}-{}", "split", pl.col("place") // BUCKET_ROWS))
    for number, (source, folder) in enumerate(folders.items()):
        _scatter(places.filter(source=source).drop("source", "split"), folder, scratch, number)
    for split in SPLITS:
        buckets = places.filter(split=split)["bucket"].n_unique()
        _gather([f"{split}-{number}" for number in range(buckets)], scratch, work / f"{split}.parquet")
    shutil.rmtree(scratch)


def _scatter(places: pl.DataFrame, folder: Path, scratch: Path, number: int) -> None:
    places = places.sort("at", "place")
    with ExitStack() as stack:
        writers: dict[str, pa.RecordBatchFileWriter] = {}
        for batch in read_conversations(folder):
            first, last = int(batch["at"][0]), int(batch["at"][-1])
            low, high = np.searchsorted(places["at"].to_numpy(), [first, last + 1])
            wanted = places[low:high].sort("bucket")
            rows = batch.drop("at")[wanted["at"] - first].hstack(wanted.select("repeat", "place"))
            table = _plain(rows)
            at = 0
            for bucket, count in wanted.group_by("bucket", maintain_order=True).len().iter_rows():
                if bucket not in writers:
                    path = scratch / f"{bucket}-{number}.arrow"
                    writers[bucket] = stack.enter_context(pa.ipc.new_file(path, table.schema))
                writers[bucket].write_table(table.slice(at, count))
                at += count


def _gather(buckets: list[str], scratch: Path, target: Path) -> None:
    empty = _plain(pl.DataFrame(schema=SPLIT))
    with pq.ParquetWriter(
        target,
        empty.schema,
        version="2.6",
        compression="zstd",
        compression_level=1,
        use_dictionary=["source", "revision", "kind", "input_ids.list.element"],
        write_statistics=False,
        store_schema=False,
    ) as writer:
        for bucket in buckets:
            parts = []
            for path in sorted(scratch.glob(f"{bucket}-*.arrow")):
                with pa.ipc.open_file(path) as reader:
                    parts.append(pl.DataFrame(pl.from_arrow(reader.read_all())))
                path.unlink()
            writer.write_table(_plain(pl.concat(parts).sort("place").select(*SPLIT)), row_group_size=ROW_GROUP)


def _plain(rows: pl.DataFrame) -> pa.Table:
    """An Arrow table without the 64-bit offsets of Polars, which some readers of Parquet do not take."""
    table = rows.to_arrow(compat_level=pl.CompatLevel.oldest())
    return table.cast(pa.schema([pa.field(f.name, _narrow(f.type)) for f in table.schema]))


def _narrow(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_large_string(kind):
        return pa.string()
    if pa.types.is_large_list(kind) or pa.types.is_list(kind):
        return pa.list_(_narrow(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, _narrow(f.type)) for f in kind])
    return kind
