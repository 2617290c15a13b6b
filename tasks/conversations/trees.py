"""Open Assistant's message trees: many ranked replies to each message, of which one path is a conversation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import polars as pl

from tasks.conversations.turns import Reading, Turn, assistant, required_text, role_of

Row = Mapping[str, Any]


def best_paths(table: pl.DataFrame) -> tuple[pl.DataFrame, list[tuple[int, str, str]]]:
    """One row a tree, and the messages that no row stands for, with reasons.

    From the root, the path follows the reply of the best rank (0 first, unranked last) and ends with its
    last assistant message. The row has the tree's `source_row` and a `path` of its messages. Messages on the
    path are set aside as `within_conversation`, the others as `lower_ranked`, `not_reviewed`, `no_reply` or
    `without_parent`: every message is counted once.
    """
    table = table.with_columns(
        pl.lit(None).alias(name) for name in ("rank", "deleted", "review_result") if name not in table.columns
    )
    messages = {row["message_id"]: row for row in table.iter_rows(named=True)}
    children: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    aside: list[tuple[int, str, str]] = []
    for row in table.iter_rows(named=True):
        if row["deleted"] or row["review_result"] is False:
            aside.append((row["source_row"], "not_reviewed", row["message_id"]))
        elif row["parent_id"] is not None and row["parent_id"] not in messages:
            aside.append((row["source_row"], "without_parent", f"{row['message_id']} answers {row['parent_id']}"))
        else:
            children[row["parent_id"]].append(row)
    rows: list[int] = []
    paths: list[list[dict[str, str]]] = []
    reached: set[str] = set()
    for root in children[None]:
        path, at = [root], root
        while replies := children.get(at["message_id"]):
            at = min(replies, key=lambda reply: (reply["rank"] is None, reply["rank"] or 0))
            path.append(at)
        while path and role_of(path[-1]["role"]) != "assistant":
            path.pop()
        reached |= {message["message_id"] for message in path}
        if path:
            rows.append(root["source_row"])
            paths.append([{"role": message["role"], "text": message["text"]} for message in path])
            aside += [(m["source_row"], "within_conversation", root["message_id"]) for m in path[1:]]
        else:
            aside.append((root["source_row"], "no_reply", root["message_id"]))
            reached.add(root["message_id"])
    aside += [
        (row["source_row"], "lower_ranked", row["message_id"])
        for siblings in children.values()
        for row in siblings
        if row["message_id"] not in reached
    ]
    struct = pl.List(pl.Struct({"role": pl.String, "text": pl.String}))
    frame = pl.DataFrame(
        {"source_row": pl.Series(rows, dtype=pl.Int64), "path": pl.Series("path", paths, dtype=struct)}
    )
    return frame, aside


def open_assistant(row: Row) -> Reading:
    """A tree's best path."""
    turns = []
    for message in row["path"]:
        role, text = role_of(message["role"]), required_text(message, "text")
        turns.append(assistant(text) if role == "assistant" else Turn(role, text))
    return Reading(turns)
