"""`sample://tools`: tool calls over a handful of declared tools, generated with a seed.

A conversation declares two to four of five tools, asks for one thing in one of several wordings and
answers with one call. Arguments are strings, numbers, whole numbers, booleans and choices, some of
them optional: asked for in some prompts and left out of others, so that the mapping from words to
arguments has to be learnt. Prompts are distinct, which makes exactness on held-out ones mean something.

Planted bad rows (see planted.py), in turn: a call to a tool that the conversation does not declare,
arguments that don't fit the schema, an empty assistant turn, a stray end-of-turn token, a U+FFFD, an
unfilled `{{name}}`, an exact duplicate of the row before.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from typing import Any

from tasks.sources.planted import Row, duplicate, empty_answer, placeholder, replacement_character, stray_end_token

Arguments = dict[str, Any]


def _words(text: str) -> list[str]:
    return text.split()


_CITIES = _words(
    "Paris Rome Oslo Lima Cairo Tokyo Delhi Berlin Madrid Dublin Athens Boston Lagos Quito Seoul Vienna Prague Zurich "
    "Warsaw Lisbon"
)
_PEOPLE = _words("Anna Ben Carla David Emma Frank Grace Henry Iris Jack Karen Leo Maria Nina Oscar Paul")
# Mostly two: what a declaration costs in tokens is most of a prompt.
_HOW_MANY = [2] * 15 + [3, 3, 3, 4, 4]
_ROOMS = ["kitchen", "bedroom", "office", "hall"]
_COINS = ["USD", "EUR", "GBP", "JPY"]
_DISHES = _words("pasta tea rice eggs bread soup pizza coffee")
_MESSAGES = [
    "I am late", "call me back", "see you soon", "thank you", "the door is open", "I am at home", "bring some milk",
    "good night",
]  # fmt: skip


def _tool(name: str, properties: dict[str, Any], required: list[str]) -> dict[str, Any]:
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


_TEXT, _WHOLE, _NUMBER, _YES_NO = ({"type": kind} for kind in ("string", "integer", "number", "boolean"))


def _choice(options: list[str]) -> dict[str, Any]:
    return {"type": "string", "enum": options}


def _timer(draw: random.Random) -> tuple[str, Arguments]:
    minutes, dish = draw.randint(1, 90), draw.choice(_DISHES)
    if draw.random() < 0.5:
        wording = draw.choice(["Set a timer for {} minutes.", "Wake me in {} minutes.", "Count down {} minutes."])
        return wording.format(minutes), {"minutes": minutes}
    wording = draw.choice(["Set a {1} timer for {0} minutes.", "Time the {1} for {0} minutes.", "{0} minutes for {1}."])
    return wording.format(minutes, dish), {"minutes": minutes, "label": dish}


def _weather(draw: random.Random) -> tuple[str, Arguments]:
    city, unit = draw.choice(_CITIES), draw.choice(["celsius", "fahrenheit"])
    days = draw.randint(1, 7)
    wording = draw.choice(
        ["What is the weather in {} for {} days{}?", "Weather in {}, {} days{}.", "Forecast for {}, next {} days{}?"]
    )
    if draw.random() < 0.5:
        return wording.format(city, days, ""), {"city": city, "days": days}
    return wording.format(city, days, f" in {unit}"), {"city": city, "days": days, "unit": unit}


def _currency(draw: random.Random) -> tuple[str, Arguments]:
    source, target = draw.sample(_COINS, 2)
    amount = draw.choice([draw.randint(2, 99), draw.randint(2, 99) + 0.5])
    wording = draw.choice(["Convert {} {} to {}.", "How much is {} {} in {}?", "Change {} {} into {}."])
    return wording.format(amount, source, target), {"amount": amount, "source": source, "target": target}


def _message(draw: random.Random) -> tuple[str, Arguments]:
    person, text = draw.choice(_PEOPLE), draw.choice(_MESSAGES)
    wording = draw.choice(['Tell {}: "{}"', 'Send {} the message "{}"', 'Write to {}: "{}"'])
    return wording.format(person, text), {"to": person, "text": text}


def _light(draw: random.Random) -> tuple[str, Arguments]:
    room, percent = draw.choice(_ROOMS), draw.randint(1, 100)
    way = draw.randrange(3)
    if way == 0:
        wording = draw.choice(["Turn off the light in the {}, {}.", "{1}, switch the {0} light off."])
        return wording.format(room, draw.choice(_PEOPLE)), {"room": room, "on": False}
    if way == 1:
        wording = draw.choice(["Turn on the light in the {}, {}.", "{1}, switch the {0} light on."])
        return wording.format(room, draw.choice(_PEOPLE)), {"room": room, "on": True}
    wording = draw.choice(["Turn on the {} light at {} percent.", "Light on in the {}, {} percent."])
    return wording.format(room, percent), {"room": room, "on": True, "brightness": percent}


_TOOLS: list[tuple[dict[str, Any], Callable[[random.Random], tuple[str, Arguments]]]] = [
    (_tool("set_timer", {"minutes": _WHOLE, "label": _TEXT}, ["minutes"]), _timer),
    (
        _tool(
            "get_weather",
            {"city": _TEXT, "days": _WHOLE, "unit": _choice(["celsius", "fahrenheit"])},
            ["city", "days"],
        ),
        _weather,
    ),
    (
        _tool(
            "convert_currency",
            {"amount": _NUMBER, "source": _TEXT, "target": _TEXT},
            ["amount", "source", "target"],
        ),
        _currency,
    ),
    (_tool("send_message", {"to": _TEXT, "text": _TEXT}, ["to", "text"]), _message),
    (_tool("set_light", {"room": _TEXT, "on": _YES_NO, "brightness": _WHOLE}, ["room", "on"]), _light),
]


def conversations(seed: int) -> Iterator[Row]:
    """Conversations without end; prompts repeat now and then."""
    draw = random.Random(f"tools {seed}")
    while True:
        declared = draw.sample(_TOOLS, draw.choice(_HOW_MANY))
        tool, ask = draw.choice(declared)
        prompt, arguments = ask(draw)
        call = {"name": tool["function"]["name"], "arguments": json.dumps(arguments)}
        yield {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": None, "tool_calls": [{"type": "function", "function": call}]},
            ],
            "tools": [declared_tool for declared_tool, _ in declared],
        }


def _undeclared_tool(row: Row) -> Row:
    """A call to a tool that the conversation does not declare."""
    row["messages"][-1]["tool_calls"][0]["function"]["name"] = "delete_everything"
    return row


def _arguments_off_schema(row: Row) -> Row:
    """A required argument is missing and another one is not of its type."""
    row["messages"][-1]["tool_calls"][0]["function"]["arguments"] = json.dumps({"amount": "a lot"})
    return row


WAYS = {
    "undeclared_tool": _undeclared_tool,
    "arguments_off_schema": _arguments_off_schema,
    "empty_answer": empty_answer,
    "stray_end_token": stray_end_token,
    "replacement_character": replacement_character,
    "placeholder": placeholder,
    "duplicate": duplicate,
}
