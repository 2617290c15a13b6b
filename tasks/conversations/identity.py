"""Who a conversation is: the id of its content."""

from __future__ import annotations

import hashlib

import polars as pl

from tasks.conversations.schema import MESSAGES

_MESSAGE_FIELDS = ("role", "content", "thinking", "tool_calls", "tool_call_id")


def row_ids(frame: pl.DataFrame) -> pl.DataFrame:
    """The frame with `row_id` set: the first 32 hex characters of the sha256 of messages, tools and kind.

    Needs the columns kind, messages and tools of the schema CONVERSATION; an empty list of calls is no calls.
    """
    calls = pl.element().struct.field("tool_calls")
    message = pl.struct(
        *(
            pl.when(calls.list.len() > 0).then(calls).alias(name)
            if name == "tool_calls"
            else pl.element().struct.field(name)
            for name in _MESSAGE_FIELDS
        )
    )
    content = frame.select(
        pl.struct(
            pl.col("kind").cast(pl.String),
            pl.col("messages").cast(MESSAGES).list.eval(message),
            pl.col("tools").cast(pl.String),
        ).struct.json_encode()
    ).to_series()
    ids = [hashlib.sha256(text.encode()).hexdigest()[:32] for text in content]
    return frame.with_columns(pl.Series("row_id", ids, dtype=pl.String))
