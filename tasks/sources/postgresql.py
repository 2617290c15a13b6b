"""`postgresql://`: the rows of a query, read in one read-only snapshot of the database, page by page.

The server writes each row as JSON, so that what is kept is the database's own exact text of every value,
and the pages are bounded by the cursor of the last row (keyset paging): an index on the cursor's columns
makes a page cost what its rows cost. The password comes from PGPASSWORD or ~/.pgpass, never from the URI.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import orjson

from tasks.errors import BadInput, NightowlError, WorldFailed
from tasks.sources.hub import Trouble, with_retries
from tasks.sources.permission import microseconds, moment
from tasks.sources.pin import BrokenOff, Unreachable
from tasks.sources.stream import Row, Wanted
from tasks.sources.uri import SourceUri, nearest

log = logging.getLogger(__name__)

PAGE_BYTES = 8 * 2**20
_PAGE_ROWS = (100, 20_000)  # the first page, and the largest
LOCK_WAIT = "60s"  # for a table that is being changed
NO_CURSOR = "no_cursor"
NOT_JSON = "not_json"

_TIMES = ("timestamp with time zone", "timestamp without time zone", "date")
_NUMBERS = ("smallint", "integer", "bigint")
_TEXTS = ("text", "character varying", "uuid")
_FIRST = -(2**63)  # before every position
_SETTINGS = "SET LOCAL timezone = 'UTC'; SET LOCAL datestyle = 'ISO'; SET LOCAL bytea_output = 'hex'"
# A comment or a quoted part of SQL, in which a semicolon means nothing.
_QUIET = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|(?P<tag>\$\w*\$).*?(?P=tag)", re.DOTALL)


def one_query(query: str) -> str:
    """The query without its last semicolon; raises ValueError where it is not one statement that reads."""
    plain = _QUIET.sub(" ", query).strip()
    while plain.endswith(";"):
        plain = plain[:-1].rstrip()
    if not plain:
        raise ValueError("it is empty")
    if ";" in plain:
        raise ValueError("it has several statements, where one SELECT is read")
    if not re.match(r"\(*\s*(select|with|values|table)\b", plain, re.IGNORECASE):
        raise ValueError(f"it begins with {plain.split()[0].upper()}, where one SELECT is read")
    last = query.rstrip()
    while last.endswith(";"):
        last = last[:-1].rstrip()
    return last


class Query:
    """A query's rows as a stream, ordered by its cursor: columns that are unique together, the first one growing.

    One connection in one REPEATABLE READ, READ ONLY transaction; use it as a context manager.

    Raises BadInput for a query that cannot be read so, Unreachable where the server is not, WorldFailed else.
    """

    def __init__(self, uri: SourceUri, wanted: Wanted) -> None:
        self.uri = uri
        try:
            self.query = one_query(wanted.query or "")
        except ValueError as error:
            raise self._bad("query", wanted.query, f"cannot be read from ({error})", "Write one SELECT.") from error
        self.cursor = wanted.cursor
        self.permission = wanted.permission
        self.connection: Any = None
        self.types: tuple[str, ...] = ()
        self.unit: int | None = None
        self.overlap = 3600.0

    def __enter__(self) -> Query:
        import psycopg

        separator = "&" if self.uri.params else "?"
        defaults = "&".join(
            f"{name}={value}"
            for name, value in (("connect_timeout", 15), ("keepalives_idle", 30), ("tcp_user_timeout", 60_000))
            if name not in self.uri.params
        )
        place = f"{self.uri.text}{separator}{defaults}"
        self.connection = with_retries(
            self, lambda: psycopg.connect(place, application_name="nightowl", client_encoding="utf8")
        )
        self.connection.read_only = True
        self.connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        try:
            with self._explained():
                self.connection.execute(f"{_SETTINGS}; SET LOCAL lock_timeout = '{LOCK_WAIT}'")
                self._look()
        except BaseException:
            self.connection.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def now(self) -> int | None:
        if self.types[0] not in _TIMES:
            return None
        with self._explained():
            return microseconds(self.connection.execute("SELECT now()").fetchone()[0])

    def count(self, before: int) -> int:
        sql = f"SELECT count(*) {self._from} WHERE {self.finite} AND {self.columns[0]} < {self._value(0)}"
        with self._explained():
            return int(self.connection.execute(sql, (self._written(before),)).fetchone()[0])

    def _written(self, position: int) -> str:
        """A position as the cursor's first column has it."""
        return str(position) if self.unit == 1 else moment(position).isoformat()

    def rows(self, *, after: tuple[Any, ...] | None, since: int | None) -> Iterator[Row]:
        yield from self._without_cursor()
        columns = ", ".join(self.columns)
        order = f"ORDER BY {columns}"
        given: list[Any] = []
        where = f"{self.finite}"
        if since is not None:
            where += f" AND {self.columns[0]} >= {self._value(0)}"
            given = [self._written(since)]
        keys = ", ".join(self._value(n) for n in range(len(self.columns)))
        limit = _PAGE_ROWS[0]
        while True:
            condition, values = where, given
            if after is not None:
                condition, values = f"{self.finite} AND ({columns}) > ({keys})", [str(value) for value in after]
            # One row more than the page tells whether its last row has an equal beyond it.
            sql = f"SELECT row_to_json(nightowl)::text {self._from} WHERE {condition} {order} LIMIT %s"
            page = self._page(sql, [*values, limit + 1])
            if not page:
                return
            rows = [self.row(line) for line in page]
            whole = len(rows) <= limit
            if not whole and rows[-1].key != rows[-2].key:
                rows.pop()
            yield from rows
            if whole:
                return
            after = rows[-1].key
            size = sum(len(row.line) for row in rows) / len(rows)
            limit = max(1, min(_PAGE_ROWS[1], int(PAGE_BYTES / size), limit * 8))

    def row(self, line: bytes) -> Row:
        try:
            record = orjson.loads(line)
        except orjson.JSONDecodeError:
            # Such as half a surrogate pair in a column of type json; the standard library reads it.
            import json

            record = json.loads(line)
            return Row(self._position(record), self._key(record), record, line, NOT_JSON)
        return Row(self._position(record), self._key(record), record, line)

    def _key(self, record: dict[str, Any]) -> tuple[Any, ...]:
        return tuple(record[name] for name in self.cursor)

    def _position(self, record: dict[str, Any]) -> int | None:
        value = record[self.cursor[0]]
        if self.unit is None or isinstance(value, int):
            return None if self.unit is None else value
        try:
            return microseconds(datetime.fromisoformat(value))
        except ValueError as error:
            problem = "holds a time outside the years 1 to 9999"
            raise self._bad("cursor", value, problem, "Leave such rows out in the query.") from error

    def _look(self) -> None:
        """The query's columns and the types of its cursor, before anything is read."""
        found = self.connection.execute(f"SELECT * {self._from} LIMIT %s", (0,))
        names = [column.name for column in found.description]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise self._bad("query", doubled[0], "is the name of two of its columns", "Name them apart with AS.")
        if absent := [name for name in self.cursor if name not in names]:
            way_out = f"{nearest(absent[0], names)}Columns: {', '.join(names)}."
            raise self._bad("cursor", absent[0], "is not a column of the query", way_out)
        self.permission.require(names, self.uri)
        oids = {column.name: column.type_code for column in found.description}
        types = [
            self.connection.execute("SELECT format_type(%s::oid, NULL)", (oids[name],)).fetchone()[0]
            for name in self.cursor
        ]
        for name, kind in zip(self.cursor, types, strict=True):
            if kind not in (*_TIMES, *_NUMBERS, *_TEXTS):
                raise self._bad(
                    "cursor",
                    name,
                    f"is of type {kind}, in which a place cannot be kept exactly",
                    f"Use a column of type {', '.join((*_NUMBERS, *_TIMES, *_TEXTS))}, or cast it in the query.",
                )
        self.types = tuple(types)
        self.unit = 1 if types[0] in _NUMBERS else 10**6 if types[0] in _TIMES else None

    @property
    def columns(self) -> list[str]:
        """The cursor's columns, quoted."""
        return ['nightowl."' + name.replace('"', '""').replace("%", "%%") + '"' for name in self.cursor]

    @property
    def finite(self) -> str:
        """The condition that a row has a place in the order."""
        conditions = [f"{column} IS NOT NULL" for column in self.columns]
        conditions += [f"isfinite({c})" for c, kind in zip(self.columns, self.types, strict=True) if kind in _TIMES]
        return f"({' AND '.join(conditions)})"

    @property
    def _from(self) -> str:
        # The line end closes a comment that the query may end with.
        return "FROM (" + self.query.replace("%", "%%") + "\n) AS nightowl"

    def _value(self, number: int) -> str:
        return f"CAST(%s::text AS {self.types[number]})"

    def _without_cursor(self) -> Iterator[Row]:
        """Rows that have no place in the order: each once, set aside."""
        with self._explained():
            # With a value the driver sends one statement alone, whatever the query says.
            sql = f"SELECT count(*) {self._from} WHERE NOT {self.finite} AND %s"
            count = self.connection.execute(sql, (True,)).fetchone()[0]
        for number in range(count):
            yield Row(None if self.unit is None else _FIRST, (NO_CURSOR, number), {}, b"{}", NO_CURSOR)

    def _page(self, sql: str, values: Sequence[Any]) -> list[bytes]:
        with self._explained():
            try:
                return [line.encode() for (line,) in self.connection.execute(sql, values)]
            except UnicodeDecodeError as error:
                raise self._bad(
                    "query", error.object[:80], "yields text that is not UTF-8", "Convert it in the query."
                ) from error

    def _bad(self, field: str, value: object, problem: str, way_out: str) -> BadInput:
        return BadInput(f"{self.uri.part}.{field}", value, problem, way_out)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import psycopg

        try:
            yield
        except psycopg.Error as error:
            raise self._refusal(error) from error

    def explain(self, error: Exception) -> Trouble | None:
        """A connection that was not made, for `with_retries`."""
        import psycopg

        if not isinstance(error, psycopg.Error):
            return None
        said = _said(error)
        place = f"{self.uri.field}: {self.uri.text}"
        if _REFUSED.search(said):
            way_out = "Set PGPASSWORD, or put the password into ~/.pgpass, and check the user in the URI."
            return Trouble(WorldFailed(place, f"the server refuses the user or the password ({said})", way_out), False)
        if _NO_DATABASE.search(said):
            way_out = "Correct it after the last '/'."
            return Trouble(self.uri.bad(f"names a database that is not there ({said})", way_out), False)
        if isinstance(error, psycopg.ProgrammingError):
            return Trouble(
                self.uri.bad(f"is no address of a database ({said})", "Write postgresql://user@host/db."), False
            )
        way_out = "Check host, port and network; what was read before can be used offline."
        return Trouble(Unreachable(place, f"the server cannot be reached ({said})", way_out), True)

    def _refusal(self, error: Any) -> NightowlError:
        """What the server says of a statement, as one error for the user."""
        state, said = error.sqlstate or "", _said(error)
        place = f"{self.uri.field}: {self.uri.text}"
        if state == "42501":
            return WorldFailed(place, f"the user may not read this ({said})", "Ask for SELECT on what the query reads.")
        if state == "25006" or "data-modifying" in said:
            return self._bad("query", self.query, f"writes, and sources are only read ({said})", "Write one SELECT.")
        if state[:2] in ("42", "22", "2F", "0A", "21", "P0"):
            return self._bad("query", self.query, f"is refused by the server ({said})", "Correct it.")
        if state == "57014":
            return WorldFailed(place, f"the query was cancelled ({said})", "Raise statement_timeout, or read less.")
        if state[:2] in ("53", "54", "58"):
            return WorldFailed(place, f"the server lacks room ({said})", "Run again when it has some.")
        return BrokenOff(place, f"the server broke off ({said})", "Run again; what was read is kept.")


# The driver hands a refused connection on as text alone, without its SQLSTATE.
_REFUSED = re.compile(
    r"authentication failed|no password supplied|no pg_hba\.conf entry|role \S+ does not exist|not permitted to log in"
)
_NO_DATABASE = re.compile(r"database \S+ does not exist")


def _said(error: Any) -> str:
    return " ".join(str(error.diag.message_primary or error).split())[:300]
