"""Turns of a conversation as the formats build them, before they become a frame."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from tasks.conversations.answer import THINK, THINK_END
from tasks.conversations.canonical import Unconvertible, calls_of, loads

ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "model", "bot", "chatgpt", "bing", "bard", "ai"), "assistant"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), "call"),
}
CALL, CALL_END = "<tool_call>", "</tool_call>"
# How OpenThoughts, Bespoke-Stratos and Sky-T1 mark what their system prompt asks for.
MARK = "<|begin_of_thought|>"
_MARKED = re.compile(
    r"<\|begin_of_thought\|>(.*?)<\|end_of_thought\|>\s*(?:<\|begin_of_solution\|>)?(.*?)(?:<\|end_of_solution\|>)?",
    re.DOTALL,
)
# What says of a message that it is not to be learnt: OpenAI's and ShareGPT's weight, axolotl's train, ms-swift's loss.
NOT_LEARNT = ("weight", "train", "loss")
_CALLS = re.compile(rf"{CALL}\s*(.*?)\s*{CALL_END}", re.DOTALL)


class Turn(NamedTuple):
    """One message: `calls` are pairs of a name and canonical JSON arguments, None where there are none."""

    role: str
    content: str
    thinking: str | None = None
    calls: tuple[tuple[str, str], ...] | None = None
    call_id: str | None = None


class Reading(NamedTuple):
    """What a format makes of one row: its turns, and declared tools as canonical JSON."""

    turns: list[Turn]
    tools: str | None = None


def role_of(name: object) -> str:
    """Our role of a source's; raises Unconvertible for an unknown one."""
    role = (ROLES.get(name) or ROLES.get(name.strip().lower())) if isinstance(name, str) else None
    if role is None:
        raise Unconvertible("unknown_role", f"role {name!r}; known: {', '.join(ROLES)}")
    return role


def text_of(content: object, what: str) -> str:
    """A message's text, given as text or as a list of typed parts; raises Unconvertible for anything but text."""
    if content is None:
        return ""
    if isinstance(content, str):
        parts = typed_parts(content)
        return _parts(parts, what) if parts else content
    if isinstance(content, list):
        return _parts(content, what)
    raise Unconvertible("content_not_text", f"{what} is {type(content).__name__}: {str(content)[:200]}")


def typed_parts(content: object) -> list[dict[str, Any]]:
    """A message's typed parts; none where it is text."""
    parts = content
    if isinstance(content, str):
        # A column in which other rows hold parts carries those as JSON text.
        if not (content.startswith('[{"') and '"type"' in content):
            return []
        try:
            parts = loads(content, "content_not_text")
        except Unconvertible:
            return []
    if not isinstance(parts, list) or not all(isinstance(part, dict) and "type" in part for part in parts):
        return []
    return parts


def _parts(parts: Iterable[Any], what: str) -> str:
    texts = []
    for part in parts:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type") in ("text", "input_text", "output_text", None):
            texts.append(text_of(part.get("text"), what))
        else:
            kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
            raise Unconvertible("content_not_text", f"{what} has a part of type {kind!r}")
    return "".join(texts)


def messages_of(value: Any) -> list[Mapping[str, Any]]:
    """A column's messages, given as a list of objects or JSON text of it; raises Unconvertible for anything else."""
    if isinstance(value, str):
        value = loads(value, "messages_not_list")
    if not isinstance(value, list) or not value:
        raise Unconvertible("no_messages", str(value)[:200])
    messages = [loads(message, "messages_not_list") if isinstance(message, str) else message for message in value]
    for message in messages:
        # What is read from JSON and tables is a dict; asking whether it is a Mapping costs far more.
        if not isinstance(message, dict):
            raise Unconvertible("messages_not_list", f"a message is no object: {str(message)[:200]}")
    return messages


def system_of(row: Mapping[str, Any]) -> list[Turn]:
    """The system turn of a row's `system` column, if it has one."""
    text = text_of(row["system"], "system")
    return [Turn("system", text)] if text.strip() else []


def required_text(row: Mapping[str, Any], name: str) -> str:
    """A column's text; raises Unconvertible where the row has none."""
    value = row[name]
    if value is None:
        raise Unconvertible("missing_field", f"{name} is null")
    return text_of(value, name)


def assistant(content: str, thinking: str | None = None, calls: Iterable[tuple[str, str]] = ()) -> Turn:
    """An assistant turn; a closed `<think>` block, or marked thought, that opens the content becomes its thinking.

    White space around content and thinking is dropped: it would be trained on, and templates write their own.
    """
    content = content.strip()
    if not thinking and content.startswith(THINK) and THINK_END in content:
        thinking, _, content = content.removeprefix(THINK).partition(THINK_END)
    elif not thinking and content.startswith(MARK) and (marked := _MARKED.fullmatch(content)):
        thinking, content = marked.groups()
    return Turn("assistant", content.strip(), (thinking or "").strip() or None, tuple(calls) or None)


def must_be_learnt(message: Mapping[str, Any]) -> None:
    """Raises Unconvertible for an assistant's message that is marked as context alone: every turn is trained on."""
    for name in NOT_LEARNT:
        if (value := message.get(name)) is not None and value == 0:
            raise Unconvertible("not_to_be_learnt", f"an assistant's message has {name} {value}")


def without_marks(turns: Iterable[Turn]) -> list[Turn]:
    """Turns without a system prompt that asks for marked thought, where the marks have become thinking."""
    turns = list(turns)
    if not any(turn.thinking for turn in turns):
        return turns
    return [turn for turn in turns if turn.role != "system" or MARK not in turn.content]


def assistant_with_tags(content: str, thinking: str | None = None) -> Turn:
    """An assistant turn whose calls stand as `<tool_call>` blocks in its text."""
    turn = assistant(content, thinking)
    calls = [call for body in _CALLS.findall(turn.content) for call in calls_of(body)]
    rest = _CALLS.sub("", turn.content).strip()
    if CALL in rest or CALL_END in rest:
        raise Unconvertible("call_not_closed", rest[:200])
    return turn._replace(content=rest, calls=tuple(calls) or None)


def joined(turns: Iterable[Turn]) -> list[Turn]:
    """Turns with consecutive assistant turns made one where the later is only calls: text, then its calls."""
    turns = list(turns)
    if not any(turn.calls for turn in turns):
        return turns
    out: list[Turn] = []
    for turn in turns:
        last = out[-1] if out else None
        if last and last.role == turn.role == "assistant" and turn.calls and not turn.content:
            thinking = "\n\n".join(filter(None, (last.thinking, turn.thinking))) or None
            out[-1] = last._replace(calls=(last.calls or ()) + turn.calls, thinking=thinking)
        else:
            out.append(turn)
    return out
