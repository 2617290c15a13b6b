"""Which held-out conversations are a suite's items.

A row id is a hash of the content, so its order says nothing about a row. Items are the first ones in that order,
counted from a place that `turn` gives (row ids exclusive-or the turn's digest). With one turn, most of last night's
items are tonight's as well as data grows. A turn for each state of the held-out split draws a new sample whenever
something came in: of ten times as many held-out rows as items, nine in ten are then new, and no candidate is tuned to
what it will meet. Where the split holds no more rows than the suite takes, all are items on every turn.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import polars as pl

from tasks.errors import BadInput
from tasks.evaluation.benchmarks import benchmark_items
from tasks.recipe import Suite
from tasks.store import digest

_ORIGIN = ("source", "revision", "source_row")  # what conversations of one row of a source share
_DIGITS = 15  # hex digits of a row id that fit an i64


class SuiteItems(NamedTuple):
    """`rows`: row_id, messages, tools and reference, of a benchmark, or origin, of held-out rows; `not_run`: a
    benchmark's rows that are no items, by reason."""

    rows: pl.DataFrame
    not_run: dict[str, int]


def suite_items(test: Path, suite: Suite, turn: str = "") -> SuiteItems:
    """A suite's items: at most `suite.items` rows of the mixture's test split, or of the suite's data.

    Raises BadInput where the split holds no conversation of the suite's kind, and where the data is no benchmark.
    """
    if suite.data is not None:
        rows, not_run = benchmark_items(suite.data, f"evaluation.suites.{suite.name}.data")
        return SuiteItems(rows.sort(_place(turn), "row_id").head(suite.items).sort("row_id"), not_run)
    return SuiteItems(_held_out(pl.scan_parquet(test), suite, turn), {})


def _place(turn: str) -> pl.Expr:
    return pl.col("row_id").str.head(_DIGITS).str.to_integer(base=16) ^ (int(digest(turn)[:_DIGITS], 16) if turn else 0)


def _held_out(rows: pl.LazyFrame, suite: Suite, turn: str) -> pl.DataFrame:
    # Two passes: ids alone are sorted, so ten million long rows never sit in memory together.
    ids = rows.filter(pl.col("kind") == suite.kind).select(pl.col("row_id").unique())
    chosen = ids.sort(_place(turn), "row_id").head(suite.items).collect()
    if chosen.is_empty():
        raise BadInput(
            f"evaluation.suites.{suite.name}.kind",
            suite.kind,
            "has no conversations in the test split",
            "Give the source more rows, raise mixture.test, or remove the suite.",
        )
    there = rows.collect_schema().names()
    origin = [pl.concat_str(_ORIGIN, separator="/").alias("origin")] if set(_ORIGIN) <= set(there) else []
    items = rows.select("row_id", "messages", "tools", *origin).filter(
        pl.col("row_id").is_in(chosen["row_id"].implode())
    )
    # Of what is there twice the same one each time.
    return items.sort("row_id", *("origin" for _ in origin)).unique("row_id", keep="first").sort("row_id").collect()


def items_digest(items: pl.DataFrame) -> str:
    """sha256 over the items; a row id stands for a row's content."""
    return digest(items["row_id"].to_list())
