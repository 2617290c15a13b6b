"""From a source's table to conversations: detect the format, read each row, set aside what cannot be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from tasks.conversations import columnar
from tasks.conversations.canonical import Unconvertible
from tasks.conversations.formats import FORMATS, Format
from tasks.conversations.identity import row_ids
from tasks.conversations.schema import CONVERSATION, MESSAGES
from tasks.conversations.turns import Reading, Turn
from tasks.errors import BadInput
from tasks.recipe import Kind

SET_ASIDE = {"source_row": pl.Int64, "reason": pl.String, "detail": pl.String}
_LOOK_AT = 100
_SLICE = 20_000


def convert(
    raw: pl.DataFrame,
    *,
    source: str,
    revision: str,
    kind: Kind,
    format: str | None = None,
    columns: Mapping[str, str] | None = None,
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Conversations (schema CONVERSATION) of a source's table, and the rows that cannot be one.

    `raw` has the source's columns as `tasks.sources` reads them (structs within structs as JSON text, which alone
    tells a null from a field that is not there) and `source_row` (i64). `format` names one of `formats()`, None: it is
    detected; `columns` maps our field names to the source's columns. The second frame has source_row,
    reason and detail; every row of `raw` is in exactly one of the two.

    Raises BadInput where no or more than one format fits, with the columns and three rows.
    """
    table = mapped(raw, columns)
    name = format or detect(table)
    if name not in FORMATS:
        raise BadInput("format", name, "is not a format", f"Formats: {', '.join(FORMATS)}.")
    chosen = FORMATS[name]
    table = chosen.named(table)
    if missing := chosen.missing(table):
        raise _unfit(
            "format",
            name,
            f"needs {', '.join(map(repr, missing))}, which the source does not have",
            table,
            "Map them in `columns`, from field name to the source's column, or name another format.",
        )
    gathered: list[tuple[int, str, str]] = []
    if chosen.gather:
        table, gathered = chosen.gather(table)
    plain = columnar.READERS[name](table) if name in columnar.READERS and table.height else None
    rest = table.filter(~plain.which) if plain else table
    parts = [_read(rest.slice(at, _SLICE), chosen) for at in range(0, max(rest.height, 1), _SLICE)]
    set_aside = pl.concat([pl.DataFrame(gathered, schema=SET_ASIDE, orient="row"), *(aside for _, aside in parts)])
    read = [part for part, _ in parts]
    conversations = pl.concat([plain.rows, *read]).sort("source_row") if plain else pl.concat(read)
    conversations = conversations.with_columns(source=pl.lit(source), revision=pl.lit(revision), kind=pl.lit(kind))
    conversations = row_ids(conversations).select(*CONVERSATION).cast(CONVERSATION)  # type: ignore[arg-type]
    if conversations.height + set_aside.height != raw.height:
        raise RuntimeError(f"{raw.height} rows in, {conversations.height} converted and {set_aside.height} set aside")
    return conversations, set_aside.sort("source_row")


def detect(raw: pl.DataFrame) -> str:
    """The name of the format that a table is in, by its columns and first 100 rows.

    Raises BadInput where none or more than one fits, with the columns and three rows.
    """
    first = raw.head(_LOOK_AT)
    fitting = [known.name for known in FORMATS.values() if known.fits(first)]
    if len(fitting) == 1:
        if rivals := FORMATS[fitting[0]].rivals(first):
            of, names = rivals
            raise _unfit(
                "columns",
                names,
                f"may each be the {of} of {fitting[0]}, and differ",
                raw,
                f"Map the fields in `columns` (--column of the command), with {of}={names[0]} or {of}={names[1]}.",
            )
        return fitting[0]
    if fitting:
        problem, way_out = f"fits more than one format ({', '.join(fitting)})", "Name one of them in `format`."
    else:
        known_columns = "; ".join(f"{known.name}: {', '.join(known.required)}" for known in FORMATS.values())
        problem = "fits no format"
        way_out = "Name one in `format`, or map the fields of one in `columns` (--column of the command). "
        way_out += f"Formats need {known_columns}."
    columns = [name for name in raw.columns if name != "source_row"]
    raise _unfit("columns", columns, problem, raw, way_out)


def formats() -> dict[str, str]:
    """The formats by name, each with a line on what it holds."""
    return {known.name: known.about for known in FORMATS.values()}


def mapped(raw: pl.DataFrame, columns: Mapping[str, str] | None) -> pl.DataFrame:
    """The table with the mapped columns alone, under our names; all of it without a mapping."""
    if columns is None:
        return raw
    fields = sorted({field for known in FORMATS.values() for field in (*known.required, *known.optional)})
    if unknown := sorted(set(columns) - set(fields)):
        raise BadInput(
            f"columns.{unknown[0]}", columns[unknown[0]], "maps to no field we know", f"Fields: {', '.join(fields)}."
        )
    if absent := sorted(set(columns.values()) - set(raw.columns)):
        raise _unfit(
            "columns", absent[0], "is not a column of the source", raw, "Give the source's column after our field name."
        )
    return raw.select("source_row", **{field: pl.col(column) for field, column in columns.items()})


def _read(table: pl.DataFrame, form: Format) -> tuple[pl.DataFrame, pl.DataFrame]:
    names = [name for name in table.columns if name in (*form.required, *form.optional, "path")]
    rows: list[int] = []
    readings: list[Reading] = []
    aside: list[tuple[int, str, str]] = []
    for source_row, row in zip(table["source_row"], table.select(names).iter_rows(named=True), strict=True):
        try:
            readings.append(form.read(form.row(row)))
            rows.append(source_row)
        except Unconvertible as error:
            aside.append((source_row, error.reason, error.detail))
    frame = pl.DataFrame(
        {
            "source_row": pl.Series(rows, dtype=pl.Int64),
            "messages": _message_column([reading.turns for reading in readings]),
            "tools": pl.Series([reading.tools for reading in readings], dtype=pl.String),
        }
    )
    return frame, pl.DataFrame(aside, schema=SET_ASIDE, orient="row")


def _message_column(conversations: Sequence[Sequence[Turn]]) -> pl.Series:
    """Turns as a column of type MESSAGES, built flat: many times faster than from nested objects."""
    turns = [turn for conversation in conversations for turn in conversation]
    calls = [call for turn in turns for call in turn.calls or ()]
    roles, contents, thoughts, _, call_ids = zip(*turns, strict=True) if turns else [()] * 5
    call_struct = pa.StructArray.from_arrays(
        [_text(call[0] for call in calls), _text(call[1] for call in calls)], ["name", "arguments"]
    )
    call_lists = pa.LargeListArray.from_arrays(
        _offsets([len(turn.calls or ()) for turn in turns]),
        call_struct,
        mask=pa.array([turn.calls is None for turn in turns], pa.bool_()),
    )
    messages = pa.StructArray.from_arrays(
        [
            _text(roles),
            _text(contents),
            _text(thoughts),
            call_lists,
            _text(call_ids),
        ],
        ["role", "content", "thinking", "tool_calls", "tool_call_id"],
    )
    column = pa.LargeListArray.from_arrays(_offsets([len(turns) for turns in conversations]), messages)
    return pl.Series("messages", pl.from_arrow(column)).cast(MESSAGES)


def _text(values: Any) -> pa.Array:
    return pa.array(list(values), pa.large_string())


def _offsets(lengths: Sequence[int]) -> pa.Array:
    offsets = [0]
    for length in lengths:
        offsets.append(offsets[-1] + length)
    return pa.array(offsets, pa.int64())


def _unfit(field: str, value: object, problem: str, raw: pl.DataFrame, way_out: str) -> BadInput:
    rows = "\n".join(
        "  " + ", ".join(f"{name}: {str(text)[:80]!r}" for name, text in row.items() if name != "source_row")
        for row in raw.head(3).to_dicts()
    )
    columns = ", ".join(f"{name} ({dtype})" for name, dtype in raw.schema.items() if name != "source_row")
    return BadInput(field, value, problem, f"{way_out}\nColumns: {columns}. First rows:\n{rows or '  (none)'}")
