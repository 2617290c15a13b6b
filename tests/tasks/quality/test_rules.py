"""What the rules say of themselves is so: what each gives as breaking it does break it."""

from __future__ import annotations

import re
from types import ModuleType
from typing import Any

import pytest

from tasks.quality import BY_NAME, NIGHT_RULES, RULES, example, flags
from tasks.quality.examples import shown

TOOLS = (
    '[{"type":"function","function":{"name":"get_weather","parameters":{"type":"object","additionalProperties":false,'
    '"properties":{"city":{"type":"string"}}}}}]'
)
# Told in words, for what breaks them is not a row alone: its rendered form, or an earlier row.
IN_WORDS = {"render_problem", "empty_loss_mask", "over_length", "exact_duplicate"}
SHOWN = [rule.name for rule in RULES if rule.name not in IN_WORDS]


def row_of(corpus: ModuleType, rule: str) -> dict[str, Any]:
    """A row of its notation: `tools: ... | role: text | role: name(arguments) | role: (thinking: ...) text`."""
    parts = BY_NAME[rule].bad.split(" | ")
    tools = parts.pop(0).removeprefix("tools: ") if parts[0].startswith("tools: ") else None
    messages = []
    for part in parts:
        role, _, text = part.partition(": ")
        call = re.fullmatch(r"(\w+)\((.*)\)", text)
        thought = re.fullmatch(r"\(thinking: (.*?)\) (.*)", text)
        if call:
            messages.append(corpus.turn(role, "", calls=[(call[1], call[2])]))
            tools = tools or TOOLS
        elif thought:
            messages.append(corpus.turn(role, thought[2], thinking=thought[1]))
        else:
            messages.append(corpus.turn(role, text))
    looks_at = BY_NAME[rule].looks_at
    kind = "reasoning" if rule == "thinking_missing" else "tool" if looks_at == "tools" or tools else "chat"
    return {"kind": kind, "messages": messages, "tools": tools}


@pytest.mark.parametrize("rule", SHOWN)
def test_what_a_rule_gives_as_breaking_it_breaks_it(corpus: ModuleType, rule: str) -> None:
    row = row_of(corpus, rule)
    rows = [row, *corpus.clean(row["kind"], 60, seed=1)]
    found = flags(*corpus.frames(rows), special_tokens=corpus.SPECIAL, max_length=corpus.MAX_LENGTH, quality=corpus.ALL)
    assert found[rule][0]
    assert found[rule].sum() == 1 + sum(found[rule][1:]) < 30
    told = example(rule, corpus.frames(rows)[0].row(0, named=True), special_tokens=corpus.SPECIAL, phone_regions=["US"])
    assert told.isprintable()


def test_every_rule_says_what_breaks_it_and_what_to_do() -> None:
    assert len(BY_NAME) == len(RULES) + len(NIGHT_RULES) + 2
    for rule in BY_NAME.values():
        assert shown(rule.bad).strip()
        assert rule.way_out.endswith((".", ")"))
        assert rule.explanation.endswith(".")
