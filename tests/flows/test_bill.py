"""The bill of a night: only what it did itself counts, and money only where there is a price."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import polars as pl
import pytest

from flows.bill import bill
from tasks.evaluation import Scores
from tasks.recipe import Recipe, load
from tasks.sources import Snapshot
from tasks.store import Manifest, Store

SECONDS = {"fetch": 36.0, "train": 1800.0, "evaluate": 1800.0}


def recipe(*changes: str) -> Recipe:
    return load("demo", changes)[0]


@pytest.fixture
def outputs(store: Store) -> list[Manifest]:
    """A snapshot of 1,000 bytes and scores of 12 generated tokens."""

    def write(folder: Path) -> dict[str, object]:
        pl.DataFrame({"new_tokens": [5, 7]}, schema={"new_tokens": pl.Int32}).write_parquet(folder / "items.parquet")
        return {"base": "b", "adapter": None, "suites": {}, "seconds": 1.0}

    source = {"uri": "sample://chat", "revision": "1", "requested": None, "rows": 3, "size": 1000, "licence": None}
    return [store.make(Snapshot, {"n": 1}, lambda _: source)[0], store.make(Scores, {"n": 2}, write)[0]]


def test_what_the_night_made_is_counted(store: Store, outputs: list[Manifest]) -> None:
    spent = bill(recipe(), SECONDS, datetime.now(UTC) - timedelta(minutes=1), outputs, store)
    assert (spent.bytes_fetched, spent.tokens_generated, spent.tokens_trained) == (1000, 12, 0)
    assert spent.gpu_seconds == 3600
    assert spent.cost is None
    assert "bill/cost" not in spent.metrics


def test_what_was_in_the_store_is_not(store: Store, outputs: list[Manifest]) -> None:
    spent = bill(recipe(), SECONDS, datetime.now(UTC) + timedelta(minutes=1), outputs, store)
    assert (spent.bytes_fetched, spent.tokens_generated) == (0, 0)


def test_money(store: Store) -> None:
    priced = recipe("price.gpu_hour=2.5", "price.data_hour=0.1", "price.currency=CNY")
    spent = bill(priced, SECONDS, datetime.now(UTC), [], store)
    assert spent.cost == pytest.approx(2.5 + 0.1 * 36 / 3600)
    assert {"what": "cost", "amount": "2.50 CNY", "on": ""} in spent.lines
