from __future__ import annotations

import json
import random
import time
from fractions import Fraction
from pathlib import Path

import pytest

from tasks.evaluation.final_answer import fault, final_number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("18", 18),
        ("The answer is 18.", 18),
        ("so she makes $18 a day.\n#### 18", 18),
        ("#### 70,000", 70000),
        ("#### -3", -3),
        ("#### $1,234.50", Fraction("1234.5")),
        (r"Thus \boxed{42}.", 42),
        (r"\boxed{\frac{3}{4}}", Fraction(3, 4)),
        (r"$\boxed{\dfrac{-7}{2}}$ is it", Fraction(-7, 2)),
        (r"\boxed{12} is wrong, it is \boxed{13}", 13),
        (r"\boxed{1{,}000}", 1000),
        ("3/4 of them", Fraction(3, 4)),
        ("That is 1/2", Fraction("0.5")),
        ("12 + 7 = 19", 19),
        ("16 - 3 = 13", 13),
        ("it is 5-3=2", 2),
        ("minus \u22125 degrees", -5),
        ("-5", -5),
        ("The answer is 3 + 4 = 7. I used 2 steps.", 7),
        ("Answer: 12 apples, out of 30", 30),
        ("1,234,567 people", 1234567),
        ("items 1,2,3", 3),
        ("0.25", Fraction(1, 4)),
        (".5", Fraction(1, 2)),
        ("1e3", 1000),
        ("50%", 50),
        ("20 km/h", 20),
        ("no digits here", None),
        ("", None),
        ("#### none, but 4 before", 4),
        ("5/0", None),
    ],
)
def test_final_number(text: str, number: object) -> None:
    assert final_number(text) == number


def test_faults_say_what_was_answered() -> None:
    assert fault("The answer is 1,000.", "1000.0") is None
    assert fault("7", "The answer is 8") == "8 instead of 7"
    assert fault("7", "I do not know") == "no number; expected 7"
    assert fault("7", "  ") == "no answer"


def test_an_expected_text_without_a_number_is_compared_as_words() -> None:
    assert fault("Knight A.", "knight a") is None
    assert fault("Knight A.", "Knight B") == "not 'Knight A.'"


def test_hostile_text_does_not_take_long() -> None:
    started = time.monotonic()
    for text in (
        "1,111" * 20_000,
        "-" * 100_000,
        "\\boxed{" * 20_000,
        "1/" * 50_000,
        "9" * 20_000,
        "answer is " * 10_000,
    ):
        final_number(text)
    assert time.monotonic() - started < 20


def test_gsm8k_answers_are_right_and_shuffled_ones_near_chance(shared_data: Path) -> None:
    lines = (shared_data / "gsm8k" / "test.jsonl").read_text(encoding="utf-8").splitlines()
    gold = [json.loads(line)["answer"] for line in lines]
    assert len(gold) == 1319
    numbers = [text.rpartition("####")[2].strip() for text in gold]
    for answered in (gold, numbers, [f"So the answer is ${n}." for n in numbers], [rf"\boxed{{{n}}}" for n in numbers]):
        assert [fault(want, got) for want, got in zip(gold, answered, strict=True)] == [None] * len(gold)
    shuffled = gold[:]
    random.Random(0).shuffle(shuffled)
    chance = sum((numbers.count(n) / len(numbers)) ** 2 for n in set(numbers))
    right = sum(fault(want, got) is None for want, got in zip(gold, shuffled, strict=True)) / len(gold)
    assert abs(right - chance) < 0.02
