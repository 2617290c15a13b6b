from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from tasks.conversations import ToolCall
from tasks.evaluation.calls import ExpectedCall, expected_call, fault, leaderboard_call, same


def call(name: str, arguments: Any) -> ToolCall:
    return ToolCall(name=name, arguments=None if arguments is None else json.dumps(arguments))


@pytest.mark.parametrize(
    ("left", "right", "equal"),
    [
        (1, 1.0, True),
        (1, True, False),
        (0, False, False),
        (None, False, False),
        ("1", 1, False),
        ({"a": 1, "b": [2.0]}, {"b": [2], "a": 1}, True),
        ([1, 2], [2, 1], False),
        ({"a": 1}, {"a": 1, "b": None}, False),
        ("Zürich", "Zürich", True),
        ("Oslo", "oslo", False),
        (10**20, 1e20, True),
    ],
)
def test_equality_of_json_values(left: object, right: object, equal: bool) -> None:
    assert same(left, right) is equal
    assert same(right, left) is equal


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ({"a": 1, "b": 2}, None),
        ({"b": 2.0, "a": 1}, None),
        ({"a": 1, "b": 2, "round": 0}, None),  # the schema's default
        ({"a": 1, "b": 2, "round": 1}, "add: round is 1"),
        ({"a": 1}, "add: b is missing"),
        ({"a": 1, "b": 2, "c": 3}, "add: c was not asked for"),
        ({"a": 1, "b": "2"}, 'add: b is "2"'),
        (None, "add: arguments are no JSON object"),
    ],
)
def test_arguments_under_the_schema(tools: str, arguments: Any, wrong: str | None) -> None:
    expected = [expected_call("add", '{"a":1,"b":2}', tools)]
    assert fault(expected, [call("add", arguments)]) == wrong


def test_a_given_default_may_be_left_out_by_the_answer(tools: str) -> None:
    expected = [expected_call("add", '{"a":1,"b":2,"round":0}', tools)]
    assert fault(expected, [call("add", {"a": 1, "b": 2})]) is None


def test_parallel_calls_in_any_order_but_each_once(tools: str) -> None:
    expected = [expected_call("add", '{"a":1,"b":2}', tools), expected_call("add", '{"a":3,"b":4}', tools)]
    first, second = call("add", {"a": 1, "b": 2}), call("add", {"a": 3, "b": 4})
    assert fault(expected, [second, first]) is None
    assert fault(expected, [first, first])
    assert fault(expected, [first]) == "1 calls instead of 2"
    assert fault(expected, [first, second, second]) == "3 calls instead of 2"


def test_parallel_calls_are_matched_even_where_the_first_match_is_greedy() -> None:
    either = ExpectedCall(name="f", arguments={"x": (1, 2)})
    one = ExpectedCall(name="f", arguments={"x": (1,)})
    assert fault([either, one], [call("f", {"x": 1}), call("f", {"x": 2})]) is None


def test_no_call_where_none_fits() -> None:
    assert fault([], []) is None
    assert fault([], [call("add", {})]) == "called add, where no call fits"


def leaderboard(folder: Path, name: str) -> list[Any]:
    return [json.loads(line) for line in (folder / "bfcl" / name).read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("part", ["simple_python", "multiple"])
def test_leaderboard_answers_are_right_and_shuffled_ones_are_not(shared_data: Path, part: str) -> None:
    answers = leaderboard(shared_data, f"possible_answer__BFCL_v4_{part}.json")
    questions = leaderboard(shared_data, f"BFCL_v4_{part}.json")
    assert [a["id"] for a in answers] == [q["id"] for q in questions]
    expected = [[leaderboard_call(entry) for entry in row["ground_truth"]] for row in answers]
    gold = [
        [
            call(want.name, {key: values[0] for key, values in want.arguments.items() if key not in want.omittable})
            for want in calls
        ]
        for calls in expected
    ]
    assert len(expected) == {"simple_python": 400, "multiple": 200}[part]
    assert [fault(want, got) for want, got in zip(expected, gold, strict=True)] == [None] * len(gold)
    # What may be left out may also be given.
    full = [
        [call(w.name, {k: next(v for v in vs if v != "" or len(vs) == 1) for k, vs in w.arguments.items()}) for w in ws]
        for ws in expected
    ]
    assert [fault(want, got) for want, got in zip(expected, full, strict=True)] == [None] * len(full)
    shuffled = gold[:]
    random.Random(0).shuffle(shuffled)
    assert sum(fault(want, got) is None for want, got in zip(expected, shuffled, strict=True)) / len(gold) < 0.02


def test_leaderboard_irrelevance(shared_data: Path) -> None:
    rows = leaderboard(shared_data, "BFCL_v4_irrelevance.json")
    assert len(rows) == 240
    assert all(fault([], []) is None and fault([], [call(row["function"][0]["name"], {})]) for row in rows)
