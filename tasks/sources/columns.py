"""Columns of records: one table shape for all files of a source, found once and kept with the snapshot.

Sources write nested values freely: a message's content is text here and a list of parts there, a
tool's arguments have other fields in every row. A table type that unites all of them would invent
nulls and turn 3 into "3". So one level of nesting is kept as it is (a list of scalars, or a list of
structs of scalars, which is what messages are), and anything deeper, or of different kinds in
different rows, becomes its JSON text, in which nothing is lost.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any
from urllib.parse import unquote

import numpy as np
import orjson
import polars as pl
import pyarrow as pa

# A shape is what JSON can hold: the name of a scalar; [shape] for a list of scalars; {field: scalar}
# in a list for a list of structs. `json` is a text column in which all but strings are JSON text.
Shape = Any
Columns = dict[str, Shape]

_SCALARS: dict[str, Any] = {
    "null": pl.Null,
    "boolean": pl.Boolean,
    "integer": pl.Int64,
    "number": pl.Float64,
    "text": pl.String,
    "json": pl.String,
}
# Whole numbers up to here are also exact as the floats they become in a column with floats.
_EXACT = 2**53
# Objects of more fields than this are keyed by something else than names: their text is kept.
_MOST_FIELDS = 100
# Tables have fewer columns; rows with other keys each would make a column of each.
MOST_COLUMNS = 2000
_NUMBERS = (("integer", "number"), ("number", "integer"))
_NAMES = {type(None): "null", bool: "boolean", int: "integer", float: "number", str: "text"}


def observe(columns: Columns, records: Iterable[dict[str, Any]]) -> None:
    """Widen `columns` so that every record fits; the order is that of first appearance."""
    for record in records:
        for name, value in record.items():
            known = columns.get(name, "null")
            if known != "json":
                columns[name] = _join(known, _shape(value))


def stated(name: str) -> dict[str, str]:
    """The columns that a file's folders state, as Hive writes them: `date=2026-11-23/part.jsonl`; all text."""
    pairs = [part.partition("=") for part in name.split("/")[:-1]]
    return {
        unquote(column): unquote(value)
        for column, equals, value in pairs
        if column and equals and value != "__HIVE_DEFAULT_PARTITION__"
    }


def dtype(shape: Shape) -> Any:
    """The Polars type of a shape."""
    if isinstance(shape, str):
        return _SCALARS[shape]
    inner = shape[0]
    if isinstance(inner, dict):
        return pl.List(pl.Struct({name: dtype(field) for name, field in inner.items()}))
    return pl.List(dtype(inner))


def frame(columns: Columns, records: list[dict[str, Any]]) -> pl.DataFrame:
    """Records as a frame of exactly these columns; a field that a record lacks is null."""
    return pl.DataFrame([_column(name, [record.get(name) for record in records], columns[name]) for name in columns])


def _column(name: str, values: list[Any], shape: Shape) -> pl.Series:
    if isinstance(shape, list) and isinstance(shape[0], dict):
        return pl.Series(name, pl.from_arrow(_objects(values, shape[0]))).cast(dtype(shape))
    if shape != "text" or not {type(value) for value in values} <= {str, type(None)}:
        values = [_fit(value, shape) for value in values]
    return pl.Series(name, values, dtype=dtype(shape), strict=True)


def _objects(values: list[Any], fields: dict[str, str]) -> pa.Array:
    """Lists of objects of scalars, built field by field over all of them: many times faster than one by one."""
    items = [item for value in values for item in value or ()]
    counts = np.fromiter((len(value or ()) for value in values), np.int64, len(values))
    none: dict[str, Any] = {}
    parts = [
        _column(field, [(item or none).get(field) for item in items], shape).to_arrow()
        for field, shape in fields.items()
    ]
    missing = pa.array([item is None for item in items], pa.bool_()) if None in items else None
    objects = pa.StructArray.from_arrays(parts, list(fields), mask=missing)
    absent = pa.array([value is None for value in values], pa.bool_()) if None in values else None
    return pa.LargeListArray.from_arrays(pa.array(np.concatenate([[0], np.cumsum(counts)])), objects, mask=absent)


def _shape(value: object) -> Shape:
    name = _NAMES.get(type(value))
    if name:
        return name if name != "integer" or -_EXACT <= value <= _EXACT else "json"  # type: ignore[operator]
    if isinstance(value, dict):
        return "json"
    if not isinstance(value, list):
        return "text"  # what Parquet has beyond JSON: dates, decimals, bytes
    if any(isinstance(item, dict) for item in value):
        if not all(item is None or isinstance(item, dict) for item in value):
            return ["json"]
        fields: dict[str, str] = {}
        for item in value:
            for key, inner in (item or {}).items():
                found = _shape(inner)
                fields[key] = _join(fields.get(key, "null"), found if isinstance(found, str) else "json")
        # A struct needs a field; an object without any is told from null by its text alone.
        return [fields] if 0 < len(fields) <= _MOST_FIELDS else ["json"]
    inner_shape: Shape = "null"
    for item in value:
        found = _shape(item)
        inner_shape = _join(inner_shape, found if isinstance(found, str) else "json")
    return [inner_shape]


def _join(one: Shape, other: Shape) -> Shape:
    """The narrowest shape that holds both."""
    if one == other or other == "null":
        return one
    if one == "null":
        return other
    if isinstance(one, str) or isinstance(other, str):
        return "number" if (one, other) in _NUMBERS else "json"
    a, b = one[0], other[0]
    if isinstance(a, dict) and isinstance(b, dict):
        keys = [*a, *(key for key in b if key not in a)]
        if len(keys) > _MOST_FIELDS:
            return ["json"]
        return [{key: _join(a.get(key, "null"), b.get(key, "null")) for key in keys}]
    if isinstance(a, dict) or isinstance(b, dict):
        return one if b == "null" else other if a == "null" else ["json"]
    return [_join(a, b)]


def _fit(value: Any, shape: Shape) -> Any:
    if value is None or shape == "null":
        return None
    if isinstance(shape, str):
        if shape == "json":
            return value if isinstance(value, str) else json_text(value).decode()
        if shape == "text":
            return value if isinstance(value, str) else _plain_text(value)
        return float(value) if shape == "number" else value
    inner = shape[0]
    if isinstance(inner, dict):
        return [
            item if item is None else {key: _fit(item.get(key), field) for key, field in inner.items()}
            for item in value
        ]
    return [_fit(item, inner) for item in value]


def json_text(value: Any) -> bytes:
    """The value as JSON on one line; what JSON has no form for is text."""
    try:
        return orjson.dumps(value, default=_plain_text)
    except TypeError:
        # Integers of more than 64 bits, which the standard library writes and orjson does not.
        import json

        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=_plain_text).encode()


def _plain_text(value: Any) -> str:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta | Decimal):
        return str(value)
    if isinstance(value, bytes):
        import base64

        return base64.b64encode(value).decode()
    raise TypeError(f"a {type(value).__name__} in a data file")
