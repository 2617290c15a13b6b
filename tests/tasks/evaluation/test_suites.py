from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from tasks.conversations import Renderer
from tasks.evaluation.suites import Question, Reply, score

Ask = Callable[..., tuple[float, str]]


@pytest.fixture
def ask(tiny_renderer: Renderer, tools: str, turn: Callable[..., dict[str, Any]]) -> Ask:
    def asked(
        suite: str, output: str, *, mode: Any = "direct", stopped: bool = True, **expected: Any
    ) -> tuple[float, str]:
        question = Question(
            item_id="1",
            prompt="p",
            expected=turn("assistant", **({"content": ""} | expected)),
            tools=tools,
            mode=mode,
            special_tokens=tiny_renderer.special_tokens,
        )
        reply = Reply(output=output, answer=tiny_renderer.parse_answer(output), stopped=stopped)
        return score(suite, question, reply)

    return asked


CALL = '<tool_call>\n{"name": "add", "arguments": {"b": 2, "a": 1.0}}\n</tool_call>'


@pytest.mark.parametrize(
    ("output", "detail"),
    [
        (CALL, ""),
        (f"Let me add.\n{CALL}", ""),
        (f"{CALL}\n{CALL}", "2 calls instead of 1"),
        ("3", "no call"),
        (CALL.removesuffix("</tool_call>"), "malformed thinking or call"),
        ("<tool_call>\n{add}\n</tool_call>", "malformed thinking or call"),
    ],
)
def test_tool_call(ask: Ask, output: str, detail: str) -> None:
    assert ask("tool_call", output, calls=[("add", {"a": 1, "b": 2})]) == (float(not detail), detail)


def test_tool_call_where_none_fits(ask: Ask) -> None:
    assert ask("tool_call", "I cannot.", content="No tool fits.") == (1.0, "")
    assert ask("tool_call", CALL, content="No tool fits.")[0] == 0


@pytest.mark.parametrize(
    ("output", "detail"),
    [
        ("<think>\n3+4\n</think>\n\nThe answer is 7.", ""),
        ("3+4\n</think>\n\n7", ""),  # the template opened the block
        ("<think>\n3+4=7 so 7", "thinking not closed"),
        ("The answer is 7.", "no thinking"),
        ("<think>\n\n</think>\n\n7", "no thinking"),
        ("<think>a</think><think>b</think>7", "malformed thinking or call"),
        ("<think>a</think>", "no answer"),
        ("<think>7</think>8", "8 instead of 7"),
    ],
)
def test_final_answer_in_thinking_mode(ask: Ask, output: str, detail: str) -> None:
    assert ask("final_answer", output, mode="thinking", content="7") == (float(not detail), detail)


def test_final_answer_in_direct_mode_wants_no_thinking(ask: Ask) -> None:
    assert ask("final_answer", "7", content="7") == (1.0, "")
    assert ask("final_answer", "<think>a</think>7", content="7") == (0.0, "thinking where none was asked for")


@pytest.mark.parametrize(
    ("output", "stopped", "detail"),
    [
        ("Blue.", True, ""),
        ("Blue.", False, "did not stop by itself"),
        ("", True, "empty"),
        ("  \n", True, "empty"),
        (CALL, True, "called add"),
        ("Blue <|im_start|>user", True, "stray <|im_start|>"),
        ("<think>b</think>Blue", True, "thinking where none was asked for"),
        ("Bl\ufffd", True, "broken character"),
    ],
)
def test_chat_format(ask: Ask, output: str, stopped: bool, detail: str) -> None:
    assert ask("chat_format", output, stopped=stopped, content="Blue") == (float(not detail), detail)


def test_a_loss_that_is_missing_is_no_score(ask: Ask) -> None:
    with pytest.raises(ValueError, match="has no loss"):
        ask("held_out_loss", "")
