from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.compare import remember
from tasks.conversations import (
    CONVERSATION,
    Conversations,
    Renderer,
    canonical_tools,
    read_conversations,
    row_ids,
)
from tasks.errors import BadInput, Refused, WorldFailed
from tasks.fetch import fetch
from tasks.quality import Change, applied, flags, markdown
from tasks.recipe import Base, Drift, Quality, Recipe, RuleSetting, Source, parse
from tasks.sources import BaseSnapshot, Snapshot
from tasks.store import Store
from tasks.validate import _judge, _judged, _sort_out, check, look, validate

TEMPLATE = (Path(__file__).resolve().parents[2] / "deployments" / "recipes" / "chatml-hybrid.jinja").read_text()
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="session")
def base(store: Store, byte_model: Path) -> BaseSnapshot:
    def build(work: Path) -> dict[str, Any]:
        shutil.copytree(byte_model, work, dirs_exist_ok=True)
        return {"uri": "file://bytes", "revision": "0" * 40, "requested": None, "size": 1, "licence": None}

    return store.make(BaseSnapshot, {"base": "bytes"}, build)[0]


def recipe(sources: list[dict[str, Any]], **quality: Any) -> Recipe:
    return parse(
        {
            "name": "try",
            "base": {"uri": "file://bytes", "chat_template": TEMPLATE, "max_length": 2000},
            "sources": sources,
            "quality": quality,
            "evaluation": {"suites": [{"name": "held_out_loss", "kind": sources[0]["kind"], "role": "target"}]},
        }
    )


def chats(n: int, mark: str = "") -> list[dict[str, Any]]:
    return [
        {
            "messages": [
                {"role": "user", "content": f"What comes after {i}?{mark}"},
                {"role": "assistant", "content": f"After {i} comes {i + 1}."},
            ]
        }
        for i in range(n)
    ]


def source_of(folder: Path, rows: list[Any], kind: str = "chat", name: str = "talk") -> Source:
    file = folder / f"{name}.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return Source.model_validate({"name": name, "uri": f"file://{file}", "kind": kind, "share": 1.0})


def gate(source: Source, base: BaseSnapshot, store: Store, **quality: Any) -> Conversations:
    return validate(recipe([source.model_dump()], **quality), source, fetch(source, store), base, store)[0]


def test_bad_rows_go_to_quarantine_with_every_reason_and_the_rest_is_tokenised(
    tmp_path: Path, base: BaseSnapshot, store: Store
) -> None:
    rows = chats(40)
    rows[3]["messages"][1]["content"] = ""
    rows[7]["messages"][0]["content"] += " {{name}} caf\ufffd"
    rows[9]["messages"][1]["content"] += "<|im_end|>"
    rows[20] = rows[19]
    source = source_of(tmp_path, rows)
    gated = gate(source, base, store)
    folder = store.folder(gated)

    assert gated.passed
    assert (gated.rows_in, gated.rows_out) == (40, 37)
    assert gated.set_aside == {"empty_answer": 1, "replacement_character": 1, "special_token": 1}
    quarantine = pl.read_parquet(folder / "quarantine.parquet")
    assert dict(quarantine.select("source_row", "reasons").iter_rows()) == {
        3: ["empty_answer", "render_problem"],
        7: ["replacement_character", "placeholder"],
        9: ["special_token", "render_problem"],
    }
    kept = pl.concat(read_conversations(folder))
    assert dict(kept.select(*CONVERSATION).schema) == dict(pl.Schema(CONVERSATION))
    assert kept["at"].to_list() == list(range(37))
    assert kept["input_ids"].list.len().sum() == gated.tokens
    assert kept["loss_mask"].list.sum().sum() == gated.supervised_tokens > 0
    assert kept.filter(pl.col("row_id").is_duplicated())["source_row"].to_list() == [19, 20]
    assert {finding.rule: finding.rows for finding in gated.findings}["exact_duplicate"] == 1
    _, change = look(recipe([source.model_dump()]), source, fetch(source, store), base, store)
    told = markdown(gated, change, folder)
    assert "| placeholder | warning | 1 | 2.5% |  | row 7, user: What comes after 7? {{name}}" in told
    assert "No earlier night to compare with." in told


# Asks for an answer after an empty thinking block, and leaves it out of every answer but the last, as Qwen3 does.
REWRITES = """{%- for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}
{%- if m.role == 'assistant' and loop.last %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{{ m.content + '<|im_end|>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}
{%- if not enable_thinking %}{{ '<think>\n\n</think>\n\n' }}{% endif %}{% endif %}"""


def test_how_many_answers_are_trained_is_said_with_the_way_to_train_the_others(
    tmp_path: Path, base: BaseSnapshot, store: Store
) -> None:
    rows = [{"messages": [*one["messages"], *other["messages"]]} for one, other in pairwise(chats(20))]
    source = source_of(tmp_path, rows)
    told = {}
    for name, template in (("kept", None), ("rewritten", REWRITES)):
        asked = recipe([source.model_dump()])
        if template:
            asked = asked.model_copy(update={"base": asked.base.model_copy(update={"chat_template": template})})
        gated, change = look(asked, source, fetch(source, store), base, store)
        told[name] = (gated.answers, gated.trained_answers, markdown(gated, change, store.folder(gated)))
    assert told["kept"][:2] == (38, 38)
    assert "38 of 38 assistant turns are trained." in told["kept"][2]
    assert told["rewritten"][:2] == (38, 19)
    assert "19 of 38 assistant turns are trained: " in told["rewritten"][2]
    assert "deployments/recipes/qwen3-hybrid.jinja" in told["rewritten"][2]


def test_pages_tell_the_rules_and_fetch_nothing(tmp_path: Path, base: BaseSnapshot, store: Store) -> None:
    rows = chats(30, " (pages)")
    rows[2]["messages"][1]["content"] = "Dear {{customer}}, <b>hello</b> & $v__0 welcome."
    gated = gate(source_of(tmp_path, rows), base, store)
    docs = store.folder(gated) / "docs"
    assert sorted(page.name for page in docs.iterdir()) == [
        "index.html",
        "try-talk-conversations.html",
        "try-talk-raw.html",
    ]
    page = (docs / "index.html").read_text()
    assert "<h2>The source passes</h2>" in page
    assert "placeholder (warning)" in page
    assert "1 row breaks it; at least 90.0% of the rows must keep it." in page
    assert "{{customer}}" in page
    assert "<b>hello</b>" not in page
    history = tmp_path / "nightowl-home" / "expectations"
    for html in [*docs.iterdir(), *history.rglob("*.html")]:
        text = html.read_text()
        fetched = re.findall(r"<(?:script|link|img|iframe)\b[^>]*(?:src|href)=\"([^\"]*)\"", text)
        assert [url for url in fetched if "//" in url] == [], html
        assert not re.search(r"url\(['\"]?https?:|@import", text), html


def test_a_refusal_is_stored_and_repeated(tmp_path: Path, base: BaseSnapshot, store: Store) -> None:
    rows = chats(30, " (refused)")
    for row in rows[:9]:
        row["messages"][1]["content"] = "I'm sorry, but I can't help with that."
    for row in rows[9:11]:
        row["messages"][1]["content"] = ""
    source = source_of(tmp_path, rows)
    before = {entry.address for entry in store.all(Conversations)}
    with pytest.raises(Refused) as first:
        gate(source, base, store)
    text = str(first.value)
    assert "sources.talk" in text
    assert "set_aside: 11 rows (36.7%), and at most 10.0% may" in text
    assert "refusal: 9 rows (30.0%)" in text
    assert "empty_answer: 2 rows" in text
    assert "I'm sorry" in text
    assert "docs/index.html" in text
    (refused,) = [entry for entry in store.all(Conversations) if entry.address not in before]
    assert not refused.passed
    page = (store.folder(refused) / "docs" / "index.html").read_text()
    assert re.search("<h2>The night stops: [^<]*set_aside", page)
    assert pl.read_parquet(store.folder(refused) / "quarantine.parquet").height == 11
    with pytest.raises(Refused) as again:
        gate(source, base, store)
    assert str(again.value) == text
    assert len(store.all(Conversations)) == len(before) + 1


def test_the_recipe_decides_how_much_may_be_set_aside_and_what_is_ignored(
    tmp_path: Path, base: BaseSnapshot, store: Store
) -> None:
    rows = chats(20, " (bounds)")
    for row in rows[:4]:
        row["messages"][1]["content"] = "Dear {{customer}}, welcome."
    source = source_of(tmp_path, rows)
    assert gate(source, base, store, max_set_aside=0.2).rows_out == 16
    with pytest.raises(Refused, match="set_aside"):
        gate(source, base, store, max_set_aside=0.19)
    with pytest.raises(Refused, match="min_rows"):
        gate(source, base, store, max_set_aside=0.2, min_rows=17)
    assert gate(source, base, store, ignore=["placeholder"]).rows_out == 20
    with pytest.raises(BadInput, match="Did you mean 'placeholder'"):
        gate(source, base, store, ignore=["placeholders"])


def test_a_night_that_lost_half_of_its_rows_is_refused_with_what_to_do(
    tmp_path: Path, base: BaseSnapshot, store: Store
) -> None:
    asked = recipe([source_of(tmp_path, chats(60, " (nights)")).model_dump()]).model_copy(update={"name": "nights"})

    def tonight(rows: list[Any], night: Recipe = asked) -> tuple[Conversations, Change]:
        source = source_of(tmp_path, rows)
        return validate(night, source, fetch(source, store), base, store)

    gated, change = tonight(chats(60, " (nights)"))
    remember(asked, [gated], [change], store)
    with pytest.raises(Refused) as refused:
        tonight(chats(20, " (nights)"))
    assert re.search(r"rows_moved: The source has about as many rows", str(refused.value))
    assert "rows now per row then 0.33 (at least 0.5); then 60, now 20" in str(refused.value)
    assert "--set quality.rules.rows_moved.severity=warning" in str(refused.value)
    milder = asked.quality.model_copy(update={"rules": {"rows_moved": RuleSetting(severity="warning")}})
    let, change = tonight(chats(20, " (nights)"), asked.model_copy(update={"quality": milder}))
    assert [finding.rule for finding in change.findings] == ["rows_moved"]
    # How bad a move is has no part in what the conversations are.
    bounds = asked.quality.model_copy(update={"drift": Drift(fewer_rows=0.9), "ignore": ("turns_moved",)})
    again, _ = tonight(chats(20, " (nights)"), asked.model_copy(update={"quality": bounds}))
    assert again.address == let.address


@pytest.mark.parametrize(
    ("over_length", "kept", "changed"), [("set aside", 19, {}), ("truncate", 20, {"truncated": 1}), ("keep", 20, {})]
)
def test_the_recipe_decides_what_becomes_of_long_rows_and_of_secrets(
    over_length: str, kept: int, changed: dict[str, int], tmp_path: Path, base: BaseSnapshot, store: Store
) -> None:
    rows = chats(20, " (long)")
    rows[4]["messages"] *= 90
    rows[7]["messages"][1]["content"] += " It is ghp_" + "a1B2" * 9 + "."
    source = source_of(tmp_path, rows)
    gated = gate(source, base, store, over_length=over_length, sensitive={"secret": "redact"})
    assert gated.rows_out == kept
    assert gated.changed == {"redacted secret": 1, **changed}
    told = pl.read_parquet(store.folder(gated) / "changed.parquet")
    assert set(told["source_row"]) == {7} | ({4} if changed else set())
    given = pl.concat(read_conversations(store.folder(gated)))
    lengths = given["input_ids"].list.len()
    if over_length == "truncate":
        # Not one exchange more would have fitted.
        assert 2000 - lengths.min() < lengths.max() <= 2000
    assert (given["messages"].list.len().max() == 180) == (over_length == "keep")
    said = given.filter(source_row=7)["messages"][0].to_list()[1]["content"]
    assert said == "After 7 comes 8. It is [SECRET_1]."
    assert given["row_id"].equals(row_ids(given)["row_id"])


def test_an_empty_source_stops_the_night(base: BaseSnapshot, store: Store) -> None:
    def build(work: Path) -> dict[str, Any]:
        (work / "data").mkdir()
        (work / "data" / "none.jsonl").touch()
        (work / "columns.json").write_text("{}")
        return {
            "uri": "file:///none.jsonl",
            "revision": "0" * 40,
            "requested": None,
            "rows": 0,
            "size": 0,
            "licence": None,
        }

    snapshot = store.make(Snapshot, {"empty": True}, build)[0]
    source = Source(name="empty", uri="file:///none.jsonl", kind="chat", share=1.0)
    with pytest.raises(Refused, match="The source yields rows"):
        validate(recipe([source.model_dump()]), source, snapshot, base, store)
    assert [made.rows_in for made in store.all(Conversations) if made.source == "empty"] == [0]


def test_rows_that_are_no_conversation_are_kept_with_the_reason(
    tmp_path: Path, base: BaseSnapshot, store: Store
) -> None:
    rows = chats(30, " (strange)")
    rows[4]["messages"] = [{"role": "user", "content": 3, "tool_calls": "?"}, {"role": "assistant"}]
    rows[5]["messages"] = []
    gated = gate(source_of(tmp_path, rows), base, store)
    quarantine = pl.read_parquet(store.folder(gated) / "quarantine.parquet")
    assert set(quarantine["source_row"]) == {4, 5}
    assert quarantine["reasons"].list.len().min() >= 1
    assert sum(gated.set_aside.values()) == 2


def test_gx_that_raises_stops_the_night_and_stores_nothing(
    tmp_path: Path, base: BaseSnapshot, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    import expectations.raw

    whole = expectations.raw.suite

    def broken(name: str, **kwargs: Any) -> Any:
        import great_expectations.expectations as gxe

        suite = whole(name, **kwargs)
        suite.add_expectation(gxe.ExpectColumnMaxToBeBetween(column="no_such_column", max_value=1))
        return suite

    source = source_of(tmp_path, chats(10, " (raises)"))
    before = len(store.all(Conversations))
    monkeypatch.setattr(expectations.raw, "suite", broken)
    with pytest.raises(WorldFailed, match="no_such_column"):
        gate(source, base, store)
    assert len(store.all(Conversations)) == before
    monkeypatch.undo()
    # A check that failed is not an answer: the next night asks again.
    monkeypatch.setenv("NIGHTOWL_HOME", str(tmp_path / "nightowl-home"))
    assert gate(source, base, store).passed


ODD_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.sampled_from(
    ["", " ", "<think>", "</think>x", "<|im_end|>", "{{name}}", "caf\ufffd", "[1]", '{"name": "f", "arguments": {}}']
)
ODD_TURN = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "user", "assistant", "tool", "critic"]), "content": ODD_TEXT | st.none()}
)
ODD_ROW = st.fixed_dictionaries({"messages": st.lists(ODD_TURN, max_size=4)})


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(odd=st.lists(ODD_ROW, max_size=12), seen=st.integers(0, 3))
def test_rows_in_are_rows_out_and_rows_set_aside(
    odd: list[Any], seen: int, tmp_path_factory: pytest.TempPathFactory, base: BaseSnapshot, store: Store
) -> None:
    folder = tmp_path_factory.mktemp("odd")
    rows = [*chats(2), *odd, *odd[:seen]]
    source = source_of(folder, rows)
    source = source.model_copy(update={"format": "openai"})
    snapshot = fetch(source, store)
    renderer = Renderer.open(store.folder(base), TEMPLATE)
    judge = partial(_judged, quality=Quality(), special_tokens=renderer.special_tokens, max_length=2000)
    pile = _judge(source, snapshot, store.folder(snapshot), renderer, judge, folder, None)
    out = _sort_out(pile, applied(), renderer, source, snapshot.revision, folder)
    kept = pl.concat(read_conversations(folder))
    aside = pl.read_parquet(folder / "quarantine.parquet")
    assert pile.facts.height == len(rows) == kept.height + aside.height == out.kept.height + sum(out.set_aside.values())
    assert sorted([*kept["source_row"], *aside["source_row"]]) == list(range(len(rows)))
    assert Counter(why[0] for why in aside["reasons"].to_list()) == Counter(out.set_aside)
    again = renderer.render(kept)
    assert again["problem"].null_count() == kept.height


def test_a_file_is_checked_without_a_recipe(tmp_path: Path, byte_model: Path) -> None:
    base = Base(uri=f"file://{byte_model}", max_length=2000)
    rows = chats(20)
    for row in rows[:5]:
        row["messages"].pop()
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    store = Store(tmp_path / "store")
    found = check(str(file), kind="chat", base=base, store=store)
    assert not found.passed
    assert found.set_aside == {"ends_on_assistant": 5}
    with pytest.raises(BadInput):
        check(str(tmp_path / "nothing.jsonl"), kind="chat", base=base, store=store)
    with pytest.raises(BadInput, match="takes query and cursor"):
        check("postgresql://reader@localhost/logs", kind="chat", base=base, store=store)


REAL = {
    # SOURCES.md counts 38 duplicates by the text alone; three of those conversations offer other tools.
    "llamafactory_tools/glaive_toolcall_en_demo.json": (
        "tool",
        {"exact_duplicate": 35, "tools_missing": 109, "tools_unused": 38},
    ),
    "llamafactory_tools/identity.json": ("chat", {"placeholder": 85}),
}


@pytest.mark.parametrize("name", REAL)
def test_real_files_hold_what_was_counted_in_them(
    name: str, shared_data: Path, base: BaseSnapshot, store: Store
) -> None:
    kind, counts = REAL[name]
    source = Source.model_validate({"name": "real", "uri": f"file://{shared_data / name}", "kind": kind, "share": 1})
    long = recipe([source.model_dump()], max_set_aside=1.0).model_copy(deep=True)
    long = long.model_copy(update={"base": long.base.model_copy(update={"max_length": 100_000})})
    gated, _ = validate(long, source, fetch(source, store), base, store)
    found = {finding.rule: finding.rows for finding in gated.findings}
    assert {rule: found.get(rule) for rule in counts} == counts


def test_real_tools_with_dotted_names_are_reported(shared_data: Path) -> None:
    lines = (shared_data / "bfcl" / "BFCL_v4_simple_python.json").read_text(encoding="utf-8").splitlines()
    declared = [canonical_tools(json.loads(line)["function"]) for line in lines]
    said = [
        {"role": role, "content": "It is so.", "thinking": None, "tool_calls": None, "tool_call_id": None}
        for role in ("user", "assistant")
    ]
    n = len(declared)
    rows = pl.DataFrame(
        {
            "row_id": [f"{i:032x}" for i in range(n)],
            "source": ["bfcl"] * n,
            "revision": ["0"] * n,
            "source_row": range(n),
            "kind": ["tool"] * n,
            "messages": [said] * n,
            "tools": declared,
        },
        schema=CONVERSATION,
    )
    rendered = rows.select("row_id", problem=pl.lit(None, pl.String), tokens=pl.lit(9), supervised_tokens=pl.lit(3))
    found = flags(rows, rendered, special_tokens=SPECIAL, max_length=10)
    assert found["dotted_tool_name"].sum() == 167
    assert found["tool_name"].sum() == found["tools_malformed"].sum() == found["schema_unchecked"].sum() == 0
