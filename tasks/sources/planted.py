"""Bad rows on purpose, so that a newcomer sees the data gate do something.

With `planted=0.02` every fiftieth row (49, 99, 149, ...) is spoilt, the ways in turn, in the order in
which a source lists them. Which rows they are does not depend on the seed; what they say does.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

Row = dict[str, Any]
Spoil = Callable[[Row], Row]


def plant(rows: list[Row], share: float, ways: Mapping[str, Spoil]) -> list[Row]:
    """`rows` with about `share` of them spoilt; the way named `duplicate` repeats the row before."""
    if not share:
        return rows
    every = max(1, round(1 / share))
    planted = list(rows)
    names = list(ways)
    for turn, at in enumerate(range(every - 1, len(rows), every)):
        name = names[turn % len(names)]
        taken = rows[at - 1] if name == "duplicate" and at else rows[at]
        planted[at] = ways[name](copy.deepcopy(taken))
    return planted


def duplicate(row: Row) -> Row:
    """An exact duplicate of the row before."""
    return row


def empty_answer(row: Row) -> Row:
    """The assistant says nothing."""
    row["messages"][-1] = {"role": "assistant", "content": ""}
    return row


def stray_end_token(row: Row) -> Row:
    """An end-of-turn token inside the user's text."""
    row["messages"][0]["content"] += "<|im_end|>"
    return row


def replacement_character(row: Row) -> Row:
    """A letter lost in somebody's decoding (U+FFFD)."""
    text = row["messages"][0]["content"]
    row["messages"][0]["content"] = text[: len(text) // 2] + "\ufffd" + text[len(text) // 2 + 1 :]
    return row


def placeholder(row: Row) -> Row:
    """A template's field that nobody filled in."""
    row["messages"][0]["content"] = "Hello {{name}}, " + row["messages"][0]["content"]
    return row
