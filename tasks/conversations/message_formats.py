"""Formats that hold whole conversations: OpenAI's messages, ShareGPT's, Hermes' tags, and turns within one text."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from tasks.conversations.canonical import Unconvertible, calls_of, canonical_tools
from tasks.conversations.turns import (
    Reading,
    Turn,
    assistant,
    assistant_with_tags,
    joined,
    messages_of,
    must_be_learnt,
    required_text,
    role_of,
    system_of,
    text_of,
    typed_parts,
    without_marks,
)

Row = Mapping[str, Any]

_ANTHROPIC = ("tool_use", "tool_result", "thinking", "redacted_thinking")
_DECLARED = re.compile(r"<tools>\s*(.*?)\s*</tools>", re.DOTALL)
_RESULT = re.compile(r"<tool_response>\s*(.*?)\s*</tool_response>", re.DOTALL)
_CHATML = re.compile(r"<\|im_start\|>([a-z_]+)\n(.*?)(?:<\|im_end\|>\s*|\Z)", re.DOTALL)
_LABELS = {"instruction": "user", "input": "user", "response": "assistant", "output": "assistant"}
# Labels of turns: after ### wherever they stand, as many texts have no line break before the answer's; else on a line.
_HASHED = re.compile(r"###\s*(Human|User|Instruction|Input|Assistant|GPT|Response|Output|System)\s*:", re.I)
_ON_A_LINE = re.compile(r"(?:\A|\n)\s*(Human|User|Assistant|System)\s*:", re.I)
# What tagged data says about calling is said again by the template of the model that is trained.
_BOILERPLATE = re.compile(
    r"^(you are a function calling ai model\b|# tools\b)|\bfor each function call,? return a json", re.I
)


def openai(row: Row) -> Reading:
    """messages of role and content, with tool_calls or function_call, typed parts and reasoning_content.

    Parts may be Anthropic's too: tool_use and thinking in the assistant's content, tool_result in the user's.
    """
    turns = [turn for message in messages_of(row["messages"]) for turn in openai_turns(message)]
    tools = row["tools"] if row["tools"] not in (None, "", []) else row["functions"]
    return Reading(without_marks([*system_of(row), *joined(turns)]), canonical_tools(tools))


def openai_turns(message: Mapping[str, Any]) -> list[Turn]:
    """The turns of one message: a user's may carry the results of several calls before its text."""
    parts = typed_parts(message.get("content"))
    if not any(part.get("type") in _ANTHROPIC for part in parts):
        return [_turn(message)]
    results = [part for part in parts if part.get("type") == "tool_result"]
    thoughts = [text_of(part.get("thinking"), "thinking") for part in parts if part.get("type") == "thinking"]
    calls = [part for part in parts if part.get("type") == "tool_use"]
    rest = [part for part in parts if part.get("type") not in _ANTHROPIC]
    turns = [
        Turn("tool", text_of(part.get("content"), "tool_result"), call_id=part.get("tool_use_id")) for part in results
    ]
    if rest or thoughts or calls:
        said = {"reasoning_content": "\n\n".join(thoughts), "tool_calls": calls} if thoughts or calls else {}
        turns.append(_turn({**message, **said, "content": rest}))
    return turns


def _turn(message: Mapping[str, Any]) -> Turn:
    role, content = role_of(message.get("role")), text_of(message.get("content"), "content")
    if role in ("assistant", "call"):
        must_be_learnt(message)
    if role == "call":
        return assistant("", calls=calls_of(content))
    if role != "assistant":
        call_id = message.get("tool_call_id") if role == "tool" else None
        return Turn(role, content, call_id=call_id if isinstance(call_id, str) else None)
    thinking = message.get("reasoning_content") or message.get("reasoning") or message.get("thinking")
    calls: list[tuple[str, str]] = []
    for key in ("tool_calls", "function_call"):
        if written := message.get(key):
            calls += calls_of(written)
    return assistant(content, text_of(thinking, "thinking") if thinking else None, calls)


def sharegpt(row: Row) -> Reading:
    """conversations of from and value: human, gpt, system, function_call, observation, tool."""
    turns = []
    for message in messages_of(row["conversations"]):
        role, text = role_of(message.get("from")), text_of(message.get("value"), "value")
        if role in ("assistant", "call"):
            must_be_learnt(message)
        if role == "call":
            turns.append(assistant("", calls=calls_of(text)))
        else:
            turns.append(assistant(text) if role == "assistant" else Turn(role, text))
    return Reading(without_marks([*system_of(row), *joined(turns)]), canonical_tools(row["tools"]))


def hermes(row: Row) -> Reading:
    """ShareGPT's columns with `<tools>`, `<tool_call>` and `<tool_response>` blocks in the text."""
    messages = []
    for message in messages_of(row["conversations"]):
        messages.append((role_of(message.get("from")), text_of(message.get("value"), "value")))
        if messages[-1][0] == "assistant":
            must_be_learnt(message)
    return _tagged(messages, row["tools"])


def chatml(row: Row) -> Reading:
    """One text of `<|im_start|>role ... <|im_end|>` turns, tools and calls in tags."""
    text = required_text(row, "text").strip()
    if _CHATML.sub("", text).strip():
        raise Unconvertible("not_chatml", _CHATML.sub("", text).strip()[:200])
    return _tagged([(role_of(role), content) for role, content in _CHATML.findall(text)], None)


def labelled(row: Row) -> Reading:
    """One text of turns after their labels; what stands before the first is the system prompt."""
    text = required_text(row, "text")
    before, *rest = (_HASHED if _HASHED.search(text) else _ON_A_LINE).split(text)
    if not rest:
        raise Unconvertible("not_labelled", text[:200])
    turns = [Turn("system", before.strip())] if before.strip() else []
    for label, said in zip(rest[::2], map(str.strip, rest[1::2]), strict=True):
        role = role_of(_LABELS.get(label.lower(), label))
        if role == "user" and turns and turns[-1].role == "user":  # an instruction and its input
            turns[-1] = Turn(role, "\n\n".join(filter(None, (turns[-1].content, said))))
        else:
            turns.append(assistant(said) if role == "assistant" else Turn(role, said))
    return Reading(turns)


def looks_labelled(rows: Sequence[Row]) -> bool:
    """Whether every text has a label of the user's and one of the assistant's; without ###, opening with one."""

    def is_one(text: str) -> bool:
        hashed = _HASHED.findall(text)
        labels = hashed or (_ON_A_LINE.findall(text) if _ON_A_LINE.match(text) else [])
        return {"user", "assistant"} <= {role_of(_LABELS.get(label.lower(), label)) for label in labels}

    return all(is_one(row["text"]) for row in rows if row["text"])


def exchanges(row: Row) -> Reading:
    """conversation of objects with a question and its answer: human and assistant, or input and output."""
    turns = system_of(row)
    for exchange in messages_of(row["conversation"]):
        asked, answered = ("human", "assistant") if "human" in exchange else ("input", "output")
        said = {name: exchange.get(name) for name in ("system", asked, answered)}
        turns += [*system_of(said), Turn("user", required_text(said, asked)), assistant(required_text(said, answered))]
    return Reading(turns)


def _tagged(messages: list[tuple[str, str]], tools: Any) -> Reading:
    turns: list[Turn] = []
    declared = canonical_tools(tools)
    for role, text in messages:
        if role == "system":
            if _DECLARED.search(text):
                # A column of its own is JSON more often than what stands in a text.
                declared = declared or _tools_in(text)
                text = _without_boilerplate(text)
            if text.strip():
                turns.append(Turn("system", text))
        elif role == "assistant":
            turns.append(assistant_with_tags(text))
        elif role in ("tool", "user") and (results := _RESULT.findall(text)) and not _RESULT.sub("", text).strip():
            turns += [Turn("tool", result) for result in results]
        else:
            turns.append(Turn(role, text))
    return Reading(joined(turns), declared)


@lru_cache(maxsize=4096)  # many rows have one system prompt
def _tools_in(text: str) -> str | None:
    """The tools that a system prompt declares: a list of them, or one a line."""
    # "<tools> </tools>" is also how the boilerplate names the tag.
    block = next((block for block in _DECLARED.findall(text) if block.startswith(("{", "["))), "")
    return canonical_tools(block if block.startswith("[") else [line for line in block.splitlines() if line.strip()])


@lru_cache(maxsize=4096)
def _without_boilerplate(text: str) -> str:
    before, *_, after = _DECLARED.split(text)
    kept = [
        paragraph
        for paragraph in re.split(r"\n\s*\n", before)
        if not _BOILERPLATE.search(paragraph.strip())
        and "<tools>" not in paragraph
        and "function signatures" not in paragraph
    ]
    return (
        "\n\n".join(kept)
        if _BOILERPLATE.search(after.strip()) or not after.strip()
        else "\n\n".join([*kept, after.strip()])
    )
