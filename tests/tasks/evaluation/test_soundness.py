"""Evaluation sets that cannot be measured on: found item by item, and the night told before it trains."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.errors import BadInput
from tasks.evaluate import check_sets
from tasks.evaluation import EvaluationSets, flaws, suite_items
from tasks.mixture import Split, TokenisedMixture
from tasks.recipe import Recipe, Suite, parse
from tasks.store import Store

Turn = Callable[..., dict[str, Any]]
MATHS = [{"question": f"What is {n} and {n}?", "answer": f"#### {2 * n}"} for n in range(4)]


def recipe(*suites: dict[str, Any]) -> Recipe:
    return parse(
        {
            "name": "small",
            "base": {"uri": "sample://base", "chat_template": "{{ messages }}"},
            "sources": [{"name": "talk", "uri": "sample://chat", "kind": "chat", "share": 1.0}],
            "evaluation": {"suites": suites},
        }
    )


def of_file(folder: Path, rows: list[dict[str, Any]], measure: str = "final_answer", **more: Any) -> Recipe:
    file = folder / "set.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    return recipe({"name": "maths", "measure": measure, "data": str(file), "role": "target", **more})


@pytest.fixture
def mixture(tmp_path: Path, rows: Callable[[int], pl.DataFrame]) -> tuple[TokenisedMixture, Store]:
    store = Store(tmp_path / "store")

    def build(work: Path) -> dict[str, Any]:
        rows(5).write_parquet(work / "test.parquet")
        fields: dict[str, Any] = {"rows_in": 15, "rows_out": 15, "set_aside": {}, "recipe": "small"}
        held_out = Split(rows=15, tokens=0, supervised_tokens=0, digest="d")
        return fields | {"splits": {"test": held_out}, "shares": {}, "chat_template": "", "tokenizer": ""}

    return store.make(TokenisedMixture, {}, build)[0], store


def test_each_flaw_is_found_where_it_lies(rows: Callable[[int], pl.DataFrame], turn: Turn) -> None:
    sound = rows(4).with_columns(reference=pl.lit(None, pl.String))
    for measure in ("tool_call", "chat_format", "held_out_loss", "thinking"):
        assert flaws(sound, measure).select(pl.any_horizontal(pl.col(pl.Boolean)).any()).item() is False, measure

    def one(messages: list[dict[str, Any]], measure: Any, reference: object = None, tools: str | None = None) -> Any:
        about = json.dumps(reference) if reference is not None else None
        item = sound.head(1).with_columns(
            messages=pl.Series([messages], dtype=sound.schema["messages"]),
            tools=pl.lit(tools, pl.String),
            reference=pl.lit(about, pl.String),
        )
        return flaws(item, measure).row(0)[1:3]

    asked, answered = turn("user", "Two and two?"), turn("assistant", "4")
    assert one([asked, answered], "final_answer") == (False, False)
    assert one([turn("user", " \n"), answered], "final_answer") == (True, False)
    assert one([turn("system", "Be brief."), answered], "final_answer") == (True, False)
    assert one([asked], "chat_format") == (False, True)
    # As it is rendered, the question is all that comes before the last answer.
    assert one([answered, asked], "chat_format") == (True, False)
    empty = turn("assistant", " ")
    lacking = {m: one([asked, empty], m)[1] for m in ("final_answer", "overlap", "held_out_loss", "thinking")}
    assert lacking == {"final_answer": True, "overlap": True, "held_out_loss": True, "thinking": False}
    assert one([asked, turn("assistant", "", calls=[("add", {"a": 1})])], "held_out_loss") == (False, False)
    assert one([asked, empty], "tool_call", {"calls": []}, "[]") == (False, False)
    assert one([asked, empty], "tool_call", {"calls": []}) == (False, True)
    assert one([asked, answered], "tool_call", {}, "[]") == (False, True)
    assert one([asked, answered], "choice", {"letter": "A", "choices": ["1", "2"]}) == (False, False)
    assert one([asked, answered], "choice", {}) == (False, True)
    assert one([asked, answered], "task", {"gym": "gym://chain_sum", "index": 0}) == (False, False)
    assert one([asked, answered], "task", {"gym": "gym://chain_sum"}) == (False, True)
    known, unknown = ({"rules": [{"rule": name, "with": {}}]} for name in ("keywords:existence", "no:such"))
    assert [one([asked, answered], "instructions", rules)[1] for rules in (known, unknown, {})] == [False, True, True]


def test_sound_sets_are_looked_at_once(mixture: tuple[TokenisedMixture, Store], tmp_path: Path) -> None:
    held_out = {"name": "held_out_loss", "kind": "chat", "role": "guard", "items": 3}
    mixed, store = mixture
    whole = of_file(tmp_path, MATHS)
    both = recipe(whole.evaluation.suites[0].model_dump(), held_out)
    history = tmp_path / "history"
    checked = check_sets(both, mixed, store, history)
    assert checked.items == {"maths": 4, "held_out_loss": 3}
    assert set(checked.files) == {"docs/small-maths-items.html", "docs/small-held_out_loss-items.html"}
    assert "Every item has a right answer" in (store.folder(checked) / "docs/small-maths-items.html").read_text()
    again = sorted(history.rglob("*.html"))
    assert check_sets(both, mixed, store, history) == checked
    assert sorted(history.rglob("*.html")) == again


@pytest.mark.parametrize(
    ("lines", "measure", "says"),
    [
        ([*MATHS, {"question": " ", "answer": "5"}], "final_answer", "Every item has a prompt, 1 of 5 do not"),
        ([*MATHS, {"question": "What?", "answer": None}], "final_answer", "has a right answer, 1 of 5 do not"),
        (MATHS, "choice", "the letter of the right choice, and the choices, 4 of 4 do not"),
        ([*MATHS, {"question": None, "answer": "5"}], "final_answer", r"row 5 is not like the first one \(TypeError"),
    ],
)
def test_a_broken_set_is_one_error(
    mixture: tuple[TokenisedMixture, Store], tmp_path: Path, lines: list[dict[str, Any]], measure: str, says: str
) -> None:
    mixed, store = mixture
    with pytest.raises(BadInput, match=says) as caught:
        check_sets(of_file(tmp_path, lines, measure), mixed, store)
    assert caught.value.field == "evaluation.suites.maths.data"
    assert str(tmp_path / "set.jsonl") == caught.value.value
    assert "Correct" in str(caught.value)
    assert store.all(EvaluationSets) == []


def test_a_prompt_that_is_there_twice_is_told(
    mixture: tuple[TokenisedMixture, Store], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mixed, store = mixture
    twice = [*MATHS, {**MATHS[0], "answer": "#### 7"}]
    with caplog.at_level(logging.WARNING):
        check_sets(of_file(tmp_path, twice), mixed, store)
    assert "evaluation.suites.maths: No prompt is there twice, 1 of 5 do not, such as" in caplog.text


@pytest.mark.parametrize(
    ("folder", "measure"),
    [("gsm8k/test.jsonl", "final_answer"), ("mmlu/*.csv", "choice"), ("ifeval/*.jsonl", "instructions")]
    + [(f"bfcl/BFCL_v4_{name}.json", "tool_call") for name in ("simple_python", "multiple", "irrelevance")],
)
def test_published_benchmarks_are_sound(shared_data: Path, folder: str, measure: Any) -> None:
    suite = Suite(name="it", measure=measure, data=str(shared_data / folder), role="target", items=20_000)
    found = flaws(suite_items(Path(), suite).rows, measure)
    assert found.select("no_prompt", "no_answer").sum().row(0) == (0, 0)
    print(f"{folder}: {found.height} items, {found['asked_before'].sum()} prompts again")
