"""Pieces of a data file: so many rows, each with a key of its content that costs far less than reading it.

A night knows most rows from the night before. By its key a row is found again without being parsed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

from tasks.errors import BadInput
from tasks.sources.columns import json_text

Record = dict[str, Any]
# What polars mixes into its hashes; two of them make 128 bits.
_SEEDS = (0x6E696768, 0x746F776C)


class Piece(Protocol):
    """Some rows of a file, in their order."""

    def __len__(self) -> int: ...

    def records(self, where: Iterable[int] | None = None) -> list[Record]:
        """All rows as objects, or those at some places; raises BadInput, with file and line."""

    def texts(self, where: Iterable[int]) -> Iterator[bytes]:
        """The rows at some places as JSON, each on one line."""

    def keys(self) -> np.ndarray:
        """A key of each row's content, (rows, 2) u64; rows of other content have other keys."""


class Records:
    """Rows that are objects already."""

    def __init__(self, records: list[Record]) -> None:
        self._records = records

    def __len__(self) -> int:
        return len(self._records)

    def records(self, where: Iterable[int] | None = None) -> list[Record]:
        return self._records if where is None else [self._records[place] for place in where]

    def texts(self, where: Iterable[int]) -> Iterator[bytes]:
        return (json_text(self._records[place]) for place in where)

    def keys(self) -> np.ndarray:
        return _digests(orjson.dumps(record, default=repr) for record in self._records)


class Lines:
    """Lines of a JSON-lines file, each a row: those of `text` (u8) from `starts` to `ends` (i64); `numbers`: which
    lines of the file they are."""

    def __init__(self, shown: str, text: np.ndarray, starts: np.ndarray, ends: np.ndarray, numbers: np.ndarray) -> None:
        self.shown, self.numbers = shown, numbers
        self._text, self._starts, self._ends = text.data, starts, ends

    def __len__(self) -> int:
        return len(self.numbers)

    def records(self, where: Iterable[int] | None = None) -> list[Record]:
        places = range(len(self)) if where is None else where
        return [self._object(place, line) for place, line in zip(places, self._lines(where), strict=True)]

    def texts(self, where: Iterable[int]) -> Iterator[bytes]:
        return map(bytes, self._lines(where))

    def keys(self) -> np.ndarray:
        return _digests(self._lines())

    def _lines(self, where: Iterable[int] | None = None) -> Iterator[memoryview]:
        """One at a time: many views held at once are work for the garbage collector."""
        starts, ends = self._starts, self._ends
        if where is not None:
            places = np.array(list(where), np.int64)
            starts, ends = starts[places], ends[places]
        return (self._text[start:end] for start, end in zip(starts.tolist(), ends.tolist(), strict=True))

    def _object(self, place: int, text: memoryview) -> Record:
        try:
            value = orjson.loads(text)
        except orjson.JSONDecodeError as error:
            line, number = bytes(text), int(self.numbers[place])
            try:
                line.decode()
            except UnicodeDecodeError as at:
                problem = f"is not UTF-8 text ({at.reason})"
                raise BadInput(f"{self.shown}:{number}", line[:40], problem, "Save it as UTF-8.") from error
            raise bad_line(self.shown, number, line, f"is not JSON ({error.msg})") from error
        if not isinstance(value, dict):
            raise bad_line(self.shown, int(self.numbers[place]), bytes(text), "is not a JSON object")
        return value


class Table:
    """Rows of a Parquet file."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self._batch = batch

    def __len__(self) -> int:
        return self._batch.num_rows

    def records(self, where: Iterable[int] | None = None) -> list[Record]:
        batch = self._batch if where is None else self._batch.take(pa.array(list(where), pa.int64()))
        return [_without_nulls(record) for record in batch.to_pylist(maps_as_pydicts="strict")]

    def texts(self, where: Iterable[int]) -> Iterator[bytes]:
        return map(json_text, self.records(where))

    def keys(self) -> np.ndarray:
        try:
            frame = pl.DataFrame(pl.from_arrow(self._batch))
            return np.stack([frame.hash_rows(seed).to_numpy() for seed in _SEEDS], axis=1)
        except pl.exceptions.PolarsError:  # a type that polars does not have, such as a map
            return Records(self.records()).keys()


class Within:
    """Rows of a file whose folders state columns as well (`date=2026-11-23`); a row's own value comes first."""

    def __init__(self, piece: Piece, columns: Mapping[str, str]) -> None:
        self._piece, self._columns = piece, columns

    def __len__(self) -> int:
        return len(self._piece)

    def records(self, where: Iterable[int] | None = None) -> list[Record]:
        return [{**self._columns, **record} for record in self._piece.records(where)]

    def texts(self, where: Iterable[int]) -> Iterator[bytes]:
        return self._piece.texts(where)  # the folders still say the rest

    def keys(self) -> np.ndarray:
        return self._piece.keys() ^ _digests([orjson.dumps(self._columns, option=orjson.OPT_SORT_KEYS)])


def bad_line(shown: str, number: int, line: bytes, problem: str) -> BadInput:
    """The error of one line."""
    excerpt = line.strip()[:80].decode("utf-8", "replace")
    return BadInput(f"{shown}:{number}", excerpt, problem, "Correct or remove that line.")


def _digests(texts: Iterable[bytes | memoryview]) -> np.ndarray:
    digests = b"".join([hashlib.sha256(text).digest()[:16] for text in texts])
    return np.frombuffer(digests, "<u8").reshape(-1, 2)


def _without_nulls(record: Record) -> Record:
    """Nested structs without their null fields: a Parquet struct has no other way to say that a field is absent."""
    return {name: _pruned(value) if isinstance(value, dict | list) else value for name, value in record.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _pruned(inner) for name, inner in value.items() if inner is not None}
    return [_pruned(item) for item in value] if isinstance(value, list) else value
