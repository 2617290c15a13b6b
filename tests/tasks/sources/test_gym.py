from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import BadInput
from tasks.fetch import fetch
from tasks.recipe import Source
from tasks.sources import resolve
from tasks.sources.traces import TRACES
from tasks.store import Store

Row = dict[str, Any]


def rows(uri: str, tmp_path: Path) -> list[Row]:
    store = Store(tmp_path / "store")
    snapshot = fetch(Source(name="s", uri=uri, kind="reasoning", share=1), store)
    (path,) = (store.folder(snapshot) / "data").iterdir()
    return [json.loads(line) for line in path.read_bytes().splitlines()]


@pytest.mark.parametrize("task", sorted(TRACES))
def test_each_task_thinks_its_way_to_an_answer_that_its_own_scorer_accepts(tmp_path: Path, task: str) -> None:
    import reasoning_gym

    found = rows(f"gym://{task}?size=40&seed=7", tmp_path)
    assert len({row["messages"][0]["content"] for row in found}) == 40
    by_question = {}
    scorer = reasoning_gym.create_dataset(task, size=800, seed=7 * 10**8)
    for index in range(800):
        by_question.setdefault(scorer[index]["question"].strip(), scorer[index])
    for row in found:
        question, answer = row["messages"]
        assert scorer.score_answer(answer["content"], by_question[question["content"]]) == 1.0
        assert answer["reasoning_content"].strip()


def test_the_steps_of_a_sum_are_right_and_end_at_the_answer(tmp_path: Path) -> None:
    for row in rows("gym://chain_sum?size=200&min_terms=2&max_terms=4&max_digits=2", tmp_path):
        answer = row["messages"][-1]
        steps = answer["reasoning_content"].splitlines()
        for step in steps:
            left, sign, right, result = re.fullmatch(r"(-?\d+) ([+-]) (\d+) = (-?\d+)", step).groups()  # type: ignore[union-attr]
            assert int(left) + int(right) * (1 if sign == "+" else -1) == int(result)
        assert steps[-1].endswith(f"= {answer['content']}")


def test_seeds_do_not_share_rows(tmp_path: Path) -> None:
    uri = "gym://chain_sum?size=100&min_terms=6&max_terms=6&min_digits=4&max_digits=4&seed="
    one, other = ({row["messages"][0]["content"] for row in rows(f"{uri}{seed}", tmp_path)} for seed in (0, 1))
    assert not one & other
    assert resolve(f"{uri}0") != resolve(f"{uri}1")


def test_bad_rows_are_planted_only_when_asked_for(tmp_path: Path) -> None:
    clean = rows("gym://chain_sum?size=100", tmp_path)
    planted = rows("gym://chain_sum?size=100&planted=0.04", tmp_path)
    at = [index for index, (one, other) in enumerate(zip(clean, planted, strict=True)) if one != other]
    assert at == [24, 49, 74, 99]
    unclosed, empty_trace, empty_answer, repeated = (planted[index]["messages"][-1] for index in at)
    assert "<think>" in unclosed["content"]
    assert "</think>" not in unclosed["content"]
    assert empty_trace["reasoning_content"] == ""
    assert empty_answer["content"] == ""
    assert repeated == planted[98]["messages"][-1]


@pytest.mark.parametrize(
    ("uri", "message"),
    [
        ("gym://chain_sums", r"Did you mean 'chain_sum'.*Tasks with one: .*gsm_symbolic"),
        ("gym://sudoku", r"no task with a worked solution"),
        ("gym://chain_sum?max_term=3", r"no setting 'max_term'.*Did you mean 'max_terms'"),
        ("gym://chain_sum?min_terms=5&max_terms=3", r"settings that the task refuses"),
        ("gym://chain_sum?min_terms=many", r"settings that the task refuses"),
        ("gym://chain_sum?size=500&min_terms=2&max_terms=2&max_digits=1", r"yields only \d+ distinct questions"),
        ("gym://chain_sum?size=none", r"size=none"),
    ],
)
def test_what_the_gym_does_not_have_is_bad_input(tmp_path: Path, uri: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        rows(uri, tmp_path)
