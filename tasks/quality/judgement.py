"""What follows from the flags: which rows are set aside and why, and how many rows must keep a rule."""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from tasks.quality.rules import Rule


def reasons(found: pl.DataFrame, rules: Sequence[Rule]) -> pl.Series:
    """A list of rule names a row: every rule it breaks that sets rows aside, in the rules' order."""
    names = [rule.name for rule in rules if rule.sets_aside]
    lists = pl.concat_list([pl.when(pl.col(name)).then(pl.lit(name)) for name in names]).list.drop_nulls()
    return found.select(reasons=lists)["reasons"]


def first_reasons(lists: pl.Series) -> dict[str, int]:
    """How many rows were set aside, each counted once under its first reason; empty lists are kept rows."""
    first = lists.list.first().drop_nulls().value_counts(sort=True, name="rows")
    return dict(first.iter_rows())


def required_share(rule: Rule, max_set_aside: float) -> float:
    """The share of rows that must keep a rule: its own, or for rules that set aside what the recipe leaves."""
    if rule.mostly is not None:
        return rule.mostly
    return round(1 - max_set_aside, 12) if rule.sets_aside else 0.0
