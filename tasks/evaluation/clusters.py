"""Which items are not independent: those that come of one row of a source, share a passage or ask the same.

A model that misreads a passage misses every question on it, so ten questions on one passage say less than ten
questions. Standard errors, permutations and intervals then go by cluster (tasks/evaluation/statistics.py).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Any

import polars as pl

from tasks.store import digest

_PASSAGE = 200  # characters of a paragraph from which on it is a passage, not a phrase
_INSTRUCTION = 0.9  # share of the items


def clusters(items: pl.DataFrame) -> list[str]:
    """A name for each item's cluster; items (row_id, messages and, of held-out rows, origin) share it or not.

    A paragraph that nine in ten items have is an instruction, not a passage.
    """
    members: dict[Hashable, list[int]] = defaultdict(list)
    for at, item in enumerate(items.iter_rows(named=True)):
        for sign in {*_signs(item)}:
            members[sign].append(at)
    parents = list(range(items.height))

    def root(at: int) -> int:
        while parents[at] != at:
            parents[at] = parents[parents[at]]
            at = parents[at]
        return at

    for sign, found in members.items():
        if isinstance(sign, tuple) and sign[0] == "passage" and len(found) > _INSTRUCTION * items.height:
            continue
        for at in found[1:]:
            parents[root(at)] = root(found[0])
    return [items["row_id"][root(at)] for at in range(items.height)]


def _signs(item: Mapping[str, Any]) -> Iterator[Hashable]:
    turns: Sequence[Mapping[str, Any]] = item["messages"] or []
    last = max((at for at, turn in enumerate(turns) if turn["role"] == "assistant"), default=len(turns))
    yield "asks", digest([[turn["role"], turn.get("content")] for turn in turns[:last]] + [item.get("tools")])
    if item.get("origin"):
        yield "origin", item["origin"]
    for turn in turns[:last]:
        if turn["role"] in ("user", "tool"):
            for paragraph in (turn.get("content") or "").split("\n"):
                text = " ".join(paragraph.split())
                if len(text) >= _PASSAGE:
                    yield "passage", digest(text)
