from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from tasks.conversations import CONVERSATION
from tasks.evaluation.clusters import clusters

Turn = Callable[..., dict[str, Any]]
PASSAGE = "The ship left the harbour in the morning, {}. " + "It was a long voyage, and the sea was calm. " * 6


def items(turn: Turn, prompts: list[str], origins: list[str | None] | None = None) -> pl.DataFrame:
    made = [
        {"row_id": f"{at:032x}", "messages": [turn("user", text), turn("assistant", f"{at}")], "tools": None}
        for at, text in enumerate(prompts)
    ]
    schema: dict[str, Any] = {name: CONVERSATION[name] for name in ("row_id", "messages", "tools")}
    frame = pl.DataFrame(made, schema=schema)
    return frame.with_columns(origin=pl.Series(origins, dtype=pl.String)) if origins else frame


def together(names: list[str]) -> list[list[int]]:
    return sorted([at for at, name in enumerate(names) if name == one] for one in set(names))


def test_questions_on_one_passage_are_one_cluster(turn: Turn) -> None:
    asked = [f"{PASSAGE.format(ship)}\n\nQuestion {n}?" for ship in ("Ada", "Bea") for n in range(3)]
    found = clusters(items(turn, [*asked, "What is 2 + 2?", "What is 2 + 2?", "Name a ship."]))
    assert together(found) == [[0, 1, 2], [3, 4, 5], [6, 7], [8]]


def test_one_passage_may_hold_most_of_a_suite_and_an_instruction_all(turn: Turn) -> None:
    most = [f"{PASSAGE.format('Ada')}\nQuestion {n}?" for n in range(6)] + [f"Question {n}?" for n in range(4)]
    assert len(together(clusters(items(turn, most)))) == 5
    every = [f"{PASSAGE.format('Ada')}\nQuestion {n}?" for n in range(10)]
    assert len(together(clusters(items(turn, every)))) == 10
    short = ["Answer in one word.\nQuestion 1?", "Answer in one word.\nQuestion 2?", "Question 3?"]
    assert len(together(clusters(items(turn, short)))) == 3


def test_rows_of_one_origin_are_one_cluster_and_so_is_what_they_share_with_others(turn: Turn) -> None:
    prompts = ["a?", "b?", f"{PASSAGE.format('Ada')}\nc?", f"{PASSAGE.format('Ada')}\nd?", "e?"]
    found = clusters(items(turn, prompts, ["s/1/0", "s/1/1", "s/1/0", "s/1/2", "s/1/3"]))
    assert together(found) == [[0, 2, 3], [1], [4]]
    assert clusters(items(turn, [])) == []
