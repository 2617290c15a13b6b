"""How a chat template writes tool calls, learnt by having it write some.

Models write calls as their template does: `<tool_call>` blocks of JSON, a list after `[TOOL_CALLS]`, bare JSON,
a name before a fenced object between tokens of their own. What is the same for every call is found by rendering
calls that are known; what is left is read as JSON.
"""

from __future__ import annotations

import json
import re
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel, ConfigDict

from tasks.conversations.canonical import Unconvertible, canonical_json

if TYPE_CHECKING:
    from tasks.conversations.template import ChatTemplate, Message

# A word between brackets of its own: <tool_call>, [TOOL_CALLS], <|python_tag|>.
_SIGN = r"<[^<>\s]+>|\[/?[A-Z_]+\]"
_TOOLS = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": "Look.",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}},
        },
    }
    for name in ("look_up", "note_down")
]
_CALLS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("look_up", {"city": "Oslo", "days": 3}),
    ("note_down", {"city": "Rome", "days": 5}),
)


class ToolCall(BaseModel):
    """One call: `arguments` as canonical JSON of an object, None where the text holds none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: str | None


class Unreadable(Exception):
    """Calls that are not written as a name and a JSON object of arguments; its text is what is written."""


class Calls(NamedTuple):
    """Calls read from a text: `end` is where they end in it, `whole` whether they are as the template writes them."""

    calls: list[ToolCall]
    end: int
    whole: bool


class CallStyle(BaseModel):
    """How calls are written.

    `opening` and `closing` stand around the calls of a turn, `between` from one to the next (None: only one call can
    be written). A call is a JSON object with `keys`, of which `name_key` and `arguments_key` hold what they say; or,
    where `between_parts` is set, its name, that text and a JSON object of arguments. `as_text`: the arguments are
    JSON in a string.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    opening: str
    closing: str
    between: str | None
    name_key: str = ""
    arguments_key: str = ""
    keys: tuple[str, ...] = ()
    between_parts: str | None = None
    as_text: bool = False

    @cached_property
    def sign(self) -> str:
        """What says that calls follow; empty where a turn of calls has nothing before them."""
        found = re.match(_SIGN, self.opening.strip())
        return found[0] if found else self.opening.strip()

    @cached_property
    def end_sign(self) -> str:
        """What says that they end; empty where only the turn's end does."""
        found = re.search(rf"(?:{_SIGN})$", self.closing.strip())
        return found[0] if found else ("" if set(self.closing) <= set("[](){} \n") else self.closing.strip())

    @cached_property
    def _begins(self) -> re.Pattern[str]:
        return _literal(self.opening.strip().removeprefix(self.sign))

    @cached_property
    def _ends(self) -> re.Pattern[str]:
        return _literal(self.closing)

    @cached_property
    def _goes_on(self) -> re.Pattern[str] | None:
        # Where each call has the whole wrapping, the next one begins another block.
        alone = self.between is None or "".join((self.closing + self.opening).split()) == "".join(self.between.split())
        return None if alone else _literal(self.between or "")

    @cached_property
    def _named(self) -> re.Pattern[str]:
        return re.compile(rf"\s*([^\n<>{{}}\[\]\"`]+?){_literal(self.between_parts or '').pattern}")

    def read(self, text: str, at: int) -> Calls:
        """The calls that begin at a place after `sign`; what is not as the template writes it ends them."""
        calls: list[ToolCall] = []
        whole = True
        begun = self._begins.match(text, at)
        if begun is None:
            return self._lost(text, at, calls)
        at = begun.end()
        while True:
            found = self._one(text, at)
            if found is None:
                return self._lost(text, at, calls)
            call, at, well_formed = found
            calls.append(call)
            whole &= well_formed
            if self._goes_on and (more := self._goes_on.match(text, at)):
                at = more.end()
            elif ended := self._ends.match(text, at):
                return Calls(calls, ended.end(), whole)
            else:
                return Calls(calls, self._end_of(text, at), False)

    def _one(self, text: str, at: int) -> tuple[ToolCall, int, bool] | None:
        name = None
        if self.between_parts is not None:
            named = self._named.match(text, at)
            if named is None:
                return None
            name, at = named[1], named.end()
        try:
            value, end = _DECODER.raw_decode(text, _skip(text, at))
        except (ValueError, RecursionError):
            return None
        if not isinstance(value, dict):
            return None
        if name is not None:
            arguments = _arguments(value, self.as_text)
            return ToolCall(name=name, arguments=arguments), end, arguments is not None
        name, arguments = value.get(self.name_key), _arguments(value.get(self.arguments_key), self.as_text)
        name = name if isinstance(name, str) else ""
        well_formed = bool(name) and arguments is not None and set(value) <= set(self.keys)
        return ToolCall(name=name, arguments=arguments), end, well_formed

    def _lost(self, text: str, at: int, calls: list[ToolCall]) -> Calls:
        """What cannot be read is a call all the same, of the name that it shows."""
        end = self._end_of(text, at)
        found = re.search(rf'"{re.escape(self.name_key or "name")}"\s*:\s*"([^"\\]*)"', text[at:end])
        shown = re.match(r"\W*([\w.-]*)", text[at:end]) if self.between_parts is not None else found
        return Calls([*calls, ToolCall(name=shown[1] if shown else "", arguments=None)], end, False)

    def _end_of(self, text: str, at: int) -> int:
        found = text.find(self.end_sign, at) if self.end_sign else -1
        return len(text) if found < 0 else found + len(self.end_sign)


# As Qwen, Hermes and the templates of the embedded default write calls.
HERMES = CallStyle(
    opening="<tool_call>\n",
    closing="\n</tool_call>",
    between="\n</tool_call>\n<tool_call>\n",
    name_key="name",
    arguments_key="arguments",
    keys=("name", "arguments"),
)
_DECODER = json.JSONDecoder()


def learn(template: ChatTemplate) -> CallStyle | None:
    """How a template writes calls; None where it writes none. Raises Unreadable."""
    one, both = _written(template, _CALLS[:1]), _written(template, _CALLS)
    name, arguments = _CALLS[0]
    if one is None or name not in one or not all(str(value) in one for value in arguments.values()):
        return None
    found = _found(one, _CALLS[0], 0)
    if found is None:
        raise Unreadable(one)
    between = None
    if both is not None and (first := _found(both, _CALLS[0], 0)) and (second := _found(both, _CALLS[1], first.end)):
        between = both[first.end : second.start]
    return CallStyle(opening=one[: found.start], closing=one[found.end :], between=between, **found.how)


class _Found(NamedTuple):
    start: int
    end: int
    how: dict[str, Any]


def _written(template: ChatTemplate, calls: tuple[tuple[str, dict[str, Any]], ...]) -> str | None:
    """What a model writes to make these calls, without the end of its turn."""
    from tasks.conversations.template import Unrenderable

    made = [
        {"id": f"call{number:05d}", "type": "function", "function": {"name": name, "arguments": arguments}}
        for number, (name, arguments) in enumerate(calls, 1)
    ]
    messages: list[Message] = [
        {"role": "user", "content": "How is it?"},
        {"role": "assistant", "content": "", "tool_calls": made},
    ]
    try:
        text, spans = template.trained(template.arguments(messages), _TOOLS)
    except Unrenderable:
        return None
    if not spans:
        return None
    written = text[spans[-1].start : spans[-1].end]
    ends = [at for token in template.stop_tokens if (at := written.find(token)) >= 0]
    return written[: min(ends, default=len(written))]


def _found(text: str, call: tuple[str, dict[str, Any]], at: int) -> _Found | None:
    """Where a known call stands in a text, and how its name and arguments are written."""
    name, arguments = call
    named = text.find(name, at)
    if named < 0:
        return None
    # The innermost object around the name, or else the first one after it.
    starts = [n for n in range(named - 1, at - 1, -1) if text[n] == "{"]
    for start in starts:
        value, end = _object(text, start)
        keys = {key for key, inner in (value or {}).items() if inner == name}
        given = {key: inner for key, inner in (value or {}).items() if _is(inner, arguments)}
        if value and keys and given:
            arguments_key = next(iter(given))
            as_text = isinstance(given[arguments_key], str)
            how = {"name_key": min(keys), "arguments_key": arguments_key, "keys": tuple(value), "as_text": as_text}
            return _Found(start, end, how)
    after = named + len(name)
    start = text.find("{", after)
    value, end = _object(text, start) if start >= 0 else (None, 0)
    return _Found(named, end, {"between_parts": text[after:start]}) if value == arguments else None


def _object(text: str, start: int) -> tuple[dict[str, Any] | None, int]:
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError):
        return None, start
    return (value, end) if isinstance(value, dict) else (None, start)


def _is(value: Any, arguments: dict[str, Any]) -> bool:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return False
    return bool(value == arguments)


def _arguments(value: Any, as_text: bool) -> str | None:
    try:
        if as_text and isinstance(value, str):
            value = json.loads(value)
        return canonical_json(value) if isinstance(value, dict) else None
    except (ValueError, RecursionError, Unconvertible):
        return None


def _literal(text: str) -> re.Pattern[str]:
    """A pattern of a text in which white space is free and numbers, which count calls, may differ."""
    pieces = [r"\d+" if piece.isdigit() else re.escape(piece) for piece in re.findall(r"\d+|[^\s\d]", text)]
    return re.compile(r"\s*".join(["", *pieces, ""]))


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at].isspace():
        at += 1
    return at
