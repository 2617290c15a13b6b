"""Text that people wrote, where the shared data is at hand: what the rules set aside of it is what is wrong with it."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tasks.quality import applied, flags
from tasks.recipe import Quality

Pair = tuple[str, str]


def lines(folder: Path, pattern: str) -> Iterable[dict[str, Any]]:
    for file in sorted(folder.glob(pattern)):
        yield from map(json.loads, file.read_text(encoding="utf-8").splitlines())


def arithmetic(data: Path) -> list[Pair]:
    return [(row["question"], row["answer"]) for row in lines(data, "gsm8k/**/*.jsonl")]


def tasks(data: Path) -> list[Pair]:
    return [
        (f"{row['instruction']}\n\n{instance['input']}".strip(), instance["output"])
        for row in lines(data, "self_instruct/**/*.jsonl")
        for instance in row["instances"]
    ]


def prompts(data: Path) -> list[Pair]:
    return [(row["prompt"], "Here it is.") for row in lines(data, "ifeval/**/*.jsonl")]


def prompts_as_answers(data: Path) -> list[Pair]:
    return [("Give me something to do, please.", row["prompt"]) for row in lines(data, "ifeval/**/*.jsonl")]


def questions(data: Path) -> list[Pair]:
    rows = [row for file in sorted(data.glob("mmlu/**/*.csv")) for row in csv.DictReader(file.open(encoding="utf-8"))]
    return [(row["question"], row[f"choice{row['answer']}"]) for row in rows]


def requests(data: Path) -> list[Pair]:
    asked = [row["question"][0][0]["content"] for row in lines(data, "bfcl/**/BFCL*.json") if "question" in row]
    return [(question, "Let me see what I can do for you.") for question in asked]


# Zero-width spaces stand in two rows of gsm8k; three answers of the seeds are lists and notes that end without a stop;
# of the prompts, read as answers, one is a form to fill in and one an apology.
@pytest.mark.parametrize(
    ("pairs", "wrong"),
    [
        (arithmetic, {"invisible_character": 2}),
        (tasks, {"truncated_ending": 3}),
        (prompts, {}),
        (prompts_as_answers, {"placeholder": 1, "refusal": 1}),
        (questions, {}),
        (requests, {}),
    ],
)
def test_what_people_wrote_is_let_through(
    pairs: Callable[[Path], list[Pair]], wrong: dict[str, int], corpus: ModuleType, shared_data: Path
) -> None:
    rows = [
        {"kind": "chat", "messages": [corpus.turn("user", asked), corpus.turn("assistant", said)], "tools": None}
        for asked, said in pairs(shared_data)
    ]
    assert len(rows) > 100
    found = flags(*corpus.frames(rows), special_tokens=corpus.SPECIAL, max_length=10**6, quality=Quality())
    counts = {rule.name: int(found[rule.name].sum()) for rule in applied() if rule.sets_aside}
    assert {rule: rows for rule, rows in counts.items() if rows} == wrong
