"""Where the rows of a source lie once they are conversations, and how the next night finds them again.

Converting, rendering and encoding a row depends on the row alone, and most rows of tonight were there
yesterday. So rows are kept in segments: Parquet files that are never changed, named by their sha256, in
which each row has the key of the raw row that it came from. Beside them lies `rows.parquet`: the rows of
the source in their order, each with the segment and the place in it, and whether the gate kept it. The next
night links the segments (a hard link costs no space) and adds one of its new rows.

A reader merges the segments in the order of the source. For that, each holds its rows in that order; one
that does not any more, because the source was shuffled, is written anew, and so are segments that are
mostly rows no longer there, and small ones when they become many.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.conversations.schema import CONVERSATION, MESSAGES
from tasks.errors import WorldFailed
from tasks.store import file_digest, link

ROWS = "rows.parquet"
SEGMENTS = "segments"
KEYS = ("key_a", "key_b")
# What a segment knows of a row; flags come beside it. `answers`: its assistant turns; `trained_turns`: those of them
# that are trained. `reason` and `detail`: why a row could not be converted.
STORED: dict[str, Any] = {
    **dict.fromkeys(KEYS, pl.UInt64),
    "row_id": pl.String,
    "messages": MESSAGES,
    "tools": pl.String,
    "input_ids": pl.List(pl.Int32),
    "loss_mask": pl.List(pl.Boolean),
    "problem": pl.String,
    "tokens": pl.Int32,
    "supervised_tokens": pl.Int32,
    "turns": pl.Int32,
    "answers": pl.Int32,
    "trained_turns": pl.Int32,
    "reason": pl.String,
    "detail": pl.String,
}
INDEX = {"source_row": pl.Int64, "segment": pl.Int32, "row": pl.UInt32, "kept": pl.Boolean}
TOKENS = {"input_ids": pl.List(pl.Int32), "loss_mask": pl.List(pl.Boolean)}
COUNTS = {name: STORED[name] for name in ("tokens", "supervised_tokens")}

_GROUP = 2_048  # rows that are decoded together
BATCH_ROWS = 8_192
_BUCKET = 16_384
_SMALL, _MANY = 4_096, 16


def write_segment(folder: Path, rows: pl.DataFrame) -> str:
    """Write rows (STORED, and any further columns) as a segment of `folder`; its name."""
    place = folder / SEGMENTS
    place.mkdir(exist_ok=True)
    temporary = place / f".{os.getpid()}"
    rows.write_parquet(temporary, compression="zstd", compression_level=1, row_group_size=_GROUP, statistics=False)
    name = f"{file_digest(temporary)}.parquet"
    temporary.replace(place / name)
    return name


def link_segment(earlier: Path, folder: Path, name: str) -> bool:
    """Take over a segment of an earlier night's folder; False where it is gone or is not what its name says."""
    file, target = earlier / SEGMENTS / name, folder / SEGMENTS / name
    target.parent.mkdir(exist_ok=True)
    if not file.is_file() or f"{file_digest(file)}.parquet" != name:
        return False
    link(file, target)
    return True


class Known:
    """The rows in segments, found by the keys of the raw rows that they were made of."""

    def __init__(self, folder: Path, segments: Sequence[str]) -> None:
        keys = [pl.read_parquet(folder / SEGMENTS / name, columns=list(KEYS)).to_numpy() for name in segments]
        every = np.concatenate([np.empty((0, 2), np.uint64), *keys])
        order = np.argsort(every[:, 0], kind="stable")
        self._keys = every[order]
        heights = [len(one) for one in keys]
        self._segment = np.repeat(np.arange(len(keys), dtype=np.int32), heights)[order]
        self._row = np.concatenate([np.empty(0, np.uint32), *(np.arange(h, dtype=np.uint32) for h in heights)])[order]

    def find(self, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Segment (a place in the list) and row of each key, (rows, 2) u64; segment -1 where there is none."""
        if not len(self._keys):
            return np.full(len(keys), -1, np.int32), np.zeros(len(keys), np.uint32)
        at = np.searchsorted(self._keys[:, 0], keys[:, 0]).clip(max=len(self._keys) - 1)
        found = (self._keys[at] == keys).all(axis=1)
        return np.where(found, self._segment[at], -1).astype(np.int32), self._row[at]


def write_rows(
    folder: Path, index: pl.DataFrame, segments: Sequence[str], *, source: str, revision: str, kind: str
) -> None:
    """Write `rows.parquet`: `index` (INDEX, in the source's order), whose segment is a place in `segments`."""
    table = index.select(*INDEX).cast(INDEX).to_arrow()  # type: ignore[arg-type]
    said = {"source": source, "revision": revision, "kind": kind, "segments": "\n".join(segments)}
    pq.write_table(table.replace_schema_metadata(said), folder / ROWS, compression="zstd")


def read_index(folder: Path) -> tuple[pl.DataFrame, dict[str, str]]:
    """`rows.parquet` with `at`, a row's place among the kept ones (null for others), and what holds for all rows."""
    table = pq.read_table(folder / ROWS)
    said = {key.decode(): value.decode() for key, value in (table.schema.metadata or {}).items()}
    index = pl.DataFrame(pl.from_arrow(table.replace_schema_metadata(None)))
    return index.with_columns(at=pl.when("kept").then(pl.col("kept").cum_sum() - 1).cast(pl.UInt32)), said


def read_conversations(
    folder: Path, ats: Sequence[int] | None = None, *, counts: bool = False
) -> Iterator[pl.DataFrame]:
    """The conversations that the gate kept, in the source's order, batch by batch; memory is bounded by a batch.

    Columns: CONVERSATION, input_ids (list of i32), loss_mask (list of bool) and `at` (u32), which counts from 0. With
    `counts`, tokens and supervised_tokens (i32), how many there are, in place of the lists, which cost more to read
    than all the rest. `ats`: only these. Raises WorldFailed where a segment is damaged.
    """
    index, said = read_index(folder)
    index = index.filter("kept")
    if ats is not None:
        index = index.filter(pl.col("at").is_in(list(ats)))
    constants = {name: pl.lit(said[name]) for name in ("source", "revision", "kind")}
    last = COUNTS if counts else TOKENS
    columns = [*(name for name in CONVERSATION if name in STORED), *last]
    for rows in gather(folder, said["segments"].split("\n"), index, columns):
        typed: Any = {**CONVERSATION, **last}
        yield rows.with_columns(**constants).select(*typed, "at").cast(typed)


def gather(
    folder: Path, segments: Sequence[str], index: pl.DataFrame, columns: Sequence[str]
) -> Iterator[pl.DataFrame]:
    """Rows of segments in the order of `index` (segment, row; its other columns come along), batch by batch."""
    cursors: dict[int, _Cursor] = {}
    for first in range(0, index.height, BATCH_ROWS):
        wanted = index.slice(first, BATCH_ROWS).with_row_index("_place")
        parts = []
        for (number,), part in wanted.group_by("segment", maintain_order=True):
            if number not in cursors:
                cursors[number] = _Cursor(folder / SEGMENTS / segments[int(number)], columns)
            parts.append(cursors[number].take(part["row"].to_numpy()).with_columns(part["_place"]))
        rows = pl.concat(parts).sort("_place").drop("_place")
        yield pl.concat([rows, wanted.drop("_place", "segment", "row")], how="horizontal")


class _Cursor:
    """A segment read from front to back, a row group at a time."""

    def __init__(self, file: Path, columns: Sequence[str]) -> None:
        self.file, self.columns = file, list(columns)
        try:
            self.parquet = pq.ParquetFile(file)
        except (pa.ArrowException, OSError) as error:
            raise _damaged(file) from error
        self.starts = _starts(self.parquet)
        self.group = -1
        self.rows = pl.DataFrame()

    def take(self, rows: np.ndarray) -> pl.DataFrame:
        """Rows by their place; cheap where the places only grow from call to call."""
        groups = np.searchsorted(self.starts, rows, side="right") - 1
        cuts = [0, *(np.flatnonzero(np.diff(groups)) + 1), len(rows)]
        parts = []
        for start, end in pairwise(cuts):
            if groups[start] != self.group:
                self.group = int(groups[start])
                try:
                    read = pl.from_arrow(self.parquet.read_row_group(self.group, columns=self.columns))
                except (pa.ArrowException, OSError, IndexError) as error:
                    raise _damaged(self.file) from error
                self.rows = pl.DataFrame(read).select(self.columns)
            parts.append(self.rows[rows[start:end] - self.starts[self.group]])
        return pl.concat(parts)


def _starts(parquet: pq.ParquetFile) -> np.ndarray:
    """The first row of each row group."""
    heights = [parquet.metadata.row_group(group).num_rows for group in range(parquet.num_row_groups)]
    return np.cumsum([0, *heights])[:-1]


def _damaged(file: Path) -> WorldFailed:
    return WorldFailed(str(file), "is damaged", "Remove the folder that `segments` lies in; the night makes it again.")


def in_order(folder: Path, segments: Sequence[str], index: pl.DataFrame) -> tuple[list[str], pl.DataFrame]:
    """Segments that a reader can merge, and the index (segment a place in them, row) into them.

    Segments that are out of order, mostly unused, or small and many are written anew and removed.
    """
    heights = [pq.read_metadata(folder / SEGMENTS / name).num_rows for name in segments]
    use = index.group_by("segment").agg(
        ordered=(pl.col("row").cast(pl.Int64).diff().fill_null(0) >= 0).all(), used=pl.col("row").n_unique()
    )
    per = {segment: (ordered, used) for segment, ordered, used in use.iter_rows()}
    small = [number for number, height in enumerate(heights) if height < _SMALL]
    anew = {
        number
        for number, height in enumerate(heights)
        if number in per and (not per[number][0] or 2 * per[number][1] < height)
    }
    if len(small) > _MANY:
        anew.update(number for number in small if number in per)
    kept = [number for number in range(len(segments)) if number in per and number not in anew]
    names = [segments[number] for number in kept]
    moved = {number: place for place, number in enumerate(kept)}
    index = index.with_row_index("_place")
    parts = [
        index.filter(pl.col("segment").is_in(kept)).with_columns(
            pl.col("segment").replace_strict(moved, return_dtype=pl.Int32, default=None)
        )
    ]
    if anew:
        wanted = index.filter(pl.col("segment").is_in(sorted(anew)))
        for name, rows in _written_anew(folder, segments, wanted):
            parts.append(rows.with_columns(segment=pl.lit(len(names), pl.Int32)).select(index.columns))
            names.append(name)
    for name in set(segments) - set(names):
        (folder / SEGMENTS / name).unlink()
    return names, pl.concat(parts).sort("_place").drop("_place")


def _written_anew(folder: Path, segments: Sequence[str], wanted: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """New segments of the wanted rows, in order, each with its part of the index.

    Rows go through buckets, so that neither random access nor the whole source in memory is needed.
    """
    scratch = folder / "buckets"
    scratch.mkdir()
    wanted = wanted.with_columns(_bucket=pl.int_range(pl.len()) // _BUCKET)
    for (number,), part in wanted.group_by("segment"):
        file = pq.ParquetFile(folder / SEGMENTS / segments[int(number)])
        for group, start in enumerate(_starts(file)):
            rows = pl.DataFrame(pl.from_arrow(file.read_row_group(group)))
            places = pl.int_range(start, start + rows.height, dtype=pl.UInt32, eager=True)
            found = rows.with_columns(row=places).join(part, on="row")
            for (bucket,), some in found.group_by("_bucket"):
                some.write_ipc(scratch / f"{bucket}-{number}-{group}.arrow")
    for bucket in range(wanted["_bucket"].n_unique()):
        files = sorted(scratch.glob(f"{bucket}-*.arrow"))
        rows = pl.concat([pl.read_ipc(file) for file in files]).sort("_place")
        for file in files:
            file.unlink()
        stored = rows.drop(*wanted.columns)
        index = rows.select(wanted.drop("_bucket").columns).with_columns(row=pl.int_range(pl.len(), dtype=pl.UInt32))
        yield write_segment(folder, stored), index
    scratch.rmdir()


def write_conversations(folder: Path, batches: Iterable[pl.DataFrame]) -> None:
    """Write whole conversations (CONVERSATION, input_ids, loss_mask) of one source, all kept; a segment a batch."""
    segments: list[str] = []
    parts = [pl.DataFrame(schema=INDEX)]
    about = {"source": "", "revision": "", "kind": ""}
    for rows in batches:
        count = pl.int_range(pl.len(), dtype=pl.UInt32)
        parts.append(rows.select("source_row", segment=pl.lit(len(segments), pl.Int32), row=count, kept=pl.lit(True)))
        stored = rows.with_columns(
            key_a=count.cast(pl.UInt64),
            key_b=pl.lit(len(segments), pl.UInt64),
            tokens=pl.col("input_ids").list.len().cast(pl.Int32),
            supervised_tokens=pl.col("loss_mask").list.sum().cast(pl.Int32),
            turns=pl.col("messages").list.len().cast(pl.Int32),
            **{name: pl.lit(None, pl.Int32) for name in ("answers", "trained_turns")},
            **{name: pl.lit(None, pl.String) for name in ("problem", "reason", "detail")},
        )
        segments.append(write_segment(folder, stored.select(*STORED)))
        about = rows.head(1).select(*about).to_dicts()[0] if rows.height else about
    write_rows(folder, pl.concat(parts), segments, **about)
