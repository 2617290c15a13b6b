from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.conversations import CONVERSATION, prompt_key
from tasks.quality import exact_duplicates, fingerprints, said

Made = Callable[..., Any]


def index(rows: list[dict[str, Any]]) -> pl.DataFrame:
    columns = ("row_id", "kind", "messages", "tools")
    frame = pl.DataFrame(
        [{"source": "s", "revision": "r", "source_row": 0, **{c: row[c] for c in columns}} for row in rows],
        schema=CONVERSATION,
    )
    return pl.concat([frame.select("row_id"), fingerprints(frame, prompt_key(frame))], how="horizontal")


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
    assert "weather" in said(frame)["all"][0]
    assert said(frame)["turns"].to_list() == [["Weather?"], ["Weather?"]]


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
    prompts = [rows[n]["messages"][0]["content"].lower().strip() for n in stay]
    assert len(set(prompts)) == len(prompts)
