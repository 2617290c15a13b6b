"""What keeps a Prefect server on SQLite from waiting for itself, on Python 3.11.

A statement that fails ("database is locked", where another writer came first) stays with its cursor, the cursor in the
frames of the error, and the error, which aiosqlite ties into a ring, until the garbage collector finds it. To free the
cursor then is to reset its statement, under the mutex of the connection. Others use the connection by now, and where
they wait for the database, up to 60 seconds, they hold the mutex. The collector runs wherever it happens to, in the
server's event loop too: that stands still, the writer whom the others wait for along with it, and nobody is answered
for a minute. From Python 3.12 on, a cursor keeps no statement that failed; this makes it so on 3.11.

SQLAlchemy loads this module into the server by `?plugin=nightowl` in the database's URL; pyproject.toml names it.
"""

from __future__ import annotations

import sqlite3
from typing import Any, Self

from sqlalchemy.engine import CreateEnginePlugin
from sqlalchemy.engine.url import URL


class Sqlite(CreateEnginePlugin):
    """The connections of this engine have cursors that keep no statement that failed."""

    def __init__(self, url: URL, kwargs: dict[str, Any]) -> None:
        super().__init__(url, kwargs)
        kwargs["connect_args"] = {**kwargs.get("connect_args", {}), "factory": _Connection}

    def update_url(self, url: URL) -> URL:
        return url


class _Connection(sqlite3.Connection):
    def cursor(self, *_: Any) -> Any:
        return super().cursor(_Cursor)


class _Cursor(sqlite3.Cursor):
    """It closes itself in the thread that executes, where nobody else can have the mutex."""

    def execute(self, *statement: Any) -> Self:
        try:
            return super().execute(*statement)
        except sqlite3.Error:
            self.close()
            raise

    def executemany(self, *statement: Any) -> Self:
        try:
            return super().executemany(*statement)
        except sqlite3.Error:
            self.close()
            raise
