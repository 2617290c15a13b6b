"""Formats of function-calling data sets that write calls and tools in ways of their own: glaive v2, ToolACE, xLAM."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from tasks.conversations.canonical import Unconvertible, calls_of, canonical_call, canonical_tools, loads
from tasks.conversations.turns import (
    Reading,
    Turn,
    assistant,
    joined,
    messages_of,
    required_text,
    role_of,
    text_of,
)

Row = Mapping[str, Any]

_GLAIVE_TURN = re.compile(r"(?:^|\n)\s*(USER|ASSISTANT|FUNCTION RESPONSE):\s*")
_GLAIVE_ARGUMENTS = re.compile(r'"arguments"\s*:\s*\'(.*)\'\s*\}\s*$', re.DOTALL)
_GLAIVE_ROLES = {"USER": "user", "FUNCTION RESPONSE": "tool"}
_TOOLACE_CALL = re.compile(r"\s*,?\s*([^\[\](),][^\[\]()]*?)\s*\(")
_NAMED_VALUE = re.compile(r"\s*([A-Za-z_][\w.$-]*)\s*=\s*(.*)", re.DOTALL)


def xlam(row: Row) -> Reading:
    """query, and tools and answers as JSON text."""
    calls = calls_of(required_text(row, "answers") if isinstance(row["answers"], str) else row["answers"])
    return Reading(
        [Turn("user", required_text(row, "query")), assistant("", calls=calls)], canonical_tools(row["tools"])
    )


def glaive(row: Row) -> Reading:
    """system with the functions after its text, chat as USER:, ASSISTANT: and FUNCTION RESPONSE: turns."""
    return _glaive(required_text(row, "system"), required_text(row, "chat"))


def glaive_v1(row: Row) -> Reading:
    """sample with system, functions and turns in one text."""
    system, user, turns = required_text(row, "sample").partition("USER:")
    return _glaive(system, user + turns)


def _glaive(system: str, chat: str) -> Reading:
    system = system.strip().removeprefix("SYSTEM:").strip()
    tools = _glaive_tools(system)
    turns = [Turn("system", system)] if system and not tools else []
    before, *pieces = _GLAIVE_TURN.split("\n" + chat)
    if before.strip() or not pieces:
        raise Unconvertible("not_glaive", before.strip()[:200] or "no turns")
    for speaker, text in zip(pieces[::2], pieces[1::2], strict=True):
        text = text.replace("<|endoftext|>", "").strip()
        if speaker != "ASSISTANT":
            turns.append(Turn(_GLAIVE_ROLES[speaker], text))
            continue
        said, *calls = text.split("<functioncall>")
        turns.append(assistant(said, calls=[_glaive_call(call.strip()) for call in calls]))
    return Reading(joined(turns), tools)


@lru_cache(maxsize=4096)  # many rows have the same functions
def _glaive_tools(system: str) -> str | None:
    start = system.find("{")
    return canonical_tools(_concatenated(system[start:])) if start >= 0 else None


def _glaive_call(text: str) -> tuple[str, str]:
    """`{"name": "f", "arguments": '{"a": 1}'}`: JSON but for the quotes around the arguments."""
    quoted = _GLAIVE_ARGUMENTS.search(text)
    if not quoted:
        return calls_of(text)[0]
    head = loads(text[: quoted.start()].rstrip().rstrip(",") + "}", "call_not_json")
    return canonical_call(head.get("name"), quoted[1].replace("\\'", "'"))


def _concatenated(text: str) -> list[Any]:
    """JSON values written one after the other."""
    decoder, values, at = json.JSONDecoder(), [], 0
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except ValueError as error:
            raise Unconvertible("tools_not_json", f"{error} in {text[at : at + 200]!r}") from error
        values.append(value)
        at += len(text[at:]) - len(text[at:].lstrip())
    return values


def toolace(row: Row) -> Reading:
    """system with a list of functions, conversations in which calls stand as `[name(key=value), ...]`."""
    system = required_text(row, "system")
    tools = _toolace_tools(system)
    turns: list[Turn] = []
    for message in messages_of(row["conversations"]):
        role, text = role_of(message.get("from")), text_of(message.get("value"), "value").strip()
        if role == "assistant":
            calls = python_calls(text) if text.startswith("[") and text.endswith("]") and "(" in text else []
            turns.append(assistant("" if calls else text, calls=calls))
        elif role == "tool":
            turns += _results(text, len(turns[-1].calls or ()) if turns else 0)
        else:
            turns.append(Turn(role, text))
    return Reading(joined(turns), tools)


@lru_cache(maxsize=4096)
def _toolace_tools(system: str) -> str | None:
    return canonical_tools(_listed_tools(system))


def _listed_tools(system: str) -> Any:
    """The first JSON list of objects, or of nothing, in a text; what stands around it is the template's business."""
    for found in re.finditer(r"\[\s*[{\]]", system):
        try:
            return json.JSONDecoder().raw_decode(system, found.start())[0]
        except ValueError:
            continue
    raise Unconvertible("tools_not_json", f"no list of functions in {system[:200]!r}")


def _results(text: str, calls: int) -> list[Turn]:
    """One turn a call where the results are a list of as many."""
    try:
        results = json.loads(text)
    except ValueError:
        results = None
    if isinstance(results, list) and len(results) == calls > 1:
        return [Turn("tool", json.dumps(result, ensure_ascii=False)) for result in results]
    return [Turn("tool", text)]


def python_calls(text: str) -> list[tuple[str, str]]:
    """Calls of `[name(key=value, ...), ...]`; names may hold spaces and dots, values are Python's or JSON's literals.

    Raises Unconvertible (`call_not_readable`).
    """
    inner, at, calls = text.strip()[1:-1], 0, []
    while inner[at:].strip(" ,\n"):
        opened = _TOOLACE_CALL.match(inner, at)
        if not opened:
            raise Unconvertible("call_not_readable", inner[at : at + 200])
        parts, at = _arguments(inner, opened.end())
        arguments = {}
        for part in parts:
            named = _NAMED_VALUE.fullmatch(part)
            if not named:
                raise Unconvertible("call_not_readable", part[:200])
            arguments[named[1]] = _literal(named[2].strip())
        calls.append(canonical_call(opened[1], arguments))
    return calls


def _arguments(text: str, at: int) -> tuple[list[str], int]:
    """The pieces between commas up to the closing parenthesis, and where that ends; quotes and brackets nest."""
    parts, start, depth, quote = [], at, 0, ""
    while at < len(text):
        character = text[at]
        if quote:
            if character == "\\":
                at += 1
            elif character == quote:
                quote = ""
        elif character in "'\"":
            quote = character
        elif character in "([{":
            depth += 1
        elif character in ")]}":
            if depth == 0:
                parts.append(text[start:at])
                return [part for part in parts if part.strip()], at + 1
            depth -= 1
        elif character == "," and depth == 0:
            parts.append(text[start:at])
            start = at + 1
        at += 1
    raise Unconvertible("call_not_readable", text[-200:])


def _literal(text: str) -> Any:
    for read in (json.loads, ast.literal_eval):
        try:
            return read(text)
        except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
            continue
    raise Unconvertible("call_not_readable", text[:200])
