"""Rows that the recipe would rather change than lose: redacted, or ended where they still fit. Never in silence.

Every change is told: which row, what it was before (by row_id), and what was done. A row whose change does
not help stays as it was, for its rule to set aside.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import polars as pl

from tasks.conversations import MESSAGES, Render, row_ids
from tasks.quality.calls import call_flags
from tasks.quality.sensitive import Redacted, redact
from tasks.quality.turns import Turns
from tasks.recipe import Quality

CHANGES = {"source_row": pl.Int64, "row_id": pl.String, "was": pl.String, "change": pl.String}
TRUNCATED = "truncated"


def mended(
    rows: pl.DataFrame, render: Render, quality: Quality, max_length: int
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Conversations (schema CONVERSATION) as they will be trained on, rendered, and the changes made (CHANGES).

    A change is `redacted <rule>` or `truncated`. The rows stay in their order; a changed row has a new row_id.
    """
    rows, redacted = _redacted(rows, quality)
    rendered = render(rows)
    if quality.over_length != "truncate":
        return rows, rendered, redacted
    rows, rendered, cut = _cut(rows, rendered, render, max_length)
    return rows, rendered, pl.concat([redacted, cut])


def _redacted(rows: pl.DataFrame, quality: Quality) -> tuple[pl.DataFrame, pl.DataFrame]:
    without = redact(rows, quality.sensitive)
    changed = _without(rows, without)
    # A placeholder is a string: where a schema or a tool's name does not allow it, numbers and names stay.
    at = sorted(without)
    if spoilt := [at[i] for i in _spoilt(rows[at], changed[at])]:
        strings = redact(rows[spoilt], quality.sensitive, strings_only=True)
        for place, n in enumerate(spoilt):
            del without[n]
            if place in strings:
                without[n] = strings[place]
        changed = _without(rows, without)
    told = [(n, f"redacted {rule}") for n, one in sorted(without.items()) for rule in one.found]
    return changed, _told(rows, changed, told)


def _spoilt(before: pl.DataFrame, after: pl.DataFrame) -> list[int]:
    """The positions of rows that break a rule on tools and calls after a change and did not before."""
    if before.is_empty():
        return []
    was, now = (pl.DataFrame(call_flags(Turns.of(rows))) for rows in (before, after))
    newly = pl.any_horizontal(now[name] & ~was[name] for name in now.columns)
    return pl.select(newly).to_series().arg_true().to_list()


def _without(rows: pl.DataFrame, redacted: Mapping[int, Redacted]) -> pl.DataFrame:
    at = sorted(redacted)
    tools = rows["tools"].scatter(at, [redacted[n].tools for n in at]) if at else rows["tools"]
    return _with_messages(rows.with_columns(tools), {n: redacted[n].messages for n in at})


def _cut(
    rows: pl.DataFrame, rendered: pl.DataFrame, render: Render, max_length: int
) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Rows that are too long end after the last exchange with which they fit, found by bisection."""
    long = (rendered["tokens"].fill_null(0) > max_length).arg_true().to_list()
    messages = {n: rows["messages"][n].to_list() for n in long}
    ends = {n: _exchanges(messages[n]) for n in long}
    low, high = dict.fromkeys(long, 0), {n: len(ends[n]) for n in long}
    fits: dict[int, int] = {}
    # The answer lies among ends[low:high]; every round renders the middle one of each row that has any left.
    while asked := [n for n in long if low[n] < high[n]]:
        middle = {n: (low[n] + high[n]) // 2 for n in asked}
        tried = render(_with_messages(rows[asked], {i: messages[n][: ends[n][middle[n]]] for i, n in enumerate(asked)}))
        for n, problem, tokens, learned in zip(
            asked, tried["problem"], tried["tokens"], tried["supervised_tokens"], strict=True
        ):
            if tokens <= max_length:
                low[n] = middle[n] + 1
                if problem is None and learned:
                    fits[n] = ends[n][middle[n]]
            else:
                high[n] = middle[n]
    changed = _with_messages(rows, {n: messages[n][:end] for n, end in fits.items()})
    again = sorted(fits)
    if again:
        whole = rendered.with_row_index("n")
        parts = [
            whole.filter(~pl.col("n").is_in(again)),
            render(changed[again]).with_columns(n=pl.Series(again, dtype=pl.UInt32)),
        ]
        rendered = pl.concat([part.select(whole.columns) for part in parts]).sort("n").drop("n")
    return changed, rendered, _told(rows, changed, [(n, TRUNCATED) for n in again])


def _exchanges(messages: Sequence[dict[str, Any]]) -> list[int]:
    """Where a conversation could end: after an answer (not a call) that the user follows; shortest first."""
    return [
        at
        for at in range(2, len(messages))
        if messages[at]["role"] == "user"
        and messages[at - 1]["role"] == "assistant"
        and not messages[at - 1]["tool_calls"]
    ]


def _with_messages(rows: pl.DataFrame, messages: dict[int, list[dict[str, Any]]]) -> pl.DataFrame:
    """The rows with other messages, and so another row_id, at some positions."""
    if not messages:
        return rows
    at = sorted(messages)
    changed = row_ids(rows[at].with_columns(messages=pl.Series([messages[n] for n in at], dtype=MESSAGES)))
    whole = rows.with_row_index("n")
    changed = changed.with_columns(n=pl.Series(at, dtype=pl.UInt32)).select(whole.columns)
    return pl.concat([whole.filter(~pl.col("n").is_in(at)), changed]).sort("n").drop("n")


def _told(before: pl.DataFrame, after: pl.DataFrame, changes: Sequence[tuple[int, str]]) -> pl.DataFrame:
    at = [n for n, _ in changes]
    return pl.DataFrame(
        {
            "source_row": after["source_row"][at],
            "row_id": after["row_id"][at],
            "was": before["row_id"][at],
            "change": [change for _, change in changes],
        },
        schema=CHANGES,
    )
