"""The formats that instruction data comes in, and which one a table is in.

A format names the columns it needs, says of the first rows whether they look like it, and reads one
row into turns. A row that it cannot read is Unconvertible, with a reason to count by; never guessed at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.conversations.canonical import Unconvertible, calls_of, canonical_tools, loads
from tasks.conversations.turns import (
    Reading,
    Turn,
    assistant,
    joined,
    required_text,
    role_of,
    text_of,
)

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Format:
    """`required` and `optional` columns; `read` makes a Reading of a row (columns that are absent are None);
    `looks` says of the first rows, which have the required columns, whether they are in this format."""

    name: str
    required: frozenset[str]
    optional: frozenset[str]
    read: Callable[[Row], Reading]
    looks: Callable[[Sequence[Row]], bool]
    about: str


def _system(row: Row) -> list[Turn]:
    text = text_of(row["system"], "system")
    return [Turn("system", text)] if text.strip() else []


def _alpaca(row: Row) -> Reading:
    instruction, given = text_of(row["instruction"], "instruction"), text_of(row["input"], "input")
    user = "\n\n".join(part for part in (instruction, given) if part.strip())
    return Reading([*_system(row), *_history(row["history"]), Turn("user", user), *_answer(row, "output")])


def _alpaca_system(row: Row) -> Reading:
    instruction = text_of(row["instruction"], "instruction")
    system = [Turn("system", instruction)] if instruction.strip() else []
    user = Turn("user", required_text(row, "input"))
    return Reading([*system, *_history(row["history"]), user, *_answer(row, "output")])


def _answer(row: Row, name: str) -> list[Turn]:
    return [assistant(required_text(row, name))]


def _history(value: Any) -> list[Turn]:
    if isinstance(value, str) and value.strip():
        value = loads(value, "history_not_pairs")
    turns = []
    for pair in value or []:
        pair = loads(pair, "history_not_pairs") if isinstance(pair, str) else pair
        if not isinstance(pair, list) or len(pair) != 2:
            raise Unconvertible("history_not_pairs", str(pair)[:200])
        turns += [Turn("user", text_of(pair[0], "history")), assistant(text_of(pair[1], "history"))]
    return turns


def _openai(row: Row) -> Reading:
    turns = [_openai_turn(message) for message in _messages(row["messages"])]
    tools = row["tools"] if row["tools"] not in (None, "", []) else row["functions"]
    return Reading([*_system(row), *joined(turns)], canonical_tools(tools))


def _messages(value: Any) -> list[Mapping[str, Any]]:
    if isinstance(value, str):
        value = loads(value, "messages_not_list")
    if not isinstance(value, list) or not value:
        raise Unconvertible("no_messages", str(value)[:200])
    messages = [loads(message, "messages_not_list") if isinstance(message, str) else message for message in value]
    for message in messages:
        if not isinstance(message, Mapping):
            raise Unconvertible("messages_not_list", f"a message is no object: {str(message)[:200]}")
    return messages


def _openai_turn(message: Mapping[str, Any]) -> Turn:
    role, content = role_of(message.get("role")), text_of(message.get("content"), "content")
    if role == "call":
        return assistant("", calls=calls_of(content))
    if role != "assistant":
        call_id = message.get("tool_call_id") if role == "tool" else None
        return Turn(role, content, call_id=call_id if isinstance(call_id, str) else None)
    thinking = next((message[key] for key in ("reasoning_content", "reasoning", "thinking") if message.get(key)), None)
    calls = [call for key in ("tool_calls", "function_call") if message.get(key) for call in calls_of(message[key])]
    return assistant(content, text_of(thinking, "thinking"), calls)


def _question_answer(row: Row) -> Reading:
    return Reading([*_system(row), Turn("user", required_text(row, "question")), *_answer(row, "answer")])


def _texts(*names: str) -> Callable[[Sequence[Row]], bool]:
    """Whether these columns hold text or nothing."""
    return lambda rows: all(isinstance(row[name], str | None) for row in rows for name in names)


def _has_keys(column: str, *keys: str) -> Callable[[Sequence[Row]], bool]:
    """Whether the first message of the first rows that have one is an object with these keys."""

    def looks(rows: Sequence[Row]) -> bool:
        seen = 0
        for row in rows:
            try:
                first = _messages(row[column])[0]
            except Unconvertible:
                continue
            if not all(key in first for key in keys):
                return False
            seen += 1
        return seen > 0

    return looks


_FORMATS = (
    Format(
        "alpaca",
        frozenset({"instruction", "output"}),
        frozenset({"input", "system", "history"}),
        _alpaca,
        _texts("instruction", "output"),
        "instruction and input as the user's text, output, system, history of pairs",
    ),
    Format(
        "alpaca_system",
        frozenset({"instruction", "input", "output"}),
        frozenset({"history"}),
        _alpaca_system,
        lambda rows: False,  # the columns are alpaca's: only the recipe can say that instruction is a system prompt
        "instruction as the system prompt, input as the user's text, output",
    ),
    Format(
        "openai",
        frozenset({"messages"}),
        frozenset({"tools", "functions", "system"}),
        _openai,
        _has_keys("messages", "role"),
        "messages of role and content, tool_calls, typed parts, reasoning_content; tools",
    ),
    Format(
        "question_answer",
        frozenset({"question", "answer"}),
        frozenset({"system"}),
        _question_answer,
        _texts("question", "answer"),
        "question and answer as plain text",
    ),
)
FORMATS = {known.name: known for known in _FORMATS}
