"""What the recipe makes of the rules, and what follows: which rows are set aside and why, how many must keep a rule."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from tasks.errors import BadInput
from tasks.quality.rules import BY_NAME, NIGHT_RULES, RULES, Rule
from tasks.recipe import Quality, RuleSetting

DEFAULT = Quality()
_OF_THE_WHOLE = "This rule is on the source as a whole, which has no share of rows; its bounds are in quality.drift."
_ASKED = {rule.name for rule in (*RULES, *NIGHT_RULES)}


def applied(quality: Quality = DEFAULT, rules: Sequence[Rule] = RULES) -> tuple[Rule, ...]:
    """The rules as a recipe has them; those on rows in the order in which they name a row's first reason.

    Left out are those that it ignores and those that look for what it does not ask for; severity and `mostly` are
    the recipe's where it states them. Raises BadInput for an unknown name, with the nearest known one, for a rule
    whose rows cannot be trained on and so cannot be let through, and for a share of rows where there are none.
    """
    for name in sorted({*quality.ignore, *quality.rules}):
        field = "quality.ignore" if name in quality.ignore else "quality.rules"
        if name not in _ASKED:
            near = difflib.get_close_matches(name, _ASKED, n=1, cutoff=0.4)
            hint = f"Did you mean {near[0]!r}? " if near else ""
            raise BadInput(field, name, "is no rule", f"{hint}Rules: {', '.join(sorted(_ASKED))}.")
        let_through = name in quality.ignore or quality.rules[name].severity == "info"
        if BY_NAME[name].required and let_through:
            raise BadInput(
                field, name, "cannot be let through: such rows have nothing to train on", "Leave it out there."
            )
        if name in quality.rules and quality.rules[name].mostly is not None and BY_NAME[name].looks_at == "night":
            raise BadInput(f"{field}.{name}.mostly", quality.rules[name].mostly, "is of no use", _OF_THE_WHOLE)
    return tuple(
        _as_asked(rule, quality) for rule in rules if rule.name not in quality.ignore and _asked(rule, quality)
    )


def _asked(rule: Rule, quality: Quality) -> bool:
    if rule.looks_at == "sensitive":
        return getattr(quality.sensitive, rule.name) is not None
    return rule.name not in ("language", "languages_moved") or quality.languages is not None


def _as_asked(rule: Rule, quality: Quality) -> Rule:
    setting = quality.rules.get(rule.name, RuleSetting())
    severity = setting.severity or rule.severity
    if rule.looks_at == "sensitive" and setting.severity is None:
        severity = "info" if getattr(quality.sensitive, rule.name) == "report" else "warning"
    if rule.name == "over_length" and quality.over_length == "keep" and setting.severity is None:
        severity = "info"
    mostly = rule.mostly if setting.mostly is None else setting.mostly
    return replace(rule, severity=severity, mostly=mostly)


def reasons(found: pl.DataFrame, rules: Sequence[Rule]) -> pl.Series:
    """A list of rule names a row: every rule it breaks that sets rows aside, in the rules' order."""
    names = [rule.name for rule in rules if rule.sets_aside]
    lists = pl.concat_list([pl.when(pl.col(name)).then(pl.lit(name)) for name in names]).list.drop_nulls()
    return found.select(reasons=lists)["reasons"]


def first_reasons(lists: pl.Series) -> dict[str, int]:
    """How many rows were set aside, each counted once under its first reason; empty lists are kept rows."""
    first = lists.list.first().drop_nulls().value_counts(sort=True, name="rows")
    return dict(first.iter_rows())


def required_share(rule: Rule, max_set_aside: float) -> float:
    """The share of rows that must keep a rule: its own, or for rules that set aside what the recipe leaves."""
    if rule.mostly is not None:
        return rule.mostly
    return round(1 - max_set_aside, 12) if rule.sets_aside else 0.0
