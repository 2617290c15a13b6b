"""Who a conversation is: the id of its content, and the key of its prompt."""

from __future__ import annotations

import hashlib
import unicodedata

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


def prompt_key(rows: pl.DataFrame) -> pl.Series:
    """The normalised text of what comes before the last assistant turn, one string a row (`prompt_key`).

    System, user and tool turns count, assistant turns do not: two conversations that ask the same are
    twins whatever was answered on the way. Case, runs of white space and Unicode form make no difference.
    A conversation without an assistant turn is its own prompt.
    """
    turns = (
        rows.lazy()
        .select(pl.col("messages").cast(MESSAGES))
        .with_row_index("row")
        .explode("messages", empty_as_null=True)
        .select("row", pl.col("messages").struct.field("role", "content"))
        .with_columns(
            turn=pl.int_range(pl.len()).over("row"), assistant=pl.col("role").eq("assistant").fill_null(False)
        )
        .with_columns(last=pl.col("turn").filter(pl.col("assistant")).max().over("row"))
        .filter((pl.col("turn") < pl.col("last")).fill_null(True) & ~pl.col("assistant") & pl.col("role").is_not_null())
        .group_by("row", maintain_order=True)
        .agg(pl.concat_str("role", pl.lit(": "), pl.col("content").fill_null("")).str.join("\n"))
        .collect()
    )
    texts: list[str] = [""] * rows.height
    for row, text in turns.iter_rows():
        texts[row] = " ".join(unicodedata.normalize("NFC", text.casefold()).split())
    return pl.Series("prompt_key", texts, dtype=pl.String)
