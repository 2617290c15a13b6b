"""The suites: what each asks of an answer, in what unit, and in which direction it is better.

Scoring is a pure function of the item and the answer, so that EvalScope's benchmarks, the tests and
a person with a table come to the same score.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from tasks.conversations import Answer
from tasks.evaluation import calls, choice, final_answer, gym, instructions, overlap
from tasks.recipe import Measure, Mode


class Question(BaseModel):
    """One item of a suite as one model was asked it.

    `expected`: the reference turn (a message of the conversation schema); `reference`: what a benchmark's file says of
    the right answer; `special_tokens`: those of the model's tokenizer, which must not turn up in an answer.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    item_id: str
    prompt: str
    expected: dict[str, Any]
    tools: str | None
    mode: Mode
    reference: dict[str, Any] = {}
    special_tokens: tuple[str, ...] = ()


class Reply(BaseModel):
    """What the model wrote: `output` raw, without the stop token; `loss` in nats per supervised token;
    `judged`: what a judge made of it, 1, 0.5 or 0."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    output: str
    answer: Answer
    stopped: bool
    loss: float | None = None
    judged: float | None = None


class Metric(NamedTuple):
    """What a measure is: title for people, unit, direction and whether an answer is generated at all."""

    title: str
    unit: str
    higher_is_better: bool
    generates: bool
    about: str


METRICS: dict[Measure, Metric] = {
    "tool_call": Metric(
        "Exact calls", "share", True, True, "The calls are the expected ones: same names, equal arguments."
    ),
    "final_answer": Metric(
        "Right answer", "share", True, True, "The final number is right, after one closed thinking block if asked for."
    ),
    "chat_format": Metric(
        "Well-formed", "share", True, True, "Stops by itself, in plain text, with no stray special token or call."
    ),
    "held_out_loss": Metric(
        "Held-out loss", "nats per token", False, False, "Mean loss on the tokens of held-out answers; lower is better."
    ),
    "thinking": Metric(
        "Thinks as asked",
        "share",
        True,
        True,
        "One closed thinking block and then an answer, or none where none is asked.",
    ),
    "overlap": Metric("Overlap", "share", True, True, "ROUGE-L, as F1, with the held-out answer."),
    "choice": Metric("Right choice", "share", True, True, "The letter of the right choice."),
    "instructions": Metric("Instructions kept", "share", True, True, "Every rule of the prompt is kept."),
    "judge": Metric(
        "Judged better", "share", True, True, "A judge finds it better than the held-out answer, in either order."
    ),
    "task": Metric("Task score", "share", True, True, "What the task's own scorer gives."),
}


def score(measure: Measure, question: Question, reply: Reply) -> tuple[float, str]:
    """An item's score and what was wrong, in words (empty where nothing was)."""
    if measure == "held_out_loss":
        if reply.loss is None:
            raise ValueError(f"item {question.item_id} has no loss")
        return reply.loss, ""
    if measure == "judge":
        return _judged(question, reply)
    if measure in _SHARES:
        problem = _mode_fault(question, reply)
        return (0.0, problem) if problem else (_SHARES[measure](question, reply.answer.content), "")
    problem = _FAULTS[measure](question, reply)
    return float(problem is None), problem or ""


def _judged(question: Question, reply: Reply) -> tuple[float, str]:
    if problem := _mode_fault(question, reply):
        return 0.0, problem
    if reply.judged is None:
        raise ValueError(f"item {question.item_id} has not been judged")
    return reply.judged, {1.0: "", 0.0: "worse than the right answer"}.get(reply.judged, "as good as the right answer")


def _tool_call_fault(question: Question, reply: Reply) -> str | None:
    if reply.answer.malformed:
        return "malformed thinking or call"
    if "calls" in question.reference:
        expected = [calls.ExpectedCall.model_validate(call) for call in question.reference["calls"]]
    else:
        expected = [
            calls.expected_call(call["name"], call["arguments"], question.tools)
            for call in question.expected.get("tool_calls") or ()
        ]
    return calls.fault(expected, reply.answer.tool_calls)


def _final_answer_fault(question: Question, reply: Reply) -> str | None:
    return _mode_fault(question, reply) or final_answer.fault(
        question.expected.get("content") or "", reply.answer.content
    )


def _chat_format_fault(question: Question, reply: Reply) -> str | None:
    if not reply.stopped:
        return "did not stop by itself"
    if problem := _mode_fault(question, reply):
        return problem
    if reply.answer.tool_calls:
        return f"called {reply.answer.tool_calls[0].name}"
    if stray := _stray(reply.answer.content, question.special_tokens):
        return stray
    return None if reply.answer.content.strip() else "empty"


def _mode_fault(question: Question, reply: Reply) -> str | None:
    """Thinking mode wants exactly one closed, non-empty block before the answer; direct mode wants none."""
    answer = reply.answer
    if not answer.thinking_closed:
        return "thinking not closed"
    if answer.malformed:
        return "malformed thinking or call"
    if question.mode == "thinking" and not answer.thinking:
        return "no thinking"
    if question.mode == "direct" and answer.thinking:
        return "thinking where none was asked for"
    return None


def _stray(text: str, special_tokens: Sequence[str]) -> str | None:
    if "\ufffd" in text:
        return "broken character"
    return next((f"stray {token}" for token in special_tokens if token in text), None)


def _thinking_fault(question: Question, reply: Reply) -> str | None:
    return _mode_fault(question, reply) or (None if reply.answer.content.strip() else "no answer")


def _choice_fault(question: Question, reply: Reply) -> str | None:
    about = question.reference
    return _mode_fault(question, reply) or choice.fault(about["letter"], about["choices"], reply.answer.content)


def _instructions_fault(question: Question, reply: Reply) -> str | None:
    return _mode_fault(question, reply) or instructions.fault(question.reference["rules"], reply.answer.content)


_FAULTS: dict[Measure, Callable[[Question, Reply], str | None]] = {
    "tool_call": _tool_call_fault,
    "final_answer": _final_answer_fault,
    "chat_format": _chat_format_fault,
    "thinking": _thinking_fault,
    "choice": _choice_fault,
    "instructions": _instructions_fault,
}
_SHARES: dict[Measure, Callable[[Question, str], float]] = {
    "overlap": lambda question, content: overlap.rouge_l(question.expected.get("content") or "", content),
    "task": lambda question, content: gym.score(question.reference["gym"], question.reference["index"], content),
}


def shown(expected: dict[str, Any]) -> str:
    """The reference turn as a person reads it: its text, or its calls as JSON."""
    if expected.get("tool_calls"):
        return json.dumps(
            [{"name": c["name"], "arguments": json.loads(c["arguments"])} for c in expected["tool_calls"]],
            ensure_ascii=False,
        )
    return expected.get("content") or ""
