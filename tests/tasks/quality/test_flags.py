from __future__ import annotations

from types import ModuleType
from typing import Any

import polars as pl
import pytest

from tasks.conversations import CONVERSATION
from tasks.errors import BadInput
from tasks.quality import RULES, applied, example, flags, row_flags, settle
from tasks.recipe import Quality, RuleSetting, Sensitive

KINDS = ("chat", "reasoning", "tool")
# Clean tool conversations include some in which no tool fits; that is reported, and no defect.
REPORTED = {"tools_unused"}


def flagged(corpus: ModuleType, rows: list[dict[str, Any]]) -> pl.DataFrame:
    """With every detector that a recipe can ask for."""
    settings = {"special_tokens": corpus.SPECIAL, "max_length": corpus.MAX_LENGTH, "quality": corpus.ALL}
    return flags(*corpus.frames(rows), **settings)


@pytest.mark.parametrize("kind", KINDS)
def test_clean_conversations_break_no_rule(corpus: ModuleType, kind: str) -> None:
    rows = corpus.clean(kind, 5000, seed=13)
    found = flagged(corpus, rows)
    alarms = {rule.name: int(found[rule.name].sum()) for rule in RULES if rule.name not in REPORTED}
    texts = {name: rows[found[name].arg_max()]["messages"][-2:] for name, n in alarms.items() if n}
    assert sum(alarms.values()) <= 0.001 * len(rows), texts


def test_every_planted_row_is_caught_by_the_rule_meant_for_it(corpus: ModuleType, defect: str) -> None:
    chosen = corpus.DEFECTS[defect]
    compares = next(rule for rule in RULES if rule.name == chosen.rule).looks_at == "source"
    for kind in chosen.kinds:
        for n, share in [(200, 0.05), (1000, 0.001)] if compares else [(200, 0.05)]:
            rows, at = corpus.planted(kind, chosen, n, share, seed=3)
            caught = set(flagged(corpus, rows)[chosen.rule].arg_true())
            assert set(at) <= caught, [rows[i]["messages"] for i in set(at) - caught]
            if chosen.rule not in REPORTED:
                assert caught == set(at), [rows[i]["messages"] for i in caught - set(at)]


def test_every_rule_has_a_class_of_defects(corpus: ModuleType) -> None:
    assert {defect.rule for defect in corpus.DEFECTS.values()} == {rule.name for rule in RULES}
    assert len(corpus.DEFECTS) >= 40


def test_flags_are_booleans_without_nulls_whatever_is_null_in_the_rows() -> None:
    null_turn = dict.fromkeys(("role", "content", "thinking", "tool_calls", "tool_call_id"))
    null_call = {**null_turn, "role": "assistant", "tool_calls": [{"name": None, "arguments": None}, None]}
    rows = pl.DataFrame(
        {
            "row_id": ["a", "b", "c", "d", None],
            "source": [None] * 5,
            "revision": [None] * 5,
            "source_row": [None] * 5,
            "kind": [None, "chat", "reasoning", "tool", "tool"],
            "messages": [None, [], [null_turn], [null_call], [None]],
            "tools": [None, "", "null", '[null, {"name": 3}]', "[]"],
        },
        schema=CONVERSATION,
    )
    rendered = pl.DataFrame(
        {"row_id": rows["row_id"], "problem": [None] * 5, "tokens": [None] * 5, "supervised_tokens": [None] * 5},
        schema={"row_id": pl.String, "problem": pl.String, "tokens": pl.Int32, "supervised_tokens": pl.Int32},
    )
    found = flags(rows, rendered, special_tokens=["<x>"], max_length=10)
    assert found.columns == ["row_id", *(rule.name for rule in RULES)]
    assert set(found.dtypes[1:]) == {pl.Boolean}
    assert sum(found[rule.name].null_count() for rule in RULES) == 0
    assert found["turn_order"].to_list() == [True] * 5
    assert found["empty_loss_mask"].to_list() == [True] * 5


def test_an_empty_source_has_no_flags(corpus: ModuleType) -> None:
    assert flagged(corpus, []).height == 0


def test_rows_and_rendered_rows_must_be_the_same(corpus: ModuleType) -> None:
    rows, rendered = corpus.frames(corpus.clean("chat", 3))
    with pytest.raises(ValueError, match="in their order"):
        flags(rows, rendered.reverse(), special_tokens=[], max_length=10)


@pytest.mark.parametrize("slices", [1, 7, 250])
def test_slices_give_the_same_flags_as_the_whole(corpus: ModuleType, slices: int) -> None:
    rows, _ = corpus.planted("tool", corpus.DEFECTS["ends on call"], 300, 0.05)
    more, _ = corpus.planted("chat", corpus.DEFECTS["cut off"], 300, 0.05)
    conversations, rendered = corpus.frames([*rows, *more, *rows[:5]])
    settings = {"special_tokens": corpus.SPECIAL, "max_length": corpus.MAX_LENGTH}
    whole = flags(conversations, rendered, **settings)
    size = -(-conversations.height // slices)
    parts = [
        row_flags(conversations.slice(at, size), rendered.slice(at, size), **settings)
        for at in range(0, conversations.height, size)
    ]
    assert settle(pl.concat(parts)).equals(whole)
    assert whole["truncated_ending"].sum() > 0
    assert whole["unanswered_final_call"].sum() > 0


def test_a_source_whose_conversations_end_on_the_call_is_not_at_fault(corpus: ModuleType) -> None:
    rows = corpus.clean("tool", 200)
    for row in rows:
        row["messages"] = row["messages"][:2]
    assert flagged(corpus, rows)["unanswered_final_call"].sum() == 0


def test_a_source_that_never_ends_its_sentences_is_not_at_fault(corpus: ModuleType) -> None:
    rows = corpus.clean("chat", 200)
    for row in rows:
        row["messages"][-1]["content"] = "the river goes down to the sea and all of the boats go with it"
    assert flagged(corpus, rows)["truncated_ending"].sum() == 0


@pytest.mark.parametrize("token", ["<|fim|>", "[INST]", "<pad>", "<filename>"])
def test_stray_tokens_are_those_of_the_tokenizer_at_hand(corpus: ModuleType, token: str) -> None:
    rows = corpus.clean("chat", 10)
    rows[4]["messages"][-1]["content"] += token
    conversations, rendered = corpus.frames(rows)
    with_it = flags(conversations, rendered, special_tokens=[token, "\n\n", "<table>", "▁▁"], max_length=4096)
    without = flags(conversations, rendered, special_tokens=[], max_length=4096)
    assert with_it["special_token"].arg_true().to_list() == [4]
    assert without["special_token"].sum() == 0


def test_ignoring_an_unknown_rule_names_the_nearest() -> None:
    with pytest.raises(BadInput, match="Did you mean 'turn_order'"):
        applied(Quality(ignore=("turn_orders",)))
    with pytest.raises(BadInput, match="cannot be let through"):
        applied(Quality(ignore=("render_problem",)))
    assert "refusal" not in {rule.name for rule in applied(Quality(ignore=("refusal",)))}


def test_examples_show_the_place_and_what_cannot_be_seen(corpus: ModuleType, defect: str) -> None:
    chosen = corpus.DEFECTS[defect]
    rows, at = corpus.planted(chosen.kinds[0], chosen, 30, 0.05)
    row = corpus.frames(rows)[0].row(at[0], named=True)
    regions = corpus.ALL.sensitive.phone_regions
    problem = rows[at[0]].get("problem")
    told = example(chosen.rule, row, special_tokens=corpus.SPECIAL, problem=problem, phone_regions=regions)
    assert len(told) < 260
    assert told.isprintable()
    if chosen.rule == "secret":
        assert "aB3_aB3_" not in told
        assert "ABCDEFGH" not in told
    if chosen.private:
        assert chosen.private not in told
    if chosen.rule == "replacement_character":
        assert "\ufffd" in told


def test_a_recipe_changes_severity_and_mostly_of_any_rule() -> None:
    changed = Quality(
        rules={"refusal": RuleSetting(severity="info"), "mojibake": RuleSetting(severity="critical", mostly=0.99)}
    )
    asked = {rule.name: rule for rule in applied(changed)}
    assert not asked["refusal"].sets_aside
    assert (asked["mojibake"].severity, asked["mojibake"].mostly) == ("critical", 0.99)
    with pytest.raises(BadInput, match="Did you mean 'mojibake'"):
        applied(Quality(rules={"mojibak": RuleSetting(severity="info")}))
    with pytest.raises(BadInput, match="cannot be let through"):
        applied(Quality(rules={"empty_loss_mask": RuleSetting(severity="info")}))


def test_what_is_not_asked_for_is_neither_looked_for_nor_a_rule(corpus: ModuleType) -> None:
    asked = {rule.name for rule in applied()}
    assert {"secret", "email_address"} <= asked
    assert asked.isdisjoint({"language", "phone_number", "payment_card", "bank_account", "national_id"})
    rows, at = corpus.planted("chat", corpus.DEFECTS["phone"], 50, 0.05)
    found = flags(*corpus.frames(rows), special_tokens=[], max_length=4096)
    assert at
    assert found["phone_number"].sum() == 0


@pytest.mark.parametrize(
    ("handling", "severity"), [("report", "info"), ("set aside", "warning"), ("redact", "warning")]
)
def test_how_a_find_is_handled_says_how_bad_it_is(handling: Any, severity: str) -> None:
    asked = applied(Quality(sensitive=Sensitive(secret=handling)))
    assert next(rule for rule in asked if rule.name == "secret").severity == severity


def test_a_language_nobody_knows_is_refused(corpus: ModuleType) -> None:
    rows, rendered = corpus.frames(corpus.clean("chat", 3))
    with pytest.raises(BadInput, match=r"quality.languages: 'xx'"):
        flags(rows, rendered, special_tokens=[], max_length=10, quality=Quality(languages=("en", "xx")))
