"""The rows of a snapshot, in batches, in the same columns from the first batch to the last."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path

import numpy as np
import orjson
import polars as pl

from tasks.errors import BadInput
from tasks.sources.columns import MOST_COLUMNS, Columns, frame, observe, stated
from tasks.sources.pieces import Piece, Within
from tasks.sources.records import is_data_file, read_pieces
from tasks.sources.snapshot import Snapshot
from tasks.sources.uri import SourceUri, parse_uri
from tasks.store import write_whole

DATA = "data"
COLUMNS = "columns.json"
ROW_NUMBER = "source_row"


class Batch:
    """Rows of a snapshot that have not been parsed yet.

    `first`: the number of the first one in the snapshot; `keys`: (rows, 2) u64, equal for rows of equal content.
    """

    def __init__(self, columns: Columns, piece: Piece, first: int) -> None:
        self._columns, self._piece = columns, piece
        self.first = first

    @cached_property
    def keys(self) -> np.ndarray:
        return self._piece.keys()

    def __len__(self) -> int:
        return len(self._piece)

    def frame(self, places: np.ndarray | None = None) -> pl.DataFrame:
        """The rows, or those at some places in the batch.

        Every frame of a snapshot has the same columns: those of all files together, and `source_row` (i64), which
        numbers the rows from 0 over all files in the order of their names. A column is a scalar, a list of scalars
        or a list of structs of scalars (such as `messages`). Whatever is nested deeper than that, or is text in one
        row and an object or a list in another, is a String column: text stays as it is, anything else is its JSON
        text. CSV cells are text, and so are columns that a file's folders state (`date=2026-11-23/`). A field that a
        row lacks is null.
        """
        records = self._piece.records(None if places is None else places.tolist())
        numbers = np.arange(len(self)) if places is None else places
        return frame(self._columns, records).with_columns(pl.Series(ROW_NUMBER, self.first + numbers, dtype=pl.Int64))


def read_batches(folder: Path, snapshot: Snapshot) -> Iterator[Batch]:
    """The raw rows of a snapshot whose files lie in `folder` (`Store.folder`), at most 50,000 to a batch.

    Memory is bounded by a batch, whatever the size of the source.
    """
    columns: Columns = orjson.loads((folder / COLUMNS).read_bytes())
    row = 0
    for _, parts in pieces(parse_uri(snapshot.uri), folder / DATA):
        for piece in parts:
            yield Batch(columns, piece, row)
            row += len(piece)


def survey(uri: SourceUri, folder: Path) -> int:
    """Read every row below `folder` once: how many there are, their columns into columns.json.

    Raises BadInput, with file and line, for what cannot be read.
    """
    columns: Columns = {}
    rows = 0
    for _, parts in pieces(uri, folder / DATA):
        for piece in parts:
            observe(columns, piece.records())
            rows += len(piece)
            if len(columns) > MOST_COLUMNS:
                names = ", ".join(list(columns)[:3])
                problem = f"has rows with {len(columns)} different keys ({names}, ...)"
                raise uri.bad(problem, "Give rows that have the same keys, such as prompt and completion.")
    if rows and not columns:
        raise uri.bad("has rows without any field", "Give rows that have fields, such as prompt and completion.")
    if ROW_NUMBER in columns:
        raise BadInput(
            ROW_NUMBER, str(columns[ROW_NUMBER]), "is a column of the source", "Rename it: rows are numbered so."
        )
    write_whole(folder / COLUMNS, orjson.dumps(columns, option=orjson.OPT_INDENT_2).decode())
    return rows


def pieces(uri: SourceUri, data: Path) -> Iterator[tuple[Path, Iterator[Piece]]]:
    """The data files below a folder, in the order in which their rows are numbered, with the rows of each."""
    header = has_header(uri)
    for path in sorted(path for path in data.rglob("*") if path.is_file() and is_data_file(path.name)):
        name = str(path.relative_to(data))
        parts = read_pieces(path, name, header=header)
        columns = stated(name)
        yield path, (Within(piece, columns) for piece in parts) if columns else parts


def has_header(uri: SourceUri) -> bool:
    """Whether the URI's CSV files begin with a header (`header=false` says that they don't)."""
    value = uri.params.get("header", "true")
    if value not in ("true", "false"):
        raise uri.bad(f"has header={value}", "Write header=true or header=false.")
    return value == "true"
