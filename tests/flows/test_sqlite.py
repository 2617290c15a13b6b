"""The database of the local Prefect server: SQLite, whose connections have nothing of a statement that failed."""

from __future__ import annotations

import asyncio
import gc
import time
from pathlib import Path

import pytest
from prefect.server.database.configurations import AioSqliteConfiguration
from sqlalchemy.exc import OperationalError

from flows import services
from flows.component import free_port

BUSY_SECONDS = 8
URL = "PREFECT_SERVER_DATABASE_CONNECTION_URL"


def test_an_error_that_is_forgotten_late_waits_for_nobody_who_uses_its_connection(nightowl_home: Path) -> None:
    nightowl_home.mkdir()
    with services.prefect_server(free_port(0), for_people=False) as (_, server, _):
        url = server.extra[URL]
    file = nightowl_home / "prefect" / "prefect.db"
    assert str(file) in url
    file.parent.mkdir(exist_ok=True)
    assert asyncio.run(_forget(url)) < BUSY_SECONDS / 2


async def _forget(url: str) -> float:
    """Seconds for which the event loop stands still while an error of another connection's user is collected."""
    engine = await AioSqliteConfiguration(url).engine()
    async with engine.connect() as writer, engine.connect() as other:
        await writer.exec_driver_sql("CREATE TABLE one (x)")
        await writer.exec_driver_sql("BEGIN IMMEDIATE")
        await other.exec_driver_sql("PRAGMA busy_timeout = 0")
        with pytest.raises(OperationalError, match="locked") as failed:
            await other.exec_driver_sql("INSERT INTO one VALUES (1)")
        await other.rollback()
        await other.exec_driver_sql(f"PRAGMA busy_timeout = {BUSY_SECONDS * 1000}")
        waiting = asyncio.create_task(other.exec_driver_sql("INSERT INTO one VALUES (2)"))
        await asyncio.sleep(0.5)
        start = time.monotonic()
        del failed
        gc.collect()
        seconds = time.monotonic() - start
        await writer.rollback()
        await asyncio.wait([waiting])
        waiting.exception()
    await engine.dispose()
    return seconds


@pytest.mark.parametrize("name", ["PREFECT_SERVER_DATABASE_DRIVER", "PREFECT_API_DATABASE_CONNECTION_URL"])
def test_a_database_that_is_named_stays(name: str, nightowl_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nightowl_home.mkdir()
    with services.prefect_server(free_port(0), for_people=False, state={name: "theirs"}) as (_, server, _):
        assert server.extra.get(URL) is None
    monkeypatch.setenv(name, "theirs")
    with services.prefect_server(free_port(0), for_people=False) as (_, server, _):
        assert server.extra.get(URL) is None
