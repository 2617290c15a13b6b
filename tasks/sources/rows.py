"""The rows of a snapshot, in batches, in the same columns from the first batch to the last."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import orjson
import polars as pl

from tasks.errors import BadInput
from tasks.sources.columns import Columns, frame, observe
from tasks.sources.records import is_data_file, read_records
from tasks.sources.snapshot import Snapshot
from tasks.sources.uri import SourceUri, parse_uri
from tasks.store import write_whole

DATA = "data"
COLUMNS = "columns.json"
ROW_NUMBER = "source_row"


def read_rows(folder: Path, snapshot: Snapshot) -> Iterator[pl.DataFrame]:
    """The raw rows of a snapshot whose files lie in `folder` (`Store.folder`), at most 50,000 to a frame.

    Every frame has the same columns: those of all files together, and `source_row` (i64), which numbers
    the rows from 0 over all files in the order of their names. A column is a scalar, a list of scalars
    or a list of structs of scalars (such as `messages`). Whatever is nested deeper than that, or is text
    in one row and an object or a list in another, is a String column: text stays as it is, anything else
    is its JSON text. CSV cells are text. A field that a row lacks is null.

    Memory is bounded by a batch, whatever the size of the source.
    """
    columns: Columns = orjson.loads((folder / COLUMNS).read_bytes())
    header = has_header(parse_uri(snapshot.uri))
    row = 0
    for path in data_files(folder):
        for records in read_records(path, shown_name(folder, path), header=header):
            yield frame(columns, records).with_columns(
                pl.int_range(row, row + len(records), dtype=pl.Int64).alias(ROW_NUMBER)
            )
            row += len(records)


def survey(folder: Path, *, header: bool = True) -> int:
    """Read every row below `folder` once: how many there are, their columns into columns.json.

    Raises BadInput, with file and line, for what cannot be read.
    """
    columns: Columns = {}
    rows = 0
    for path in data_files(folder):
        for records in read_records(path, shown_name(folder, path), header=header):
            observe(columns, records)
            rows += len(records)
    if ROW_NUMBER in columns:
        raise BadInput(
            ROW_NUMBER, str(columns[ROW_NUMBER]), "is a column of the source", "Rename it: rows are numbered so."
        )
    write_whole(folder / COLUMNS, orjson.dumps(columns, option=orjson.OPT_INDENT_2).decode())
    return rows


def data_files(folder: Path) -> list[Path]:
    """The data files of a snapshot in the order in which their rows are numbered."""
    data = folder / DATA
    return sorted(path for path in data.rglob("*") if path.is_file() and is_data_file(path.name))


def shown_name(folder: Path, path: Path) -> str:
    """A data file's name in messages."""
    return str(path.relative_to(folder / DATA))


def has_header(uri: SourceUri) -> bool:
    """Whether the URI's CSV files begin with a header (`header=false` says that they don't)."""
    value = uri.params.get("header", "true")
    if value not in ("true", "false"):
        raise uri.bad(f"has header={value}", "Write header=true or header=false.")
    return value == "true"
