from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.conversations import canonical_json, canonical_tools
from tasks.conversations.canonical import Unconvertible, calls_of, normalise_schema


def parameters(tools: Any) -> Any:
    text = canonical_tools(tools)
    assert text is not None
    return json.loads(text)[0]["function"]["parameters"]


CITY = {"properties": {"city": {"type": "string"}}, "required": ["city"], "type": "object"}


@pytest.mark.parametrize(
    "tool",
    [
        {"type": "function", "function": {"name": "f", "parameters": CITY}},
        {"name": "f", "parameters": CITY},
        {"name": "f", "input_schema": CITY},
        {"name": "f", "inputSchema": CITY},
        {"name": "f", "arguments": CITY},
        {"name": "f", "parameters": {**CITY, "type": "dict"}},
        {"name": "f", "parameters": {k: v for k, v in CITY.items() if k != "type"}},
        {"name": "f", "parameters": json.dumps(CITY)},
        {"type": "function", "function": json.dumps({"name": "f", "parameters": CITY})},
        {"name": "f", "parameters": {"city": {"type": "str"}}, "required": ["city"]},
        {"name": "f", "parameters": {"city": {"type": "str", "required": True}}},
        {"name": "f", "parameters": {"city": "string", "required": ["city"]}},
        {"name": "f", "parameters": [{"name": "city", "type": "String", "required": True}]},
        {"name": "f", "parameters": {**CITY, "description": None, "additionalProperties": None}, "strict": None},
    ],
)
@pytest.mark.parametrize("written", [lambda t: [t], lambda t: t, lambda t: json.dumps([t]), lambda t: [json.dumps(t)]])
def test_a_tool_is_the_same_however_it_is_written(tool: Any, written: Any) -> None:
    assert parameters(written(tool)) == CITY


@pytest.mark.parametrize(
    ("name", "schema"),
    [
        ("dict", {"type": "object"}),
        ("float", {"type": "number"}),
        ("tuple", {"type": "array"}),
        ("any", {}),
        ("Any", {}),
        ("HashMap", {"type": "object"}),
        ("List[str]", {"type": "array", "items": {"type": "string"}}),
        ("list[list[int]]", {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}),
        ("Dict[str, int]", {"type": "object"}),
        ("Tuple[int, str]", {"type": "array"}),
        ("Optional[int]", {"type": "integer"}),
        ("int, optional", {"type": "integer"}),
        ("Union[int, float]", {"type": ["integer", "number"]}),
        ("str | None", {"type": ["string", "null"]}),
        ("Literal['a', 'b']", {"enum": ["a", "b"]}),
        ("a day of the week", {}),
        (["integer", "null"], {"type": ["integer", "null"]}),
    ],
)
def test_type_names_become_json_schema(name: Any, schema: dict[str, Any]) -> None:
    assert normalise_schema({"type": name}) == schema


def test_nested_schemas_are_normalised() -> None:
    given_schema = {
        "type": "dict",
        "properties": {
            "at": {"type": "tuple", "items": [{"type": "float"}, {"type": "float"}], "optional": True},
            "of": {"type": "array", "items": {"type": "dict", "properties": {"x": {"type": "any", "required": True}}}},
        },
        "required": ["of", "missing"],
    }
    assert normalise_schema(given_schema) == {
        "type": "object",
        "properties": {
            "at": {"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}]},
            "of": {"type": "array", "items": {"type": "object", "properties": {"x": {}}, "required": ["x"]}},
        },
        "required": ["of"],
    }


@pytest.mark.parametrize("none", [None, "", " ", "[]", "null", "None", "{}", [], {}])
def test_no_tools_are_none(none: Any) -> None:
    assert canonical_tools(none) is None


@pytest.mark.parametrize(
    ("tools", "reason"),
    [
        ("[{", "tools_not_json"),
        ([{"description": "nameless"}], "tools_not_schema"),
        ([7], "tools_not_schema"),
        ([{"name": "f", "parameters": 7}], "tools_not_schema"),
        ([{"name": "f", "parameters": {"type": "object", "properties": {"a": 7}}}], "tools_not_schema"),
        (
            [{"name": "f", "parameters": {"type": "object", "properties": {"a": {"minimum": "low"}}}}],
            "tools_not_schema",
        ),
    ],
)
def test_what_is_no_tool_says_why(tools: Any, reason: str) -> None:
    with pytest.raises(Unconvertible) as raised:
        canonical_tools(tools)
    assert raised.value.reason == reason


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",))),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(exclude_categories=("Cs",)), max_size=5), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(JSON)
def test_canonical_json_is_json_and_canonical(value: Any) -> None:
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@pytest.mark.parametrize("value", [float("nan"), {"a": float("inf")}, {"a": "\ud800"}, {"a": object()}])
def test_what_json_cannot_hold_is_unconvertible(value: Any) -> None:
    with pytest.raises(Unconvertible):
        canonical_json(value)


SCHEMAS = st.recursive(
    st.fixed_dictionaries(
        {"type": st.sampled_from(["dict", "float", "tuple", "any", "str", "int", "List[int]", "boolean"])}
    ),
    lambda inner: (
        st.fixed_dictionaries(
            {"type": st.just("dict"), "properties": st.dictionaries(st.sampled_from("abcd"), inner, max_size=3)}
        )
        | st.fixed_dictionaries(
            {
                "type": st.sampled_from(["list", "tuple", "array"]),
                "items": inner | st.lists(inner, min_size=1, max_size=2),
            }
        )
    ),
    max_leaves=6,
)


@given(SCHEMAS)
def test_a_normalised_schema_is_valid_and_stays(schema: dict[str, Any]) -> None:
    once = normalise_schema(schema)
    jsonschema_rs.Draft202012Validator(once)
    assert normalise_schema(once) == once


@pytest.mark.parametrize(
    ("written", "calls"),
    [
        ({"name": "f", "arguments": {"b": 1, "a": 2}}, [("f", '{"a":2,"b":1}')]),
        ({"name": "f", "arguments": '{"b": 1, "a": 2}'}, [("f", '{"a":2,"b":1}')]),
        ({"name": "f", "arguments": '"{\\"a\\": 2}"'}, [("f", '{"a":2}')]),
        ([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}] * 2, [("f", "{}")] * 2),
        ({"type": "function", "function": '{"name": "f", "arguments": {"a": 1}}'}, [("f", '{"a":1}')]),
        ('[{"name": "f", "parameters": {"a": null}}]', [("f", '{"a":null}')]),
        ({"name": "f"}, [("f", "{}")]),
    ],
)
def test_calls_are_read(written: Any, calls: list[tuple[str, str]]) -> None:
    assert calls_of(written) == calls
