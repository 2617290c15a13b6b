from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.conversations.answer import parse_answer

CALL = '<tool_call>\n{"name": "f", "arguments": {"b": 1, "a": "x"}}\n</tool_call>'


def read(text: str) -> tuple[str | None, bool, str, list[tuple[str, str | None]], bool]:
    answer = parse_answer(text, ("<|im_end|>",))
    calls = [(call.name, call.arguments) for call in answer.tool_calls]
    return answer.thinking, answer.thinking_closed, answer.content, calls, answer.malformed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Hello.<|im_end|>\n", (None, True, "Hello.", [], False)),
        ("Hello.<|im_end|>\n<|im_start|>user\nand more", (None, True, "Hello.", [], False)),
        ("<think>\nhm\n</think>\n\n42", ("hm", True, "42", [], False)),
        ("<think>\n\n</think>\n\n42", (None, True, "42", [], False)),
        ("hm\n</think>\n\n42", ("hm", True, "42", [], False)),
        ("<think>\nit never ends", ("it never ends", False, "", [], True)),
        ("<think>a</think>b<think>c</think>", ("a", True, "b<think>c</think>", [], True)),
        ("Well <think>a</think>b", (None, True, "Well <think>a</think>b", [], True)),
        (CALL, (None, True, "", [("f", '{"a":"x","b":1}')], False)),
        (f"I look.\n{CALL}\n{CALL}", (None, True, "I look.", [("f", '{"a":"x","b":1}')] * 2, False)),
        (f"<think>\nuse f\n</think>\n\n{CALL}", ("use f", True, "", [("f", '{"a":"x","b":1}')], False)),
        ('<tool_call>{"name": "f", "arguments": {}}', (None, True, "", [("f", "{}")], True)),
        ('<tool_call>\n{"name": "f", "arguments": {"a": }\n</tool_call>', (None, True, "", [("f", None)], True)),
        ('<tool_call>\n{"name": "f", "arguments": "{}"}\n</tool_call>', (None, True, "", [("f", None)], True)),
        ('<tool_call>\n{"name": "f"}\n</tool_call>', (None, True, "", [("f", None)], True)),
        ("<tool_call>\n[1]\n</tool_call>", (None, True, "", [("", None)], True)),
        ('<tool_call>\n{"name": "f", "arguments": {"a": NaN}}\n</tool_call>', (None, True, "", [("f", None)], True)),
        ("done</tool_call>", (None, True, "done</tool_call>", [], True)),
        ("", (None, True, "", [], False)),
    ],
)
def test_an_answer_is_read(text: str, expected: tuple[object, ...]) -> None:
    assert read(text) == expected


PIECES = st.sampled_from(
    ["<think>", "</think>", "<tool_call>", "</tool_call>", CALL, "<|im_end|>", '{"name":', "\n", "a"]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join))
def test_any_text_is_read_without_an_exception(text: str) -> None:
    answer = parse_answer(text, ("<|im_end|>",))
    assert "<|im_end|>" not in answer.content
    assert answer.thinking_closed or answer.malformed
    if not answer.malformed:
        assert all(call.name and call.arguments is not None for call in answer.tool_calls)
        assert not any(tag in answer.content for tag in ("<think>", "</think>", "<tool_call>", "</tool_call>"))
