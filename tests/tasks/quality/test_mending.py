from __future__ import annotations

import json
from types import ModuleType
from typing import Any

import polars as pl
import pytest

from tasks.conversations import CONVERSATION, row_ids
from tasks.quality import flags, mended
from tasks.recipe import Quality, Sensitive

REDACT = Quality(
    sensitive=Sensitive(secret="redact", email_address="redact", phone_number="redact", payment_card="redact")
)
KEY = "ghp_" + "a1B2" * 9


def render(rows: pl.DataFrame) -> pl.DataFrame:
    """As rendering comes out, with a token for each character of the contents."""
    lengths = [sum(len(turn["content"] or "") for turn in messages) for messages in rows["messages"].to_list()]
    return pl.DataFrame(
        {"row_id": rows["row_id"], "problem": [None] * rows.height, "tokens": lengths, "supervised_tokens": lengths},
        schema={"row_id": pl.String, "problem": pl.String, "tokens": pl.Int32, "supervised_tokens": pl.Int32},
    )


def talk(corpus: ModuleType, *conversations: list[dict[str, Any]]) -> pl.DataFrame:
    rows = [{"kind": "chat", "messages": messages, "tools": None} for messages in conversations]
    return row_ids(corpus.frames(rows)[0])


def test_the_same_text_has_the_same_placeholder_throughout_a_conversation(corpus: ModuleType) -> None:
    arguments = json.dumps({"to": ["jo@acme-corp.com"], "n": 3})
    rows = talk(
        corpus,
        [
            corpus.turn("user", f"Write to jo@acme-corp.com and al@acme-corp.com with {KEY}."),
            corpus.turn("assistant", "", calls=[("send", arguments)]),
            corpus.turn("tool", "sent to al@acme-corp.com"),
            corpus.turn("assistant", "Done. Call +49 30 901820.", thinking="jo@acme-corp.com it is"),
        ],
        [corpus.turn("user", "Hello there."), corpus.turn("assistant", "Write to help@example.com.")],
    )
    after, rendered, changes = mended(rows, render, REDACT, 10_000)
    said = after["messages"][0].to_list()
    assert said[0]["content"] == "Write to [EMAIL_1] and [EMAIL_2] with [SECRET_1]."
    assert json.loads(said[1]["tool_calls"][0]["arguments"]) == {"n": 3, "to": ["[EMAIL_1]"]}
    assert said[2]["content"] == "sent to [EMAIL_2]"
    assert (said[3]["content"], said[3]["thinking"]) == ("Done. Call [PHONE_1].", "[EMAIL_1] it is")
    assert after.row(1) == rows.row(1)
    assert row_ids(after)["row_id"].equals(after["row_id"])
    assert after["row_id"][0] != rows["row_id"][0]
    assert rendered["row_id"].equals(after["row_id"])
    assert changes["change"].to_list() == ["redacted secret", "redacted email_address", "redacted phone_number"]
    assert changes["was"].unique().to_list() == [rows["row_id"][0]]
    found = flags(after, rendered, special_tokens=[], max_length=10_000, quality=REDACT)
    assert found.select(pl.sum("secret", "email_address", "phone_number")).row(0) == (0, 0, 0)


CARD = 4539148803436467
SENDING = {"type": "function", "function": {"name": "send", "description": "Ask jo@acme-corp.com.", "parameters": {}}}


def calling(corpus: ModuleType, arguments: object, parameters: object) -> pl.DataFrame:
    """A conversation in which send is called, declared with these parameters."""
    tool = {**SENDING, "function": {**SENDING["function"], "parameters": parameters}}  # type: ignore[dict-item]
    messages = [corpus.turn("user", "Go."), corpus.turn("assistant", "", calls=[("send", json.dumps(arguments))])]
    return row_ids(corpus.frames([{"kind": "tool", "messages": messages, "tools": json.dumps([tool])}])[0])


def found_after(rows: pl.DataFrame) -> tuple[pl.DataFrame, set[str]]:
    """The rows as mended, and which of the rules on them and on calls still find something."""
    after, rendered, _ = mended(rows, render, REDACT, 10_000)
    found = flags(after, rendered, special_tokens=[], max_length=10_000, quality=REDACT)
    rules = (
        "secret",
        "email_address",
        "phone_number",
        "payment_card",
        "arguments_schema",
        "tool_name",
        "undeclared_tool",
    )
    return after, {rule for rule in rules if found[rule].any()}


def test_numbers_names_and_declared_tools_are_redacted_where_the_schema_allows(corpus: ModuleType) -> None:
    arguments = {
        "jo@acme-corp.com": 1,
        "card": [CARD, 7, True, None],
        "twice": {"jo@acme-corp.com": "al@acme-corp.com"},
    }
    after, still = found_after(calling(corpus, arguments, {"type": "object"}))
    assert still == set()
    (call,) = after["messages"][0].to_list()[1]["tool_calls"]
    assert json.loads(call["arguments"]) == {
        "[EMAIL_1]": 1, "card": ["[CARD_1]", 7, True, None], "twice": {"[EMAIL_1]": "[EMAIL_2]"},
    }  # fmt: skip
    assert json.loads(after["tools"][0])[0]["function"]["description"] == "Ask [EMAIL_1]."
    assert row_ids(after)["row_id"].equals(after["row_id"])


@pytest.mark.parametrize(
    ("arguments", "parameters", "rule"),
    [
        ({"n": CARD}, {"type": "object", "properties": {"n": {"type": "integer"}}}, "payment_card"),
        ({"jo@acme-corp.com": 1}, {"type": "object", "required": ["jo@acme-corp.com"]}, None),
        ({"jo@acme-corp.com": 1}, {"type": "object", "propertyNames": {"pattern": "@"}}, "email_address"),
        ({"x": [{f"{a} jo@acme-corp.com": 1 for a in "ab"}, {}]}, {}, None),
        ({"+49 30 901820": 1, "+49  30  901820": 2}, {}, "phone_number"),
    ],
)
def test_what_cannot_be_redacted_stays_for_its_rule(
    corpus: ModuleType, arguments: object, parameters: object, rule: str | None
) -> None:
    _, still = found_after(calling(corpus, arguments, parameters))
    assert "arguments_schema" not in still
    assert (rule in still) if rule else still == set()


def exchanges(corpus: ModuleType, *lengths: int) -> list[dict[str, Any]]:
    return [t for n in lengths for t in (corpus.turn("user", "q" * n), corpus.turn("assistant", "a" * n))]


@pytest.mark.parametrize(("longest", "turns"), [(1000, 6), (59, 4), (40, 4), (39, 2), (20, 2)])
def test_a_long_conversation_ends_after_the_last_exchange_that_fits(
    corpus: ModuleType, longest: int, turns: int
) -> None:
    rows = talk(corpus, exchanges(corpus, 10, 10, 10), exchanges(corpus, 1))
    after, rendered, changes = mended(rows, render, Quality(over_length="truncate"), longest)
    assert after["messages"].list.len().to_list() == [turns, 2]
    assert changes.height == int(turns < 6)
    assert rendered["tokens"].max() <= longest
    assert rendered["row_id"].equals(row_ids(after)["row_id"])
    assert dict(after.schema) == dict(pl.Schema(CONVERSATION))


def test_a_conversation_is_never_cut_within_an_exchange_or_after_a_call(corpus: ModuleType) -> None:
    calling = [
        corpus.turn("user", "q" * 10),
        corpus.turn("assistant", "", calls=[("f", "{}")]),
        corpus.turn("tool", "t" * 10),
        corpus.turn("assistant", "a" * 100),
    ]
    rows = talk(corpus, calling)
    after, rendered, changes = mended(rows, render, Quality(over_length="truncate"), 50)
    assert after.equals(rows)
    assert changes.height == 0
    assert flags(after, rendered, special_tokens=[], max_length=50)["over_length"].to_list() == [True]


def test_the_default_changes_nothing(corpus: ModuleType) -> None:
    rows = talk(corpus, exchanges(corpus, 10, 10), [corpus.turn("user", KEY), corpus.turn("assistant", "Thanks.")])
    after, _, changes = mended(rows, render, Quality(), 5)
    assert after.equals(rows)
    assert changes.is_empty()
