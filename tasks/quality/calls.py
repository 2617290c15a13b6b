"""Rules on tools, calls and tool results.

Tools and arguments are JSON text, so they are parsed in Python; since sources declare the same
tools over and over, each distinct declaration is parsed once and each distinct call checked once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jsonschema_rs
import orjson
import polars as pl

from tasks.quality.turns import Turns

# A name that a template can put between quotes or tags and a parser can find again.
NAME = r"^[^\s\"'`<>{}\[\]()\\,:;|\x00-\x1f\x7f]{1,64}$"
# Calls as other models' formats write them.
CALL_TEXT = (
    r"<tool_call>|</tool_call>|<TOOLCALL>|<tool_code>|<functioncall>|<function_call>|<function=|<\|python_tag\|>|\[TOOL_CALLS\]|"
    r"(?m)^\s*Action: ?\S+\s*\n+\s*Action Input:"
)
# What those of them that do not begin with < have in them.
CALL_SIGN = r"\[TOOL_CALLS\]|Action Input:"


@dataclass(frozen=True)
class _Declared:
    """One distinct declaration of tools: a validator by name, None where there is no valid schema."""

    validators: dict[str, Any]
    malformed: bool = False
    doubled: bool = False
    unchecked: bool = False


def call_flags(laid: Turns) -> dict[str, pl.Series]:
    """Flags of the rules that look at tools."""
    texts = laid.rows["tools"].drop_nulls().unique()
    declared = {text: _declared(text) for text in texts}
    facts = pl.DataFrame(
        {
            "tools": list(declared),
            "malformed": [d.malformed for d in declared.values()],
            "doubled": [d.doubled for d in declared.values()],
            "unchecked": [d.unchecked for d in declared.values()],
            "names": [list(d.validators) for d in declared.values()],
        },
        schema={
            "tools": pl.String,
            "malformed": pl.Boolean,
            "doubled": pl.Boolean,
            "unchecked": pl.Boolean,
            "names": pl.List(pl.String),
        },
    )
    rows = laid.rows.join(facts, on="tools", how="left", maintain_order="left").with_columns(
        any_tool=pl.col("names").list.len().fill_null(0) > 0
    )
    calls = laid.calls.join(laid.rows.select("n", "tools"), on="n", how="left", maintain_order="left")
    calls = calls.join(
        _judged(calls, declared), on=["tools", "name", "arguments"], how="left", nulls_equal=True, maintain_order="left"
    )
    # A misspelt or odd name counts wherever it stands: declared, called or both.
    names = pl.concat(
        [
            calls.select("n", "name"),
            rows.select("n", name="names").explode("name", empty_as_null=False, keep_nulls=False),
        ]
    )
    has_calls = laid.mark(calls["n"].unique())
    return {
        "tools_malformed": rows["malformed"].fill_null(False),
        "duplicate_tool": rows["doubled"].fill_null(False),
        "schema_unchecked": rows["unchecked"].fill_null(False),
        "tool_name": laid.where(~pl.col("name").fill_null("").str.contains(NAME), names),
        "dotted_tool_name": laid.where(pl.col("name").str.contains(".", literal=True), names),
        "call_outside_assistant": laid.where(pl.col("role").fill_null("?") != "assistant", calls),
        "undeclared_tool": laid.where(pl.col("undeclared"), calls),
        "arguments_not_json": laid.where(pl.col("not_json"), calls),
        "arguments_schema": laid.where(pl.col("unfit"), calls),
        "tools_missing": (rows["kind"] == "tool") & ~rows["any_tool"],
        "tools_unused": rows["any_tool"] & ~has_calls,
        **_result_flags(laid),
    }


def _result_flags(laid: Turns) -> dict[str, pl.Series]:
    """Results against calls: a run of tool turns answers the turn before it, one result a call."""
    tool = pl.col("letter") == "T"
    calling = laid.turns.filter((pl.col("calls") > 0) | tool)["n"].unique()
    # A block is an assistant (or other) turn with the tool turns that follow it.
    blocks = (
        laid.turns.select("n", "letter", "calls", "last", "first")
        .filter(pl.col("n").is_in(calling.implode()))
        .with_columns(block=(~tool | pl.col("first")).cum_sum())
        .group_by("block", maintain_order=True)
        .agg(
            pl.col("n").first(),
            pl.col("calls").filter(~tool).sum(),
            results=tool.sum(),
            final=pl.col("last").any(),
        )
        .filter((pl.col("calls") > 0) | (pl.col("results") > 0))
    )
    calls, results = pl.col("calls"), pl.col("results")
    # A conversation may end on the call itself, all of it unanswered: that is how calling is taught.
    return {
        "observation_without_call": laid.where(results > calls, blocks),
        "unanswered_call": laid.where((results < calls) & ~(pl.col("final") & (results == 0)), blocks),
    }


def _declared(text: str) -> _Declared:
    try:
        entries = orjson.loads(text)
    except orjson.JSONDecodeError:
        return _Declared({}, malformed=True)
    if not isinstance(entries, list):
        return _Declared({}, malformed=True)
    validators: dict[str, Any] = {}
    malformed = doubled = unchecked = False
    for entry in entries:
        function = entry.get("function", entry) if isinstance(entry, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not isinstance(function, dict) or not isinstance(name, str):
            malformed = True
            continue
        doubled |= name in validators
        schema = function.get("parameters", {})
        try:
            validators[name] = jsonschema_rs.validator_for({} if schema is None else schema)
        except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError, TypeError):
            validators[name] = None
            malformed |= not isinstance(schema, dict | None)
            unchecked = True
    return _Declared(validators, malformed, doubled, unchecked)


def _judged(calls: pl.DataFrame, declared: dict[str, _Declared]) -> pl.DataFrame:
    distinct = calls.select("tools", "name", "arguments").unique()
    nothing = _Declared({})
    undeclared, not_json, unfit = [], [], []
    for tools, name, arguments in distinct.iter_rows():
        validators = declared.get(tools, nothing).validators
        try:
            value = orjson.loads(arguments or "")
        except orjson.JSONDecodeError:
            value = None
        validator = validators.get(name)
        undeclared.append(name not in validators)
        not_json.append(not isinstance(value, dict))
        unfit.append(isinstance(value, dict) and validator is not None and not validator.is_valid(value))
    return distinct.with_columns(
        undeclared=pl.Series(undeclared, dtype=pl.Boolean),
        not_json=pl.Series(not_json, dtype=pl.Boolean),
        unfit=pl.Series(unfit, dtype=pl.Boolean),
    )
