"""Open Assistant's message trees: many ranked replies to each message, of which one path is a conversation."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from tasks.conversations.canonical import Unconvertible, loads
from tasks.conversations.turns import ROLES, Reading, Turn, assistant, required_text, role_of

Row = Mapping[str, Any]


def best_paths(table: pl.DataFrame) -> tuple[pl.DataFrame, list[tuple[int, str, str]]]:
    """One row a tree, and the messages that no row stands for, with reasons.

    From the root, the path follows the reply of the best rank (0 first, unranked last) and ends with its
    last assistant message. The row has the tree's `source_row` and a `path` of its messages. Messages on the
    path are set aside as `within_conversation`, the others as `lower_ranked`, `not_reviewed`, `no_reply`,
    `repeated_id` or `without_parent`: every message is counted once.
    """
    children, aside = _replies(table)
    chosen: list[tuple[int, list[dict[str, Any]]]] = []
    reached: set[int] = set()
    for root in children[None]:
        path = _best_path(root, lambda message: children.get(message["message_id"], ()))
        reached |= {message["source_row"] for message in path} | {root["source_row"]}
        if path:
            chosen.append((root["source_row"], path))
            aside += [(m["source_row"], "within_conversation", root["message_id"]) for m in path[1:]]
        else:
            aside.append((root["source_row"], "no_reply", root["message_id"]))
    return _paths(chosen), aside + _others(children, reached, "lower_ranked")


def all_paths(table: pl.DataFrame) -> tuple[pl.DataFrame, list[tuple[int, str, str]]]:
    """One row a path from a root to an assistant message that no assistant message follows, best ranks first.

    The row has the `source_row` of the path's last message. Messages within paths are set aside as
    `within_conversation`, the others as `best_paths` does.
    """
    children, aside = _replies(table)
    chosen: list[tuple[int, list[dict[str, Any]]]] = []
    reached: set[int] = set()
    waiting = [[root] for root in reversed(children[None])]
    while waiting:
        path = waiting.pop()
        replies = sorted(children.get(path[-1]["message_id"], ()), key=_rank)
        answered = _answers(path[-1]) and not any(
            _answers(later) or any(map(_answers, children.get(later["message_id"], ()))) for later in replies
        )
        if answered:
            chosen.append((path[-1]["source_row"], path))
        waiting += [[*path, reply] for reply in reversed(replies)]
    ends = {source_row for source_row, _ in chosen}
    for _, path in chosen:
        inner = [m for m in path if m["source_row"] not in ends | reached]
        aside += [(m["source_row"], "within_conversation", path[-1]["message_id"]) for m in inner]
        reached |= {m["source_row"] for m in path}
    return _paths(chosen), aside + _others(children, reached, "no_reply")


Replies = dict[str | None, list[dict[str, Any]]]


def _replies(table: pl.DataFrame) -> tuple[Replies, list[tuple[int, str, str]]]:
    """The usable messages by the one that they answer, and those that are not, with reasons."""
    table = table.with_columns(
        pl.lit(None).alias(name) for name in ("rank", "deleted", "review_result") if name not in table.columns
    )
    messages = set(table["message_id"])
    seen: set[str] = set()
    children: Replies = defaultdict(list)
    aside: list[tuple[int, str, str]] = []
    for row in table.iter_rows(named=True):
        if row["message_id"] is None or row["message_id"] in seen:
            aside.append((row["source_row"], "repeated_id", str(row["message_id"])))
        elif not _is_usable(row):
            aside.append((row["source_row"], "not_reviewed", row["message_id"]))
        elif row["parent_id"] is not None and row["parent_id"] not in messages:
            aside.append((row["source_row"], "without_parent", f"{row['message_id']} answers {row['parent_id']}"))
        else:
            children[row["parent_id"]].append(row)
        seen.add(row["message_id"])
    return children, aside


def _best_path(
    root: Mapping[str, Any], replies: Callable[[Mapping[str, Any]], Sequence[Mapping[str, Any]]]
) -> list[Any]:
    """From the root, the best-ranked reply to each message, up to the last one of the assistant; maybe none."""
    path = [root]
    while found := replies(path[-1]):
        path.append(min(found, key=_rank))
    while path and not _answers(path[-1]):
        path.pop()
    return path


def _is_usable(message: Mapping[str, Any]) -> bool:
    return not message.get("deleted") and message.get("review_result") is not False


def _rank(reply: Mapping[str, Any]) -> tuple[bool, float]:
    return reply.get("rank") is None, reply.get("rank") or 0


def _answers(message: Mapping[str, Any]) -> bool:
    name = message.get("role")
    return isinstance(name, str) and ROLES.get(name.strip().lower()) == "assistant"


def _others(children: Replies, reached: set[int], reason: str) -> list[tuple[int, str, str]]:
    rows = (row for siblings in children.values() for row in siblings)
    return [(row["source_row"], reason, row["message_id"]) for row in rows if row["source_row"] not in reached]


def _paths(chosen: list[tuple[int, list[dict[str, Any]]]]) -> pl.DataFrame:
    struct = pl.List(pl.Struct({"role": pl.String, "text": pl.String}))
    paths = [[{"role": message["role"], "text": message["text"]} for message in path] for _, path in chosen]
    rows = pl.Series([source_row for source_row, _ in chosen], dtype=pl.Int64)
    return pl.DataFrame({"source_row": rows, "path": pl.Series("path", paths, dtype=struct)})


def nested(row: Row) -> Reading:
    """A tree as one object: the prompt with its replies, and theirs; the best-ranked path."""
    at: Any = loads(row["prompt"], "tree_not_json") if isinstance(row["prompt"], str) else row["prompt"]
    if not isinstance(at, dict):
        raise Unconvertible("tree_not_json", str(at)[:200])
    path = _best_path(at, lambda message: [r for r in message.get("replies") or () if _is_usable(r)])
    if not path:
        raise Unconvertible("no_reply", "no assistant message answers the prompt")
    return open_assistant({"path": [{"role": m.get("role"), "text": m.get("text")} for m in path]})


def open_assistant(row: Row) -> Reading:
    """A tree's best path."""
    turns = []
    for message in row["path"]:
        role, text = role_of(message["role"]), required_text(message, "text")
        turns.append(assistant(text) if role == "assistant" else Turn(role, text))
    return Reading(turns)
