from __future__ import annotations

from collections.abc import Callable
from hashlib import blake2b
from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.conversations import CONVERSATION
from tasks.quality import answers, exact_duplicates, fingerprints, said

Made = Callable[..., Any]


def index(rows: list[dict[str, Any]]) -> pl.DataFrame:
    columns = ("row_id", "kind", "messages", "tools")
    frame = pl.DataFrame(
        [{"source": "s", "revision": "r", "source_row": 0, **{c: row[c] for c in columns}} for row in rows],
        schema=CONVERSATION,
    )
    return frame.select("row_id").hstack([*fingerprints(frame), answers(frame)])


def removed(rows: list[dict[str, Any]], **options: Any) -> list[tuple[int, int, str]]:
    return [(row, twin, reason) for row, twin, reason in exact_duplicates(index(rows), **options).iter_rows()]


def test_each_reason(conversation: Made) -> None:
    rows = [
        conversation("What is it?", "An apple."),
        conversation("What is it?", "An apple."),
        conversation("what  is it?", "An  apple. "),
        conversation("What is it?", "A pear."),
        conversation("What is it?", "A pear.", "reasoning", thinking="It is green."),
        conversation("What is that?", "An apple."),
    ]
    assert removed(rows) == [
        (1, 0, "duplicate"),
        (2, 0, "duplicate apart from whitespace"),
        (3, 0, "same prompt, other answer"),
    ]
    assert removed(rows, keep_other_answers=True) == [
        (1, 0, "duplicate"),
        (2, 0, "duplicate apart from whitespace"),
    ]


def test_a_twin_that_is_named_stays(conversation: Made) -> None:
    rows = [
        conversation("Q", "first"),
        conversation("Q", "second"),
        conversation("Q", "second"),
        conversation("Q", " second"),
    ]
    assert {twin for _, twin, _ in removed(rows)} == {0}
    assert [reason for _, _, reason in removed(rows)] == [
        "same prompt, other answer",
        "duplicate",
        "duplicate apart from whitespace",
    ]


def test_calls_thinking_and_tools_are_part_of_what_is_said(conversation: Made) -> None:
    def calling(arguments: str) -> dict[str, Any]:
        row = conversation("Weather?", "", "tool")
        row["messages"][1]["tool_calls"] = [{"name": "weather", "arguments": arguments}]
        row["row_id"] = arguments
        return row

    rows = [calling('{"city":"Rome"}'), calling('{"city":"Oslo"}')]
    assert removed(rows, keep_other_answers=True) == []
    assert removed(rows) == [(1, 0, "same prompt, other answer")]
    frame = pl.DataFrame({"messages": [row["messages"] for row in rows]}, schema={"messages": CONVERSATION["messages"]})
    asked, called = said(frame)[0].to_list()
    assert asked["user"]
    assert asked["text"].strip() == "Weather?"
    assert called == {"text": '  weather {"city":"Rome"}', "user": False}
    rows[1]["tools"] = '[{"name":"weather"}]'
    assert removed(rows) == [], "with other tools it is another task"


@settings(deadline=None)
@given(data=st.data())
def test_what_stays_is_distinct_and_everything_else_has_a_twin_that_stays(
    data: st.DataObject, conversation: Made
) -> None:
    row = st.builds(conversation, st.sampled_from(["a", "A", "b", ""]), st.sampled_from(["x", "x ", "y", ""]))
    rows = data.draw(st.lists(row, max_size=25))
    found = removed(rows)
    gone = {row for row, _, _ in found}
    stay = set(range(len(rows))) - gone
    assert len(gone) == len(found)
    assert {twin for _, twin, _ in found} <= stay
    assert all(twin < row for row, twin, _ in found)
    prompts = [prompt for n in stay if (prompt := rows[n]["messages"][0]["content"].lower())]
    assert len(set(prompts)) == len(prompts)


@pytest.mark.parametrize(
    "twin", ["what is  THIS?", "What is this?\n", " What\tis this?", "What is\u00a0this?", "What is\u3000this?"]
)
def test_twins_in_case_and_space_ask_the_same(conversation: Made, twin: str) -> None:
    keys = index([conversation("What is this?", "A test."), conversation(twin, "another"), conversation("What?", "x")])
    assert keys["question"][0] == keys["question"][1] != keys["question"][2]
    assert keys["asked"][0] == keys["asked"][1]


def test_unicode_forms_ask_the_same(conversation: Made) -> None:
    forms = ("Caf\u00e9 Stra\u00dfe", "CAFE\u0301 STRASSE", "\ufb01ne", "FINE")
    assert index([conversation(form, "x") for form in forms])["question"].rle_id().to_list() == [0, 0, 1, 1]


def test_a_question_is_what_the_user_says_and_its_hash_never_changes(conversation: Made) -> None:
    def talk(*turns: tuple[str, str]) -> dict[str, Any]:
        empty = {"thinking": None, "tool_calls": None, "tool_call_id": None}
        messages = [{"role": role, "content": content, **empty} for role, content in turns]
        return {**conversation("", ""), "messages": messages}

    plain = talk(("user", "Hello you"), ("assistant", "a"))
    system = talk(("system", "Be kind."), ("user", "Hello you"), ("assistant", "b"))
    further = talk(("user", "Hello you"), ("assistant", "a"), ("user", "And?"), ("assistant", "c"))
    nobody = [talk(("system", "s"), ("assistant", text)) for text in ("a", "b")]
    keys = index([plain, system, further, *nobody, talk()])
    # Of the standard library, for whoever has to find a conversation's split without this code.
    assert keys["question"][0] == int.from_bytes(blake2b(b"helloyou", digest_size=8, salt=b"split").digest(), "big")
    assert keys["question"].rle_id().to_list() == [0, 0, 1, 2, 3, 4]
    assert keys["asked"].n_unique() == keys.height
