"""Which held-out conversations are a suite's items.

Items are taken in the order of their row ids. A row id is a hash of the content, so the order says
nothing about a row, and as data grows most of last night's items are tonight's as well.
"""

from __future__ import annotations

from pathlib import Path

import polars as pl

from tasks.errors import BadInput
from tasks.recipe import Suite
from tasks.store import digest


def suite_items(test: Path, suite: Suite) -> pl.DataFrame:
    """A suite's items: row_id, messages, tools; at most `suite.items` rows of the mixture's test split.

    Raises BadInput where the split holds no conversation of the suite's kind.
    """
    rows = pl.scan_parquet(test)
    ids = rows.filter(pl.col("kind") == suite.kind).select(pl.col("row_id").unique().sort().head(suite.items))
    # Two passes: ids alone are sorted, so ten million long rows never sit in memory together.
    chosen = ids.collect()
    if chosen.is_empty():
        raise BadInput(
            f"evaluation.suites.{suite.name}.kind",
            suite.kind,
            "has no conversations in the test split",
            "Give the source more rows, raise mixture.test, or remove the suite.",
        )
    items = rows.select("row_id", "messages", "tools").filter(pl.col("row_id").is_in(chosen["row_id"].implode()))
    return items.unique("row_id").sort("row_id").collect()


def items_digest(items: pl.DataFrame) -> str:
    """sha256 over the items; a row id stands for a row's content."""
    return digest(items["row_id"].to_list())
