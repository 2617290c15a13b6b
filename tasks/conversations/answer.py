"""Reading what a model wrote: the reverse of rendering an assistant turn.

The template family is ChatML as Qwen, Hermes and SmolLM write it: one `<think>` block first, then
text, then calls as `<tool_call>` blocks of JSON.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tasks.conversations.canonical import Unconvertible, canonical_json

THINK, THINK_END = "<think>", "</think>"
CALL, CALL_END = "<tool_call>", "</tool_call>"
_NAME = re.compile(r'"name"\s*:\s*"([^"\\]*)"')


class ToolCall(BaseModel):
    """One call: `arguments` as canonical JSON of an object, None where the text holds none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: str | None


class Answer(BaseModel):
    """One assistant turn.

    `thinking`: None without a block or with an empty one. `thinking_closed`: no block is left open.
    `malformed`: something is not as the template writes it: a block left open or closed without being
    opened, a second thinking block, a call that is no JSON object of a name and an object of arguments.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    thinking: str | None
    thinking_closed: bool
    content: str
    tool_calls: tuple[ToolCall, ...]
    malformed: bool


def parse_answer(text: str, stop_tokens: Sequence[str] = ()) -> Answer:
    """An assistant turn of its text, up to the first stop token; never raises."""
    end = min((at for at in map(text.find, stop_tokens) if at >= 0), default=len(text))
    thinking, closed, rest = _split_thinking(text[:end])
    content, calls, malformed = _split_calls(rest)
    malformed |= not closed or THINK in rest or THINK_END in rest
    return Answer(
        thinking=thinking, thinking_closed=closed, content=content, tool_calls=tuple(calls), malformed=malformed
    )


def _split_thinking(text: str) -> tuple[str | None, bool, str]:
    start = text.lstrip()
    opened = start.startswith(THINK)
    if not opened and THINK in text.partition(THINK_END)[0]:
        return None, True, text  # text before the block: not one the template writes
    thought, closed, rest = start.removeprefix(THINK).partition(THINK_END)
    if not opened and not closed:
        return None, True, text
    # A block without its opening tag is whole where the generation prompt opened it.
    return thought.strip() or None, bool(closed), rest if closed else ""


def _split_calls(text: str) -> tuple[str, list[ToolCall], bool]:
    before, opened, rest = text.partition(CALL)
    content, calls, malformed = [before], [], CALL_END in before
    while opened:
        body, closed, after = rest.partition(CALL_END)
        call, well_formed = _call(body)
        calls.append(call)
        malformed |= not closed or not well_formed
        between, opened, rest = after.partition(CALL)
        content.append(between)
        malformed |= CALL_END in between
    return "\n".join(part.strip() for part in content if part.strip()), calls, malformed


def _call(body: str) -> tuple[ToolCall, bool]:
    try:
        value = json.loads(body)
        arguments = canonical_json(value["arguments"]) if isinstance(value["arguments"], dict) else None
        name = value["name"] if isinstance(value["name"], str) else ""
        return ToolCall(name=name, arguments=arguments), bool(name) and arguments is not None and len(value) == 2
    except (ValueError, KeyError, TypeError, RecursionError, Unconvertible):
        found = _NAME.search(body)
        return ToolCall(name=found[1] if found else "", arguments=None), False
