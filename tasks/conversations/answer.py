"""Reading what a model wrote: the reverse of rendering an assistant turn.

One `<think>` block first, then text, then calls in the way that the model's own template writes them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from tasks.conversations.call_style import HERMES, CallStyle, ToolCall

THINK, THINK_END = "<think>", "</think>"
# Llama 3 may write it before a call whose template shows none.
_PYTHON_TAG = "<|python_tag|>"


class Answer(BaseModel):
    """One assistant turn.

    `thinking`: None without a block or with an empty one. `thinking_closed`: no block is left open.
    `malformed`: something is not as the template writes it: a block left open or closed without being
    opened, a second thinking block, a call that is no name and JSON object of arguments.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    thinking: str | None
    thinking_closed: bool
    content: str
    tool_calls: tuple[ToolCall, ...]
    malformed: bool


def parse_answer(text: str, stop_tokens: Sequence[str] = (), style: CallStyle = HERMES) -> Answer:
    """An assistant turn of its text, up to the first stop token, calls as `style` writes them; never raises."""
    end = min((at for at in map(text.find, stop_tokens) if at >= 0), default=len(text))
    thinking, closed, rest = _split_thinking(text[:end])
    content, calls, malformed = _split_calls(rest, style) if style.sign else _bare_calls(rest, style)
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


def _split_calls(text: str, style: CallStyle) -> tuple[str, list[ToolCall], bool]:
    content, calls, malformed, at = [], [], False, 0
    while (found := text.find(style.sign, at)) >= 0:
        content.append(text[at:found])
        read = style.read(text, found + len(style.sign))
        calls += read.calls
        malformed |= not read.whole
        at = read.end
    content.append(text[at:])
    malformed |= bool(style.end_sign) and any(style.end_sign in part for part in content)
    return "\n".join(part.strip() for part in content if part.strip()), calls, malformed


def _bare_calls(text: str, style: CallStyle) -> tuple[str, list[ToolCall], bool]:
    """Calls of a template that writes nothing before them: the whole turn is one, or is text."""
    said = text.strip()
    tagged = said.startswith(_PYTHON_TAG)
    body = said.removeprefix(_PYTHON_TAG)
    if not tagged and not _is_call(body, style):
        return said, [], False
    read = style.read(body, 0)
    rest = body[read.end :].strip()
    return rest, read.calls, not read.whole or bool(rest)


def _is_call(text: str, style: CallStyle) -> bool:
    """Whether a text is a bare call, or was begun as one: an object that has both keys, or a name and no end."""
    if not re.match(rf'{{\s*"{re.escape(style.name_key)}"\s*:', text):
        return False
    try:
        value, _ = json.JSONDecoder().raw_decode(text)
    except (ValueError, RecursionError):
        return True
    return style.arguments_key in value
