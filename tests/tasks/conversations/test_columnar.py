"""Reading rows as columns gives what reading them one by one gives, whatever the rows hold."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.conversations import columnar, convert
from tasks.conversations.columnar import READERS

PROPERTY = settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
PIECES = [
    "a",
    "Zürich",
    " ",
    "\n",
    "\x1c",
    "\u2003",
    "\u200b",
    "<think>",
    "</think>",
    '[{"',
    '"type": "text"',
    "####",
    "<<1+1=2>>",
    "<tool_call>",
    "N/a",
    "<|begin_of_thought|>",
    "<|end_of_thought|>",
    "<|begin_of_solution|>",
]
TEXT = st.none() | st.lists(st.sampled_from(PIECES), max_size=6).map("".join)
TOOLS = st.none() | st.sampled_from(["", " ", "[]", "null", "{", '[{"name": "f", "parameters": {"a": "int"}}]'])
SPEAKERS = st.none() | st.sampled_from(
    ["human", "gpt", "system", "Assistant", "user", "observation", "function_call", "x"]
)
CALLS = st.none() | st.sampled_from(["", "[]", '[{"name": "f", "arguments": {}}]', "?"])


SAID = {
    "from": SPEAKERS,
    "value": TEXT,
    "weight": st.none() | st.sampled_from([0.0, 1.0]),
    "train": st.none() | st.booleans(),
}


def table_of(rows: list[dict[str, Any]], schema: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schema).with_columns(source_row=pl.int_range(pl.len(), dtype=pl.Int64) * 3)


def one_by_one(raw: pl.DataFrame, form: str, patch: pytest.MonkeyPatch) -> tuple[pl.DataFrame, pl.DataFrame]:
    with patch.context() as without:
        without.setattr(columnar, "READERS", {})
        return convert(raw, source="s", revision="r", kind="chat", format=form)


def same(raw: pl.DataFrame, form: str, patch: pytest.MonkeyPatch) -> None:
    expected, aside = one_by_one(raw, form, patch)
    conversations, set_aside = convert(raw, source="s", revision="r", kind="chat", format=form)
    assert conversations.height + set_aside.height == raw.height
    assert sorted([*conversations["source_row"], *set_aside["source_row"]]) == raw["source_row"].to_list()
    assert conversations.to_dicts() == expected.to_dicts()
    assert set_aside.to_dicts() == aside.to_dicts()


@pytest.mark.parametrize(
    ("form", "columns"),
    [
        ("alpaca", ["instruction", "input", "output", "system"]),
        ("alpaca", ["instruction", "output"]),
        ("alpaca_system", ["instruction", "input", "output"]),
        ("question_answer", ["question", "answer", "system"]),
        ("question_answer", ["question", "answer", "thinking", "history"]),
        ("prompt_completion", ["prompt", "completion"]),
        ("open_math_reasoning", ["problem", "generated_solution"]),
        ("gsm8k", ["question", "answer"]),
        ("gsm8k_direct", ["question", "answer"]),
    ],
)
@PROPERTY
@given(data=st.data())
def test_pairs(monkeypatch: pytest.MonkeyPatch, form: str, columns: list[str], data: st.DataObject) -> None:
    rows = data.draw(st.lists(st.fixed_dictionaries(dict.fromkeys(columns, TEXT)), min_size=1, max_size=5))
    same(table_of(rows, dict.fromkeys(columns, pl.String)), form, monkeypatch)


@PROPERTY
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "conversations": st.none() | st.lists(st.none() | st.fixed_dictionaries(SAID), max_size=4),
                "tools": TOOLS,
                "system": TEXT,
            }
        ),
        min_size=1,
        max_size=4,
    ),
    without=st.sampled_from([(), ("tools",), ("system",), ("tools", "system")]),
)
def test_sharegpt(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], without: tuple[str, ...]) -> None:
    message = pl.Struct({"from": pl.String, "value": pl.String, "weight": pl.Float64, "train": pl.Boolean})
    schema = {"conversations": pl.List(message), "tools": pl.String, "system": pl.String}
    same(table_of(rows, schema).drop(without), "sharegpt", monkeypatch)


MESSAGE = {
    "role": SPEAKERS,
    "content": TEXT,
    "reasoning_content": TEXT,
    "thinking": TEXT,
    "tool_calls": CALLS,
    "function_call": CALLS,
    "tool_call_id": st.none() | st.just("1"),
    "name": st.none() | st.just("f"),
    "weight": st.none() | st.just("0"),
}


@PROPERTY
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "messages": st.none() | st.lists(st.none() | st.fixed_dictionaries(MESSAGE), max_size=4),
                "tools": TOOLS,
                "functions": TOOLS,
            }
        ),
        min_size=1,
        max_size=4,
    ),
    fields=st.sets(st.sampled_from(list(MESSAGE)[2:])),
)
def test_openai(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]], fields: set[str]) -> None:
    message = pl.Struct({name: pl.String for name in MESSAGE if name in {"role", "content"} | fields})
    kept = [
        {
            **row,
            "messages": row["messages"]
            and [m and {name: m[name] for name in m if name in {"role", "content"} | fields} for m in row["messages"]],
        }
        for row in rows
    ]
    schema = {"messages": pl.List(message), "tools": pl.String, "functions": pl.String}
    same(table_of(kept, schema), "openai", monkeypatch)


@pytest.mark.parametrize(
    ("form", "row"),
    [
        ("alpaca", {"instruction": "a", "input": "b", "output": "c", "history": [["d", "e"]]}),
        ("alpaca", {"instruction": "a", "input": None, "output": "c", "history": []}),
        ("alpaca", {"instruction": "a", "input": ["b"], "output": "c"}),
        ("prompt_completion", {"prompt": [{"role": "user", "content": "a"}], "completion": "b"}),
        ("openai", {"messages": [{"role": "user", "content": ["a"]}]}),
        (
            "openai",
            {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"name": "f", "arguments": "{}"}]}]},
        ),
        ("openai", {"messages": [{"role": "user", "content": "a"}], "tools": [{"name": "f"}]}),
        ("openai", {"messages": [{"role": "user", "content": "a"}], "tools": []}),
        ("sharegpt", {"conversations": '[{"from": "human", "value": "a"}]'}),
        ("sharegpt", {"conversations": []}),
        ("sharegpt", {"conversations": [{"from": "human", "value": 7}]}),
    ],
)
def test_columns_of_other_types(monkeypatch: pytest.MonkeyPatch, form: str, row: dict[str, Any]) -> None:
    same(pl.DataFrame([row]).with_columns(source_row=pl.lit(0, pl.Int64)), form, monkeypatch)


def test_plain_rows_are_not_read_one_by_one() -> None:
    table = pl.DataFrame({"source_row": [0, 1], "question": ["a", None], "answer": ["<think>b</think>c", "d"]})
    plain = READERS["question_answer"](table)
    assert plain is not None
    assert plain.which.to_list() == [True, False]
    assert plain.rows["source_row"].to_list() == [0]
