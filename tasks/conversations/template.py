"""Chat templates as text: a conversation rendered, and the spans of it that a model would write itself.

A span is what is trained on: it starts where the generation prompt of its turn ends and ends with the
end-of-turn token. It is derived, not guessed from markers: a turn is trained when the text before it
equals what inference renders for that turn (the messages before it, with the generation prompt of the
turn's mode) and the turn itself stands in the full text as it does when it is the last one, thinking and
all. A template that rewrites earlier turns (Qwen3 drops their thinking) thereby trains only the turns it
leaves alone.

Rendering every prefix is exact for any template and slow. Where finding the generation prompts in the one
full text gives the same spans on every probe below, that is done instead.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import date
from functools import lru_cache
from typing import Any, NamedTuple

from tasks.conversations.canonical import canonical_json

Message = dict[str, Any]
Tools = list[dict[str, Any]] | None

# A template that prints today's date would give the same row other ids every night.
_DATE = date(2024, 7, 26)


class Unrenderable(Exception):
    """A conversation that its template does not render, or not whole."""


class Span(NamedTuple):
    """Characters [start, end) of the text, which are what the model writes as message `turn`."""

    turn: int
    start: int
    end: int


class ChatTemplate:
    """A Jinja chat template, with the tokens it may name (`bos_token`, ...) and those a model stops on."""

    def __init__(
        self, source: str | Mapping[str, str], named_tokens: Mapping[str, Any], stop_tokens: Sequence[str]
    ) -> None:
        by_name = {"default": source} if isinstance(source, str) else dict(source)
        self.source = by_name.get("default") or next(iter(by_name.values()))
        self.tool_source = by_name.get("tool_use", self.source)
        self._named = dict(named_tokens)
        if "strftime_now" in self.source or "strftime_now" in self.tool_source:
            self._named |= {"strftime_now": _DATE.strftime, "date_string": _DATE.strftime("%d %b %Y")}
        self.stop_tokens = tuple(stop_tokens)
        self.arguments_as_text = False
        # What a generation prompt adds to a text, direct and thinking; None where that does not find the spans.
        self.prompts: tuple[str, str] | None = None
        # A generation prompt that the template writes unasked (Llama 3's first one does), to be taken off again.
        self.unasked = ""

    def render(self, messages: Sequence[Message], tools: Tools, *, thinking: bool, prompt: bool = False) -> str:
        """The text of messages; with `prompt`, followed by the generation prompt of the mode.

        Raises Unrenderable.
        """
        from jinja2 import TemplateError

        from tasks.conversations.jinja import compiled

        try:
            text = compiled(self.tool_source if tools else self.source).render(
                messages=messages,
                tools=tools,
                documents=None,
                add_generation_prompt=prompt,
                enable_thinking=thinking,
                **self._named,
            )
        except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
            raise Unrenderable(f"the chat template fails: {error}") from error
        return text if prompt else text.removesuffix(self.unasked)

    def trained(self, messages: Sequence[Message], tools: Tools) -> tuple[str, list[Span]]:
        """The text of a whole conversation and the spans to train on. Raises Unrenderable."""
        found = self._by_prompts(messages, tools, self.prompts) if self.prompts else None
        return found or self.by_prefixes(messages, tools)

    def by_prefixes(self, messages: Sequence[Message], tools: Tools) -> tuple[str, list[Span]]:
        """Spans by rendering what inference sees before each turn; exact for any template."""
        thinking = any(map(is_thinking, messages))
        text = self.render(messages, tools, thinking=thinking)
        spans = []
        for turn, message in enumerate(messages):
            if message["role"] != "assistant":
                continue
            before = self.render(messages[:turn], tools, thinking=is_thinking(message), prompt=True)
            if not text.startswith(before):
                continue
            last = turn == len(messages) - 1
            upto = text if last else self.render(messages[: turn + 1], tools, thinking=thinking)
            end = self._end_of_turn(upto, len(before))
            if text.startswith(upto[:end]) and message.get("reasoning_content", "").strip() in text[len(before) : end]:
                spans.append(Span(turn, len(before), end))
        return text, spans

    def prove(self) -> None:
        """Find out, on the probes, how this template wants arguments and whether prompts in the text find the spans."""
        self.arguments_as_text = not self._holds_arguments()
        if self.arguments_as_text and not self._holds_arguments():
            self.arguments_as_text = False
        user = next(probes())[0][:1]
        self.unasked = self._unasked(user)
        try:
            asked = self.render(user, None, thinking=False)
            prompted = [self.render(user, None, thinking=mode, prompt=True) for mode in (False, True)]
        except Unrenderable:
            return
        direct, thinking = (text.removeprefix(asked) for text in prompted)
        begins = all(text.startswith(asked) and text != asked for text in prompted) and direct.startswith(thinking)
        if begins and all(self._agree(self.arguments(c), tools, (direct, thinking)) for c, tools in probes()):
            self.prompts = direct, thinking

    def _by_prompts(
        self, messages: Sequence[Message], tools: Tools, prompts: tuple[str, str]
    ) -> tuple[str, list[Span]] | None:
        """Spans by the generation prompts in the full text; None where there are not as many as assistant turns."""
        thinks = [bool(message.get("reasoning_content")) for message in messages]
        text = self.render(messages, tools, thinking=True in thinks)
        turns = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
        opening = prompts[True]
        if text.count(opening) != len(turns):
            return None
        spans, at = [], 0
        for turn in turns:
            at = text.index(opening, at)
            prompt = prompts[thinks[turn]]
            if not text.startswith(prompt, at):
                at += len(opening)
                continue
            start = at + len(prompt)
            at += len(opening)
            ends = [found + len(token) for token in self.stop_tokens if (found := text.find(token, start)) >= 0]
            if not ends:
                return None
            end = min(ends)
            if not thinks[turn] or messages[turn]["reasoning_content"].strip() in text[start:end]:
                spans.append(Span(turn, start, end))
        return text, spans

    def arguments(self, messages: Sequence[Message]) -> list[Message]:
        """Messages with call arguments in the form the template wants: objects, or JSON text."""
        if not self.arguments_as_text:
            return list(messages)
        out = []
        for message in messages:
            if message.get("tool_calls"):
                calls = [
                    {**call, "function": {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}}
                    for call in message["tool_calls"]
                ]
                message = {**message, "tool_calls": calls}
            out.append(message)
        return out

    def _holds_arguments(self) -> bool:
        """Whether a call's arguments are in the text: some templates index into them, others concatenate them."""
        messages, tools = next(probes())
        try:
            return "Oslo" in self.render(self.arguments(messages), tools, thinking=False)
        except Unrenderable:
            return False

    def _unasked(self, user: list[Message]) -> str:
        """The generation prompt after a whole conversation, where the template writes one there in any case."""
        whole = [*user, {"role": "assistant", "content": "Fine."}]
        try:
            text, prompted = (self.render(whole, None, thinking=False, prompt=prompt) for prompt in (False, True))
        except Unrenderable:
            return ""
        after = text.rpartition("Fine.")[2]
        end = min((at + len(token) for token in self.stop_tokens if (at := after.find(token)) >= 0), default=len(after))
        return after[end:] if text == prompted and after[end:].strip() else ""

    def _agree(self, messages: Sequence[Message], tools: Tools, prompts: tuple[str, str]) -> bool:
        try:
            exact = self.by_prefixes(messages, tools)
        except Unrenderable:
            return True  # nothing to disagree about: rows of this shape are not rendered either way
        return self._by_prompts(messages, tools, prompts) in (exact, None)

    def _end_of_turn(self, text: str, start: int) -> int:
        """Where the turn's end-of-turn token ends; only white space may follow it."""
        end = max((at + len(token) for token in self.stop_tokens if (at := text.rfind(token, start)) >= 0), default=-1)
        if end < 0 or text[end:].strip():
            raise Unrenderable(f"an assistant turn does not end with a token that the model stops on: {text[-80:]!r}")
        return end


def is_thinking(message: Message) -> bool:
    """Whether a message carries a thinking trace."""
    return bool(message.get("reasoning_content"))


def template_messages(messages: Sequence[Mapping[str, Any]]) -> list[Message]:
    """Messages of the schema as chat templates read them, arguments as objects.

    Calls get the ids and results the ids and names that some templates print: results answer calls in order.
    """
    out: list[Message] = []
    waiting: list[tuple[str, str]] = []
    number = 0
    for given in messages:
        message: Message = {"role": given["role"], "content": given["content"] or ""}
        if given["thinking"] and given["thinking"].strip():
            message["reasoning_content"] = given["thinking"]
        if given["tool_calls"]:
            calls = []
            for call in given["tool_calls"]:
                number += 1
                waiting.append((f"call{number:05d}", call["name"]))
                function = {"name": call["name"], "arguments": json.loads(call["arguments"])}
                calls.append({"id": waiting[-1][0], "type": "function", "function": function})
            message["tool_calls"] = calls
        if given["role"] == "tool" and waiting:
            message["tool_call_id"], message["name"] = waiting.pop(0)
        out.append(message)
    return out


@lru_cache(maxsize=4096)
def template_tools(tools: str | None) -> tuple[Tools, tuple[str, ...]]:
    """Declared tools as chat templates read them, fields in the usual order, and their names."""
    if not tools:
        return None, ()
    listed: list[dict[str, Any]] = [
        {"type": "function", "function": _ordered(tool["function"], ("name", "description", "parameters"))}
        for tool in json.loads(tools)
    ]
    for tool in listed:
        tool["function"]["parameters"] = _ordered(tool["function"]["parameters"], ("type", "properties", "required"))
    return listed, tuple(tool["function"]["name"] for tool in listed)


def _ordered(value: Mapping[str, Any], first: Sequence[str]) -> dict[str, Any]:
    return {key: value[key] for key in (*(k for k in first if k in value), *(k for k in value if k not in first))}


def probes() -> Iterator[tuple[list[Message], Tools]]:
    """Small conversations of every shape that rows have: what a template does with them, it does with rows."""

    def turn(content: str, thinking: str = "", calls: Sequence[str] = ()) -> dict[str, Any]:
        made = [{"name": "look_up", "arguments": canonical_json({"city": city, "days": 3})} for city in calls]
        return {"role": "assistant", "content": content, "thinking": thinking, "tool_calls": made}

    def other(role: str, content: str) -> dict[str, Any]:
        return {"role": role, "content": content, "thinking": None, "tool_calls": None}

    parameters = {"type": "object", "properties": {"city": {"type": "string"}, "days": {"type": "integer"}}}
    tool = {"type": "function", "function": {"name": "look_up", "description": "Look up.", "parameters": parameters}}
    system, user, result = other("system", "Be brief."), other("user", "How is it?"), other("tool", '{"sky": "clear"}')
    shapes = [
        ([user, turn("", calls=["Oslo"])], True),
        ([user, turn("Fine.")], False),
        ([system, user, turn("Fine."), user, turn("Good.")], False),
        ([user, turn("Fine.", "It is."), user, turn("Good.", "So.")], False),
        ([user, turn("Fine."), user, turn("Good.", "So.")], False),
        ([user, turn("Fine.", "It is."), user, turn("Good.")], False),
        ([system, user, turn("Let me see.", calls=["Oslo"]), result, turn("Clear.")], True),
        (
            [
                user,
                turn("", "Ask both.", ["Oslo", "Rome"]),
                result,
                result,
                turn("Clear.", "Well."),
                user,
                turn("Yes."),
            ],
            True,
        ),
        ([user, turn("No need.")], True),
        ([user, turn("", "Ask.", ["Oslo"]), result, turn("", "", ["Rome"]), result, turn("Clear.")], True),
        ([user, turn("", "", ["Oslo"]), result, turn("", "Ask.", ["Rome"]), result, turn("Clear.", "Well.")], True),
        (
            [
                system,
                user,
                turn("", "", ["Oslo"]),
                result,
                turn("Clear."),
                user,
                turn("", "", ["Rome"]),
                result,
                turn("Ok."),
            ],
            True,
        ),
    ]
    for messages, with_tools in shapes:
        yield template_messages(messages), [tool] if with_tools else None
