"""A source's raw rows made into conversations with token ids, and only those made that no earlier night has made.

A row's conversation, ids, mask and flags depend on the row and on settings alone, so a row that an earlier
night prepared under the same settings is taken over by its key, without being parsed.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from tasks.conversations.conversion import convert, detect, mapped
from tasks.conversations.formats import FORMATS
from tasks.conversations.render import Renderer
from tasks.conversations.segments import KEYS, SEGMENTS, STORED, Known, in_order, link_segment, write_segment
from tasks.recipe import Kind

_ANSWERS = pl.col("messages").list.eval(pl.element().struct.field("role") == "assistant").list.sum()
_PLACES = {"source_row": pl.Int64, "segment": pl.Int32, "row": pl.UInt32}
Render = Callable[[pl.DataFrame], pl.DataFrame]
# Of conversations (CONVERSATION): they as they will be trained on, rendered, and further columns to be stored.
Judge = Callable[[pl.DataFrame, Render], tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]]


class RawRows(Protocol):
    """A batch of raw rows: `first` is the number of its first row, `keys` are (rows, 2) u64."""

    first: int

    @property
    def keys(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def frame(self, places: np.ndarray | None = None) -> pl.DataFrame:
        """The rows, or those at some places, with `source_row`."""


@dataclass(frozen=True)
class Preparation:
    """The rows of a source in segments: `index` has source_row, segment (a place in `segments`) and row.

    `encoding`: the encoder, how many texts it was proven on, rows made now and rows taken over.
    """

    format: str
    segments: list[str]
    index: pl.DataFrame
    encoding: dict[str, Any]

    def facts(self, folder: Path) -> pl.DataFrame:
        """What is known of each row, in order, but for its texts and tokens, and what `judge` found of it."""
        parts = []
        index = self.index.with_row_index("_place")
        heavy = ("messages", "tools", "input_ids", "loss_mask", *KEYS)
        for (number,), rows in index.group_by("segment"):
            file = folder / SEGMENTS / self.segments[int(number)]
            names = [name for name in pl.read_parquet_schema(file) if name not in heavy]
            parts.append(pl.read_parquet(file, columns=names)[rows["row"].to_numpy()].with_columns(rows["_place"]))
        if not parts:
            return pl.DataFrame(schema={**{n: t for n, t in STORED.items() if n not in heavy}, "source_row": pl.Int64})
        return pl.concat(parts).sort("_place").with_columns(index["source_row"]).drop("_place")


def prepare(
    batches: Callable[[], Iterable[RawRows]],
    renderer: Renderer,
    judge: Judge,
    folder: Path,
    *,
    kind: Kind,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
    earlier: Path | None = None,
) -> Preparation:
    """Make conversations of raw rows and write them as segments into `folder`.

    `batches` begins to read anew at each call. `judge` is given conversations and the renderer, and gives them back
    row by row, rendered, with columns of what it found; it looks at no other row. `earlier`: a folder of the same
    source, made under the same settings, whose rows are taken over. Memory is bounded by a batch, but for 16 bytes
    a row, and for formats that gather rows (message trees), which are read as a whole every night.

    Raises BadInput as `convert` does.
    """
    differing = renderer.encoder.differing
    work = _Work(renderer, judge, folder, kind, format, columns, earlier)
    made = work.over(batches())
    if renderer.encoder.differing > differing:
        # The fast encoder was wrong about a row late in the source: what it made before is not trusted either.
        shutil.rmtree(folder / SEGMENTS, ignore_errors=True)
        work = _Work(renderer, judge, folder, kind, format, columns, None)
        made = work.over(batches())
    return made


class _Work:
    def __init__(
        self,
        renderer: Renderer,
        judge: Judge,
        folder: Path,
        kind: Kind,
        format: str | None,
        columns: Mapping[str, str] | None,
        earlier: Path | None,
    ) -> None:
        self.renderer, self.judge, self.folder = renderer, judge, folder
        self.kind, self.format, self.columns = kind, format, columns
        names = sorted(file.name for file in (earlier / SEGMENTS).glob("*.parquet")) if earlier else []
        self.segments = [name for name in names if earlier and link_segment(earlier, folder, name)]
        self.known = Known(folder, self.segments)
        self.made = 0

    def over(self, batches: Iterable[RawRows]) -> Preparation:
        index = pl.concat([pl.DataFrame(schema=_PLACES), *self._index(batches)])
        segments, index = in_order(self.folder, self.segments, index)
        rows = {"rows_prepared": self.made, "rows_taken_over": index.height - self.made}
        return Preparation(self.format or "", segments, index, {**self.renderer.encoder.proof(), **rows})

    def _index(self, batches: Iterable[RawRows]) -> Iterator[pl.DataFrame]:
        together: list[pl.DataFrame] = []
        for batch in batches:
            if not self.format:
                # Once, on the first rows: a later batch must not be read another way.
                self.format = detect(mapped(batch.frame(np.arange(min(len(batch), 100))), self.columns))
            if self.format in FORMATS and FORMATS[self.format].gather:
                # Such a format makes of a row what others say, wherever they stand: the source is read as a whole.
                together.append(batch.frame())
                continue
            segment, row = self.known.find(batch.keys)
            new = np.flatnonzero(segment < 0)
            if len(new):
                segment[new], row[new] = self._made(batch.frame(new), batch.keys[new])
            numbers = np.arange(batch.first, batch.first + len(batch))
            yield pl.DataFrame({"source_row": numbers, "segment": segment, "row": row}, schema=_PLACES)
        if together:
            raw = pl.concat(together)
            place, rows = self._made(raw, np.zeros((raw.height, 2), np.uint64))
            yield raw.select("source_row", segment=pl.lit(place, pl.Int32), row=pl.Series(rows, dtype=pl.UInt32))

    def _made(self, raw: pl.DataFrame, keys: np.ndarray) -> tuple[int, np.ndarray]:
        """A new segment of raw rows: its place in the list, and their rows in it."""
        self.segments.append(write_segment(self.folder, self._stored(raw, keys)))
        self.made += raw.height
        return len(self.segments) - 1, np.arange(raw.height)

    def _stored(self, raw: pl.DataFrame, keys: np.ndarray) -> pl.DataFrame:
        rows, aside = convert(raw, source="", revision="", kind=self.kind, format=self.format, columns=self.columns)
        rows, rendered, found = self.judge(rows, self.renderer.render)
        converted = pl.concat(
            [
                rows.select(
                    "source_row", "row_id", "messages", "tools", turns=pl.col("messages").list.len(), answers=_ANSWERS
                ),
                rendered.drop("row_id"),
                found,
            ],
            how="horizontal",
        )
        keyed = raw.select("source_row", key_a=pl.Series(keys[:, 0]), key_b=pl.Series(keys[:, 1]))
        stored = keyed.join(converted, on="source_row", how="left", maintain_order="left").join(
            aside, on="source_row", how="left", maintain_order="left"
        )
        return stored.select(*STORED, *found.columns).cast(STORED)  # type: ignore[arg-type]
