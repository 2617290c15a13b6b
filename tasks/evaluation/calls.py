"""Whether the tool calls in an answer are the calls that were asked for.

An expected call lists, for each argument, the values that are right, and which arguments may be left
out, so that one comparison serves our own conversations (one right value; an argument equal to its
schema's default may be left out) and the Berkeley Function-Calling Leaderboard's answer files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.conversations import ToolCall


class ExpectedCall(BaseModel):
    """`arguments`: the right values of each argument; `omittable`: those that may be left out."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    arguments: dict[str, tuple[Any, ...]]
    omittable: frozenset[str] = frozenset()


def same(left: object, right: object) -> bool:
    """Equality of JSON values: 1 equals 1.0, true does not equal 1, the order of keys does not count."""
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(value, right[key]) for key, value in left.items())
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def expected_call(name: str, arguments: str, tools: str | None) -> ExpectedCall:
    """The expected call of a conversation row: arguments as JSON, tools as the row declares them."""
    given = json.loads(arguments)
    properties = _properties(name, tools)
    absent = object()
    omittable = {key for key, schema in properties.items() if "default" in schema and key not in given}
    omittable |= {key for key, value in given.items() if same(properties.get(key, {}).get("default", absent), value)}
    values = {key: (value,) for key, value in given.items()}
    values |= {key: (properties[key]["default"],) for key in omittable - values.keys()}
    return ExpectedCall(name=name, arguments=values, omittable=frozenset(omittable))


def leaderboard_call(entry: Mapping[str, Mapping[str, Sequence[Any]]]) -> ExpectedCall:
    """The expected call of one entry of a BFCL `possible_answer` file, where "" says "may be left out"."""
    ((name, arguments),) = entry.items()
    omittable = frozenset(key for key, values in arguments.items() if "" in values)
    return ExpectedCall(
        name=name,
        arguments={key: tuple(_plain(v) for v in values) for key, values in arguments.items()},
        omittable=omittable,
    )


def fault(expected: Sequence[ExpectedCall], answered: Sequence[ToolCall]) -> str | None:
    """What is wrong with the calls of an answer, in words; None where they are right in whatever order."""
    if not expected:
        return f"called {answered[0].name}, where no call fits" if answered else None
    if not answered:
        return "no call"
    if len(expected) != len(answered):
        return f"{len(answered)} calls instead of {len(expected)}"
    faults = [[_call_fault(want, got) for got in answered] for want in expected]
    taken: dict[int, int] = {}
    for want in range(len(expected)):
        if not _place(want, faults, taken, set()):
            return min((text for text in faults[want] if text), key=_nearness)
    return None


def _place(want: int, faults: Sequence[Sequence[str | None]], taken: dict[int, int], seen: set[int]) -> bool:
    """Match an expected call to an answered one, moving earlier matches where that helps (Kuhn's algorithm)."""
    for got, text in enumerate(faults[want]):
        if text is None and got not in seen:
            seen.add(got)
            if got not in taken or _place(taken[got], faults, taken, seen):
                taken[got] = want
                return True
    return False


def _call_fault(want: ExpectedCall, got: ToolCall) -> str | None:
    if got.name != want.name:
        return f"called {got.name or '?'} instead of {want.name}"
    if got.arguments is None:
        return f"{want.name}: arguments are no JSON object"
    arguments = json.loads(got.arguments)
    if missing := sorted(want.arguments.keys() - arguments.keys() - want.omittable):
        return f"{want.name}: {missing[0]} is missing"
    if extra := sorted(arguments.keys() - want.arguments.keys()):
        return f"{want.name}: {extra[0]} was not asked for"
    for key, value in arguments.items():
        if not any(same(value, right) for right in want.arguments[key]):
            return f"{want.name}: {key} is {json.dumps(value, ensure_ascii=False)}"
    return None


def _nearness(text: str) -> bool:
    # A wrong argument says more about a near miss than a wrong name.
    return text.startswith("called ")


def _properties(name: str, tools: str | None) -> dict[str, dict[str, Any]]:
    for tool in json.loads(tools) if tools else []:
        function = tool.get("function", tool)
        if function.get("name") == name:
            properties = (function.get("parameters") or {}).get("properties") or {}
            return {key: schema if isinstance(schema, dict) else {} for key, schema in properties.items()}
    return {}


def _plain(value: Any) -> Any:
    # The leaderboard writes the fields of a nested object as lists of right values as well; the first is taken.
    if isinstance(value, dict):
        return {key: _plain(right[0] if isinstance(right, list) and right else right) for key, right in value.items()}
    if isinstance(value, list):
        return [_plain(entry) for entry in value]
    return value
