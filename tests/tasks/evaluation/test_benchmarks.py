"""Benchmarks as they are published: every row an item or counted, right answers right, shuffled ones near chance."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.conversations.answer import parse_answer
from tasks.errors import BadInput
from tasks.evaluation.benchmarks import benchmark_items
from tasks.evaluation.instructions import not_run
from tasks.evaluation.suites import Question, Reply, score

FIELD = "evaluation.suites.it.data"


def question(row: dict[str, Any]) -> Question:
    return Question(
        item_id=row["row_id"],
        prompt="",
        expected=row["messages"][-1],
        tools=row["tools"],
        mode="direct",
        reference=json.loads(row["reference"]),
    )


def marks(measure: str, items: pl.DataFrame, answers: Sequence[str]) -> float:
    """Mean score of these answers to these items."""
    total = 0.0
    for row, text in zip(items.iter_rows(named=True), answers, strict=True):
        total += score(measure, question(row), Reply(output=text, answer=parse_answer(text), stopped=True))[0]
    return total / items.height


def shuffled(answers: Sequence[str]) -> list[str]:
    return random.Random(0).sample(list(answers), len(answers))


def call_text(expected: dict[str, Any]) -> str:
    blocks = []
    for call in expected["calls"]:
        arguments = {name: values[0] for name, values in call["arguments"].items() if name not in call["omittable"]}
        blocks.append(f"<tool_call>{json.dumps({'name': call['name'], 'arguments': arguments})}</tool_call>")
    return "\n".join(reversed(blocks))


@pytest.mark.parametrize(
    ("name", "rows"), [("BFCL_v4_simple_python", 400), ("BFCL_v4_multiple", 200), ("BFCL_v4_irrelevance", 240)]
)
def test_function_calling_leaderboard(shared_data: Path, name: str, rows: int) -> None:
    items, aside = benchmark_items(str(shared_data / "bfcl" / f"{name}.json"), FIELD)
    assert (items.height, aside) == (rows, {})
    gold = [call_text(json.loads(reference)) or "None of them fits." for reference in items["reference"]]
    assert marks("tool_call", items, gold) == 1
    if "irrelevance" in name:
        wrong = [
            f'<tool_call>{{"name": "{json.loads(t)[0]["function"]["name"]}", "arguments": {{}}}}</tool_call>'
            for t in items["tools"]
        ]
        assert marks("tool_call", items, wrong) == 0
    else:
        assert marks("tool_call", items, shuffled(gold)) < 0.02
        assert marks("tool_call", items, [""] * rows) == 0
    types = {json.loads(tools)[0]["function"]["parameters"]["type"] for tools in items["tools"]}
    assert types == {"object"}


def test_parallel_calls_count_in_any_order(tmp_path: Path) -> None:
    about = {"name": "f", "description": "", "parameters": {"type": "dict", "properties": {"x": {"type": "float"}}}}
    asked = {"id": "parallel_0", "question": [[{"role": "user", "content": "1 and 2"}]], "function": [about]}
    turns = {**asked, "id": "parallel_1", "question": asked["question"] * 2}
    lost = {**asked, "id": "parallel_2"}
    (tmp_path / "BFCL_v4_parallel.json").write_text("\n".join(map(json.dumps, (asked, turns, lost))))
    with pytest.raises(BadInput, match="has no answers beside it"):
        benchmark_items(str(tmp_path), FIELD)
    (tmp_path / "possible_answer").mkdir()
    answer = {"id": "parallel_0", "ground_truth": [{"f": {"x": [1.0]}}, {"f": {"x": [2.0]}}]}
    (tmp_path / "possible_answer" / "BFCL_v4_parallel.json").write_text(json.dumps(answer))
    items, aside = benchmark_items(str(tmp_path), FIELD)
    assert aside == {"has several turns": 1, "has no answer in the answer file": 1}
    one, two = (f"<tool_call>{json.dumps({'name': 'f', 'arguments': {'x': x}})}</tool_call>" for x in (1, 2))
    assert [marks("tool_call", items, [text]) for text in (one + two, two + one, one, one + one)] == [1, 1, 0, 0]


def test_grade_school_math(shared_data: Path) -> None:
    items, aside = benchmark_items(str(shared_data / "gsm8k" / "test.jsonl"), FIELD)
    assert (items.height, aside) == (1319, {})
    gold = [messages[-1]["content"] for messages in items["messages"].to_list()]
    assert marks("final_answer", items, gold) == 1
    numbers = [text.rpartition("####")[2].strip() for text in gold]
    for form in ("The answer is {}.", "so we get $\\boxed{{{}}}$", "**{}**", "It takes ${}.00"):
        assert marks("final_answer", items, [form.format(number) for number in numbers]) > 0.999, form
    assert marks("final_answer", items, shuffled(gold)) < 0.03


def test_multiple_choice(shared_data: Path, tmp_path: Path) -> None:
    items, aside = benchmark_items(str(shared_data / "mmlu" / "*.csv"), FIELD)
    lines = sum(1 for file in (shared_data / "mmlu").glob("*.csv") for _ in pl.read_csv(file).iter_rows())
    assert items.height + sum(aside.values()) == pytest.approx(lines, abs=3)  # a question that is there twice is one
    gold = [json.loads(reference)["letter"] for reference in items["reference"]]
    texts = [json.loads(r)["choices"]["ABCD".index(letter)] for r, letter in zip(items["reference"], gold, strict=True)]
    for form in ("{}", "({})", "{}. Because it is so.", "The answer is {}.", "**Answer: {}**", "\\boxed{{{}}}"):
        assert marks("choice", items, [form.format(letter) for letter in gold]) == 1, form
    assert marks("choice", items, texts) > 0.98
    assert 0.2 < marks("choice", items, shuffled(gold)) < 0.32
    (tmp_path / "old.csv").write_text('"What, then?",1,2,3,4,B\nbroken,1,2,B\n')
    items, aside = benchmark_items(str(tmp_path / "old.csv"), FIELD)
    assert (json.loads(items["reference"][0])["letter"], aside) == ("B", {"has no answer among its choices": 1})


def test_instruction_following(shared_data: Path) -> None:
    items, aside = benchmark_items(str(shared_data / "ifeval" / "en_input_data.jsonl"), FIELD)
    assert items.height + sum(aside.values()) == 541
    rules = {rule["rule"] for reference in items["reference"] for rule in json.loads(reference)["rules"]}
    assert len(rules | {reason.split("(")[1][:-1] for reason in aside}) == 25
    print(f"{items.height} items, not run: {not_run()}, no items: {aside}")
    assert len(not_run()) <= 5
    lax = items.filter(pl.col("reference").str.contains("no_comma"))
    commas, none = (marks("instructions", lax, [text] * lax.height) for text in ("a, b, c", "a b c"))
    assert commas == 0 < none


def test_rules_of_an_item() -> None:
    rules = [
        {"rule": "keywords:existence", "with": {"keywords": ["owl", "night"]}},
        {"rule": "length_constraints:number_words", "with": {"relation": "less than", "num_words": 5}},
    ]
    asked = Question(item_id="1", prompt="", expected={}, tools=None, mode="direct", reference={"rules": rules})

    def said(text: str) -> tuple[float, str]:
        return score("instructions", asked, Reply(output=text, answer=parse_answer(text), stopped=True))

    assert said("An owl at night.") == (1, "")
    assert said("An owl by day.") == (0, "does not keep keywords:existence")
    assert said("An owl flies far at night.") == (0, "does not keep length_constraints:number_words")
    assert said("") == (0, "does not keep keywords:existence, length_constraints:number_words")


def test_gym_marks_with_its_own_scorer() -> None:
    items, aside = benchmark_items("gym://chain_sum?size=12&seed=3", FIELD)
    assert (items.height, aside) == (12, {})
    gold = [messages[-1]["content"] for messages in items["messages"].to_list()]
    assert marks("task", items, gold) == 1
    assert marks("task", items, [f"Adding up, the answer is {answer}." for answer in gold]) == 1
    assert marks("task", items, ["-1"] * 12) < 0.1
    with pytest.raises(BadInput, match="no_such_task"):
        benchmark_items("gym://no_such_task?size=2", FIELD)


def test_overlap_and_thinking() -> None:
    expected = {"content": "The owl sleeps by day"}
    asked = Question(item_id="1", prompt="", expected=expected, tools=None, mode="direct")

    def mark(measure: str, text: str, mode: Any = "direct", stopped: bool = True) -> float:
        reply = Reply(output=text, answer=parse_answer(text), stopped=stopped)
        return score(measure, asked.model_copy(update={"mode": mode}), reply)[0]

    assert mark("overlap", "The owl sleeps by day") == 1
    assert mark("overlap", "By day an owl sleeps.") == pytest.approx(2 * 2 / 10)
    assert mark("overlap", "") == 0
    assert mark("thinking", "<think>so</think>yes", "thinking") == 1
    for text, mode in (
        ("<think>so", "thinking"),
        ("yes", "thinking"),
        ("<think>so</think>", "thinking"),
        ("<think>a</think><think>b</think>yes", "thinking"),
        ("<think>so</think>yes", "direct"),
    ):
        assert mark("thinking", text, mode) == 0, text
    assert mark("thinking", "<think>\n\n</think>\n\nyes") == 1


@pytest.mark.parametrize(
    ("text", "says"),
    [("not json", "is no JSON"), ('{"a": 1}', "no benchmark that is known"), ("", "no rows"), ("[1]", "no objects")],
)
def test_other_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "file.jsonl").write_text(text)
    with pytest.raises(BadInput, match=says):
        benchmark_items(str(tmp_path / "file.jsonl"), FIELD)
    with pytest.raises(BadInput, match="is not there"):
        benchmark_items(str(tmp_path / "nothing*.jsonl"), FIELD)
