"""Formats of plain text columns: a question and its answer, in their many names."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from tasks.conversations.canonical import Unconvertible, loads
from tasks.conversations.message_formats import openai_turns
from tasks.conversations.turns import (
    CALL,
    Reading,
    Turn,
    assistant,
    joined,
    messages_of,
    required_text,
    system_of,
    text_of,
)

Row = Mapping[str, Any]

NO_SOLUTION = ("n/a", "")

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def alpaca(row: Row) -> Reading:
    """instruction and input are the user's text."""
    instruction, given = text_of(row["instruction"], "instruction"), text_of(row["input"], "input")
    user = "\n\n".join(part for part in (instruction, given) if part.strip())
    return Reading([*system_of(row), *_history(row["history"]), Turn("user", user), _answer(row, "output")])


def alpaca_system(row: Row) -> Reading:
    """instruction is the system prompt, input the user's text."""
    instruction = text_of(row["instruction"], "instruction")
    system = [Turn("system", instruction)] if instruction.strip() else []
    user = Turn("user", required_text(row, "input"))
    return Reading([*system, *_history(row["history"]), user, _answer(row, "output")])


def question_answer(row: Row) -> Reading:
    """question and answer; what is thought before the answer may have a column of its own."""
    answer = assistant(required_text(row, "answer"), text_of(row["thinking"], "thinking"))
    user = Turn("user", required_text(row, "question"))
    return Reading([*system_of(row), *_history(row["history"]), user, answer])


def prompt_completion(row: Row) -> Reading:
    """prompt and completion as text, or each as a list of messages."""
    turns = system_of(row)
    for name, turn in (("prompt", lambda text: Turn("user", text)), ("completion", assistant)):
        value = row[name]
        if isinstance(value, list) or (isinstance(value, str) and value.startswith('[{"role"')):
            turns += [turn for message in messages_of(value) for turn in openai_turns(message)]
        else:
            turns.append(turn(required_text(row, name)))
    return Reading(joined(turns))


def open_math_reasoning(row: Row) -> Reading:
    """problem and generated_solution, which opens with a `<think>` block.

    A problem without a solution has "n/a" for one. A solution with calls of an interpreter has its output as well,
    which the model would learn to make up.
    """
    solution = required_text(row, "generated_solution")
    if solution.strip().lower() in NO_SOLUTION:
        raise Unconvertible("no_solution", solution)
    if CALL in solution:
        raise Unconvertible("with_interpreter", solution[solution.index(CALL) :])
    return Reading([Turn("user", required_text(row, "problem")), _answer(row, "generated_solution")])


def gsm8k(row: Row) -> Reading:
    """The worked solution is the thinking, what follows #### the answer; calculator markup is removed."""
    solution, answer = _solved(row)
    return Reading([Turn("user", required_text(row, "question")), assistant(answer, solution)])


def gsm8k_direct(row: Row) -> Reading:
    """The worked solution and the answer are both text."""
    solution, answer = _solved(row)
    return Reading([Turn("user", required_text(row, "question")), assistant(f"{solution}\n\nAnswer: {answer}")])


def _solved(row: Row) -> tuple[str, str]:
    solution, mark, answer = required_text(row, "answer").rpartition("####")
    if not mark or not answer.strip():
        raise Unconvertible("no_final_answer", required_text(row, "answer")[-200:])
    return _CALCULATOR.sub("", solution).strip(), answer.strip()


def _answer(row: Row, name: str) -> Turn:
    return assistant(required_text(row, name))


def _history(value: Any) -> list[Turn]:
    if isinstance(value, str):
        value = loads(value, "history_not_pairs") if value.strip() else []
    turns = []
    for pair in value or []:
        pair = loads(pair, "history_not_pairs") if isinstance(pair, str) else pair
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unconvertible("history_not_pairs", str(pair)[:200])
        turns += [Turn("user", text_of(pair[0], "history")), assistant(text_of(pair[1], "history"))]
    return turns
