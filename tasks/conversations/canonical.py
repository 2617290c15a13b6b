"""Canonical forms: JSON as it is compared and hashed, tool calls and tool schemas as they are kept.

The world writes tool schemas in many hands: OpenAI's, flat ones, Anthropic's, parameter maps without
a `type: object`, Python's type names. All become one list of OpenAI function tools with JSON Schema
(2020-12) parameters, so that templates render them alike and calls can be validated against them.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from json import encoder as json_encoder
from typing import Any

_ENCODER = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
# Made once: an encoder makes its C part anew for every value.
_ENCODE: Callable[[object, int], Iterable[str]] = json_encoder.c_make_encoder(  # type: ignore[attr-defined]
    None, _ENCODER.default, json_encoder.encode_basestring, None, ":", ",", True, False, False
)

# What sources call types, in lower case, as JSON Schema calls them; None stands for any value.
_TYPES: dict[str, str | None] = {
    **dict.fromkeys(("object", "dict", "map", "hashmap", "mapping", "struct", "json"), "object"),
    **dict.fromkeys(("array", "list", "tuple", "set", "arraylist", "sequence", "iterable"), "array"),
    **dict.fromkeys(("number", "float", "double", "decimal", "numeric"), "number"),
    **dict.fromkeys(("integer", "int", "long", "short", "byte", "bigint"), "integer"),
    **dict.fromkeys(("string", "str", "text", "char", "date", "datetime", "enum", "url", "email"), "string"),
    **dict.fromkeys(("boolean", "bool"), "boolean"),
    **dict.fromkeys(("null", "none", "nonetype", "void"), "null"),
    "any": None,
}
_SCHEMA_OF_NAME = ("properties", "patternProperties", "$defs", "definitions")
_SCHEMA_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_SCHEMAS = ("items", "additionalProperties", "not", "contains")


class Unconvertible(Exception):
    """A row that cannot become a conversation: `reason`, a word to count by, and `detail`, what was found."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail[:300]


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and no escapes beyond the necessary.

    Raises Unconvertible for what JSON or UTF-8 cannot hold (NaN, lone surrogates).
    """
    try:
        text = "".join(_ENCODE(value, 0))
        if not text.isascii():
            text.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise Unconvertible("not_json", f"{error} in {str(value)[:200]!r}") from error
    return text


def loads(text: str, reason: str) -> Any:
    """A JSON text's value; raises Unconvertible with this reason, or `not_unicode` for lone surrogates."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Unconvertible(reason, f"{error} in {text[:200]!r}") from error
    if "\\ud" in text or "\\uD" in text:
        try:
            _ENCODER.encode(value).encode()
        except ValueError as error:
            raise Unconvertible("not_unicode", f"{error} in {text[:200]!r}") from error
    return value


def lenient(text: str, reason: str) -> Any:
    """A JSON text's value, or that of the Python literal which some data sets write in its place."""
    try:
        return loads(text, reason)
    except Unconvertible as error:
        if error.reason != reason:
            raise
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise error from None


def canonical_call(name: object, arguments: object) -> tuple[str, str]:
    """A call's name and its arguments as canonical JSON of an object, given as an object or as JSON text."""
    if not isinstance(name, str) or not name.strip():
        raise Unconvertible("call_without_name", f"{name!r} with arguments {str(arguments)[:200]}")
    if arguments is None or arguments == "":
        arguments = {}
    elif isinstance(arguments, str):
        arguments = loads(arguments, "call_not_json")
        if isinstance(arguments, str):  # some exports quote twice
            arguments = loads(arguments, "call_not_json")
    if not isinstance(arguments, dict):
        raise Unconvertible("call_not_json", f"the arguments of {name} are no object: {str(arguments)[:200]}")
    return name.strip(), canonical_json(arguments)


def calls_of(value: Any) -> list[tuple[str, str]]:
    """Calls of a value: one call or a list of them, each OpenAI's or a plain {name, arguments}, or JSON text of it."""
    if isinstance(value, str):
        value = lenient(value, "call_not_json")
    found = []
    for call in value if isinstance(value, list) else [value]:
        if isinstance(call, str):
            call = lenient(call, "call_not_json")
        if not isinstance(call, dict):
            raise Unconvertible("call_not_json", f"a call is no object: {str(call)[:200]}")
        inner = call.get("function")
        if isinstance(inner, str) and inner.lstrip().startswith("{"):
            inner = loads(inner, "call_not_json")
        call = inner if isinstance(inner, dict) else call
        arguments: Any = next(
            (call[key] for key in ("arguments", "parameters", "input") if call.get(key) is not None), {}
        )
        found.append(canonical_call(call.get("name"), arguments))
    return found


def canonical_tools(value: Any) -> str | None:
    """Declared tools as canonical JSON of a list of OpenAI function tools; None where none are declared.

    Accepts what sources write: null, an empty or JSON string, one tool, a list of tools or of JSON texts.
    Raises Unconvertible (`tools_not_json`, `tools_not_schema`).
    """
    if value is None or value == [] or value == {}:
        return None
    if isinstance(value, str):
        return _tools_of_text(value.strip())
    return _canonical_tools(value)


@lru_cache(maxsize=4096)
def _tools_of_text(text: str) -> str | None:
    if not text or text.lower() in ("null", "none", "[]", "{}"):
        return None
    return _canonical_tools(lenient(text, "tools_not_json"))


def _canonical_tools(value: Any) -> str | None:
    if isinstance(value, str):
        return _tools_of_text(value.strip())
    tools = [_tool(tool) for tool in (value if isinstance(value, list) else [value])]
    return canonical_json(tools) if tools else None


def _tool(tool: Any) -> dict[str, Any]:
    if isinstance(tool, str):
        tool = lenient(tool, "tools_not_json")
    if isinstance(tool, dict) and isinstance(tool.get("function"), dict | str):
        tool = tool["function"]
        if isinstance(tool, str):
            tool = loads(tool, "tools_not_json")
    if not isinstance(tool, dict) or not isinstance(tool.get("name"), str) or not tool["name"].strip():
        raise Unconvertible("tools_not_schema", f"a tool without a name: {str(tool)[:200]}")
    given: Any = next(
        (tool[k] for k in ("parameters", "input_schema", "inputSchema", "arguments") if tool.get(k) is not None), {}
    )
    if isinstance(given, str):
        given = loads(given, "tools_not_json") if given.strip() else {}
    function: dict[str, Any] = {"name": tool["name"].strip(), "parameters": _parameters(given, tool.get("required"))}
    if isinstance(tool.get("description"), str) and tool["description"].strip():
        function["description"] = tool["description"].strip()
    _check(function["parameters"], function["name"])
    return {"type": "function", "function": function}


def _parameters(given: Any, required: Any) -> dict[str, Any]:
    """A tool's parameters as an object schema, whether they came as one, as a map or as a list."""
    if isinstance(given, list):
        given = {
            "properties": {p["name"]: {k: v for k, v in p.items() if k != "name"} for p in given if _is_named(p)},
            "required": [p["name"] for p in given if _is_named(p) and p.get("required") is True],
        }
    if not isinstance(given, dict):
        raise Unconvertible("tools_not_schema", f"parameters are no object: {str(given)[:200]}")
    is_schema = isinstance(given.get("properties"), dict) or (
        isinstance(given.get("type"), str) and _TYPES.get(given["type"].lower()) == "object"
    )
    if not is_schema:  # a map from name to schema
        required = given["required"] if isinstance(given.get("required"), list) else required
        given = {
            "properties": {
                k: v for k, v in given.items() if isinstance(v, dict) or (isinstance(v, str) and k != "type")
            }
        }
    schema = normalise_schema(given)
    schema["type"] = "object"
    schema.setdefault("properties", {})
    if "required" not in schema and isinstance(required, list):
        schema["required"] = [name for name in required if name in schema["properties"]]
    return schema


def _is_named(parameter: Any) -> bool:
    return isinstance(parameter, dict) and isinstance(parameter.get("name"), str)


def normalise_schema(schema: Any) -> dict[str, Any]:
    """A JSON Schema of what the world writes for one: Python's and Java's type names, `required: true`
    inside a property, tuples in `items`, a description alone, and nulls where a field does not apply."""
    if isinstance(schema, bool):
        return {} if schema else {"not": {}}
    if isinstance(schema, str):
        return _typed(schema)
    if not isinstance(schema, dict):
        raise Unconvertible("tools_not_schema", f"a parameter's schema is no object: {str(schema)[:200]}")
    out = {key: value for key, value in schema.items() if value is not None and key not in ("optional", "required")}
    kind = out.pop("type", None)
    if isinstance(kind, list):
        out.update(_union(kind))
    elif isinstance(kind, str):
        out.update({key: value for key, value in _typed(kind).items() if key not in out})
    elif "properties" in out:
        out["type"] = "object"
    if isinstance(out.get("items"), list):
        out["prefixItems"] = out.pop("items")
    required = [name for name in _list(schema.get("required")) if isinstance(name, str)]
    if isinstance(out.get("properties"), dict):
        properties = {k: v for k, v in out["properties"].items() if v is not None}
        required += [k for k, v in properties.items() if isinstance(v, dict) and v.get("required") is True]
        required = [name for name in dict.fromkeys(required) if name in properties]
        out["properties"] = properties
    if required:
        out["required"] = required
    for key in _SCHEMA_OF_NAME:
        if isinstance(out.get(key), dict):
            out[key] = {name: normalise_schema(inner) for name, inner in out[key].items()}
    for key in _SCHEMA_LISTS:
        if isinstance(out.get(key), list):
            out[key] = [normalise_schema(inner) for inner in out[key]]
    for key in _SCHEMAS:
        if key in out and not isinstance(out[key], bool):
            out[key] = normalise_schema(out[key])
    if "enum" in out and not (isinstance(out["enum"], list) and out["enum"]):
        del out["enum"]
    if "description" in out and not isinstance(out["description"], str):
        out["description"] = str(out["description"])
    return out


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _typed(name: str) -> dict[str, Any]:
    """The schema of a type's name: `dict`, `List[str]`, `Optional[int]`, `int, optional`, `str | None`."""
    name = re.sub(r",?\s*\(?optional\)?$", "", name.strip(), flags=re.IGNORECASE).strip()
    if name.lower() in _TYPES:
        kind = _TYPES[name.lower()]
        return {"type": kind} if kind else {}
    generic = re.fullmatch(r"(?:typing\.)?(\w+)\s*[\[<](.*)[\]>]", name)
    outer, parts = (generic[1].lower(), _split(generic[2])) if generic else ("", [])
    if outer == "optional" and len(parts) == 1:
        return _typed(parts[0])
    if outer == "union" and parts:
        return _union(parts)
    if outer == "literal" and parts:
        return {"enum": [part.strip("'\"") for part in parts]}
    if parts and _TYPES.get(outer) == "array":
        return {"type": "array", "items": _typed(parts[0])} if len(parts) == 1 else {"type": "array"}
    if parts and _TYPES.get(outer) == "object":
        return {"type": "object"}
    if len(alternatives := re.split(r"\s*\|\s*|\s+or\s+", name)) > 1:
        return _union(alternatives)
    # An unknown name says nothing that a validator could hold a call to.
    return {}


def _union(kinds: Iterable[Any]) -> dict[str, Any]:
    schemas = [_typed(kind) if isinstance(kind, str) else normalise_schema(kind) for kind in kinds]
    if any(not schema for schema in schemas):
        return {}
    if all(schema.keys() == {"type"} for schema in schemas):
        names = list(dict.fromkeys(schema["type"] for schema in schemas))
        return {"type": names[0] if len(names) == 1 else names}
    return {"anyOf": schemas}


def _split(text: str) -> list[str]:
    """Split at commas outside brackets."""
    parts, depth, start = [], 0, 0
    for index, character in enumerate(text):
        depth += (character in "[<(") - (character in "]>)")
        if character == "," and depth == 0:
            parts.append(text[start:index].strip())
            start = index + 1
    return [*parts, text[start:].strip()]


def _check(schema: dict[str, Any], name: str) -> None:
    import jsonschema_rs

    try:
        jsonschema_rs.Draft202012Validator(schema)
    except (ValueError, jsonschema_rs.ValidationError) as error:
        raise Unconvertible("tools_not_schema", f"{name}: {str(error).splitlines()[0]}") from error
