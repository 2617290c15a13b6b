from __future__ import annotations

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.conversations import CONVERSATION, read_conversations
from tasks.errors import BadInput, Refused, WorldFailed
from tasks.mix import mix
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe, parse
from tasks.store import Store

Made = Callable[..., Any]
Row = dict[str, Any]
SHARES = {"tools": 0.5, "sums": 0.3, "talk": 0.2}
KINDS = {"tools": "tool", "sums": "reasoning", "talk": "chat"}


def recipe(shares: Mapping[str, float | None] = SHARES, kinds: dict[str, str] = KINDS, **mixture: Any) -> Recipe:
    return parse(
        {
            "name": "test",
            "base": {"uri": "sample://base", "chat_template": "{{ messages }}"},
            "sources": [{"name": n, "uri": f"sample://{n}", "kind": kinds[n], "share": s} for n, s in shares.items()],
            "mixture": mixture,
            "evaluation": {"suites": [{"name": "held_out_loss", "kind": next(iter(kinds.values())), "role": "target"}]},
        }
    )


@pytest.fixture
def sources(gated: Made, varied: Made) -> list[Any]:
    return [gated(name, varied(name, 300, kind)) for name, kind in KINDS.items()]


def read(store: Store, mixture: TokenisedMixture, split: str) -> pl.DataFrame:
    return pl.read_parquet(store.folder(mixture) / f"{split}.parquet")


def test_reaches_the_shares_and_adds_up(store: Store, sources: list[Any]) -> None:
    mixture = mix(recipe(), sources, store)
    train = read(store, mixture, "train")
    supervised = train.select("source", n=pl.col("loss_mask").list.sum()).group_by("source").agg(pl.col("n").sum())
    whole = supervised["n"].sum()
    for name, tokens in supervised.iter_rows():
        assert tokens / whole == pytest.approx(SHARES[name], abs=0.01)
        assert mixture.shares[name].reached == tokens / whole
    everything = pl.concat([read(store, mixture, split) for split in ("train", "validation", "test")])
    set_aside = pl.read_parquet(store.folder(mixture) / "set_aside.parquet")
    assert mixture.rows_in == 900 == everything.height + set_aside.height
    assert mixture.set_aside == {"above share": set_aside.height}
    assert everything["row_id"].n_unique() == everything.height
    assert everything.drop("input_ids", "loss_mask", "repeat").schema == pl.Schema(CONVERSATION)
    assert set(everything["repeat"]) == {1}
    assert mixture.splits["train"].rows == train.height
    assert mixture.splits["train"].tokens == train["input_ids"].list.len().sum()
    assert mixture.limited_by == "tools"


def test_rows_keep_their_own_tokens(store: Store, sources: list[Any]) -> None:
    mixture = mix(recipe(), sources, store)
    for source in sources:
        given_tokens = pl.concat(read_conversations(store.folder(source)))
        for split in ("train", "validation", "test"):
            written = read(store, mixture, split).filter(source=source.source).drop("repeat")
            expected = given_tokens.join(written.select("row_id"), on="row_id", how="semi")
            assert written.sort("row_id").equals(expected.select(written.columns).sort("row_id"))


def test_the_picture_and_all_files_are_in_the_manifest(store: Store, sources: list[Any]) -> None:
    mixture = mix(recipe(), sources, store)
    splits = {f"{split}.parquet" for split in ("train", "validation", "test")}
    assert set(mixture.files) == {
        *splits, "set_aside.parquet", "clusters.parquet", *(f"composition.{form}" for form in ("png", "svg", "html")),
        "docs/test-mixture.html", "docs/test-mixture-shares.html",
    }  # fmt: skip
    assert (store.folder(mixture) / "composition.png").stat().st_size > 20_000


def test_without_validation_that_split_is_there_and_empty(store: Store, sources: list[Any]) -> None:
    mixture = mix(recipe(validation=0), sources, store)
    assert read(store, mixture, "validation").is_empty()
    assert read(store, mixture, "validation").schema == read(store, mixture, "train").schema


def test_mixture_rows_caps_training(store: Store, sources: list[Any]) -> None:
    mixture = mix(recipe(rows=100), sources, store)
    assert 97 <= mixture.splits["train"].rows <= 100
    assert mixture.limited_by == "mixture.rows"
    for part in mixture.shares.values():
        assert part.reached == pytest.approx(part.asked, abs=0.01)
    assert mixture.splits["test"].rows == mix(recipe(), sources, store).splits["test"].rows


def test_of_twins_the_better_ranked_source_keeps_its_copy(
    store: Store, gated: Made, varied: Made, conversation: Made
) -> None:
    first, second = varied("one", 200), varied("two", 200)
    spaced = conversation(first[7]["messages"][0]["content"], first[7]["messages"][1]["content"].replace(" ", "  "))
    other = conversation(first[8]["messages"][0]["content"], "quite another answer")
    thinks = conversation(first[9]["messages"][0]["content"], "an answer", "reasoning", thinking="hm")
    conversations = [
        gated("two", [*first[:5], spaced, other, *second, second[0]]),
        gated("one", first),
        gated("sums", [*varied("sums", 200, "reasoning"), thinks]),
    ]
    shares, kinds = {"one": 0.4, "two": 0.4, "sums": 0.2}, {"one": "chat", "two": "chat", "sums": "reasoning"}
    mixture = mix(recipe(shares, kinds), conversations, store)
    aside = pl.read_parquet(store.folder(mixture) / "set_aside.parquet").filter(pl.col("reason") != "above share")
    assert set(aside["source"]) == {"two"}
    assert mixture.set_aside["duplicate"] == 6
    assert mixture.set_aside["duplicate apart from whitespace"] == 1
    assert mixture.set_aside["same prompt, other answer"] == 1
    assert aside.filter(row_id=other["row_id"])["detail"].item() == f"one, source row 8, {first[8]['row_id']}"
    everything = mix(recipe(shares, kinds, same_prompt="all"), conversations, store)
    assert "same prompt, other answer" not in everything.set_aside


def test_a_conversation_keeps_its_split_as_data_grows_and_seeds_and_sources_change(
    store: Store, gated: Made, varied: Made
) -> None:
    def splits(mixture: TokenisedMixture) -> dict[str, str]:
        return {
            row_id: split
            for split in ("train", "validation", "test")
            for row_id in read(store, mixture, split)["row_id"]
        }

    def sized(rows: int) -> list[Any]:
        return [gated(name, varied(name, rows, kind)) for name, kind in KINDS.items()]

    before = splits(mix(recipe(), sized(200), store))
    backwards = dict(reversed(SHARES.items()))
    after = splits(mix(recipe(backwards, KINDS, seed=7, rows=150), sized(400)[::-1], store))
    held_out = {row_id for row_id, split in before.items() if split != "train"}
    assert held_out <= after.keys()
    assert all(after[row_id] == split for row_id, split in before.items() if row_id in after)


def test_growing_data_keeps_most_choices(store: Store, gated: Made, varied: Made) -> None:
    def chosen(rows: int) -> set[str]:
        sources = [gated(name, varied(name, rows, kind)) for name, kind in KINDS.items()]
        return set(read(store, mix(recipe(rows=100), sources, store), "train")["row_id"])

    # With a fraction f more data, a row that was among the first in hash order stays there with chance 1/(1+f).
    assert len(chosen(300) & chosen(330)) >= 75


def test_another_seed_gives_another_order(store: Store, sources: list[Any]) -> None:
    mixtures = [mix(recipe(seed=seed), sources, store) for seed in (0, 1)]
    orders = [read(store, m, "train")["row_id"].to_list() for m in mixtures]
    assert orders[0] != orders[1]
    assert mixtures[0].files["test.parquet"] == mixtures[1].files["test.parquet"]
    # Shuffled: no source comes in a block.
    sources_in_order = read(store, mixtures[0], "train")["source"].rle_id()
    assert sources_in_order.n_unique() > sources_in_order.len() / 4


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads(
    store: Store, sources: list[Any], tmp_path: Path
) -> None:
    script = tmp_path / "mix_again.py"
    script.write_text(
        "import sys; from pathlib import Path\n"
        "from tasks.conversations import Conversations; from tasks.mix import mix\n"
        "from tasks.recipe import Recipe; from tasks.store import Store\n"
        "store = Store(Path(sys.argv[1]))\n"
        "recipe = Recipe.model_validate_json(Path(sys.argv[2]).read_text())\n"
        "mixture = mix(recipe, store.all(Conversations), store)\n"
        "print(*(f'{n}={d}' for n, d in mixture.files.items() if n.endswith('.parquet')))\n"
    )
    (tmp_path / "recipe.json").write_text(recipe().model_dump_json())
    printed = set()
    for threads in ("1", "2"):
        target = tmp_path / threads
        target.mkdir()
        (target / "conversations").symlink_to(store.root / "conversations")
        environment = {**os.environ, "POLARS_MAX_THREADS": threads, "PYTHONHASHSEED": threads}
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
        done = subprocess.run(
            [sys.executable, str(script), str(target), str(tmp_path / "recipe.json")],
            env=environment, capture_output=True, text=True, check=True,
        )  # fmt: skip
        printed.add(done.stdout)
    assert len(printed) == 1, printed


def test_a_second_mix_of_the_same_inputs_makes_nothing(store: Store, sources: list[Any]) -> None:
    first = mix(recipe(), sources, store)
    assert mix(recipe(), list(reversed(sources)), store) == first
    assert mix(recipe(seed=1), sources, store).address != first.address


def test_files_span_buckets_and_row_groups(
    store: Store, sources: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = mix(recipe(), sources, store)
    monkeypatch.setattr("tasks.mixture.files.BUCKET_ROWS", 64)
    monkeypatch.setattr("tasks.conversations.segments.BATCH_ROWS", 17)
    other = Store(tmp_path / "other")
    other.root.mkdir()
    (other.root / "conversations").symlink_to(store.root / "conversations")
    pieces = mix(recipe(), sources, other)
    for split in ("train", "validation", "test"):
        assert read(store, whole, split).equals(read(other, pieces, split))
    assert not list(other.folder(pieces).glob("buckets"))


def test_a_source_with_nothing_left_is_named(store: Store, gated: Made, varied: Made) -> None:
    rows = varied("one", 100)
    kinds = {"one": "chat", "two": "chat"}
    with pytest.raises(
        BadInput, match=r"sources\.two: '10 rows' has none left to train on: 10 duplicate\. .*has the same"
    ):
        mix(recipe({"one": 0.5, "two": 0.5}, kinds), [gated("one", rows), gated("two", rows[:10])], store)
    with pytest.raises(BadInput, match=r"sources\.two"):
        mix(recipe({"one": 0.5, "two": 0.5}, kinds), [gated("one", rows), gated("two", [])], store)
    assert not store.all(TokenisedMixture)


def test_a_source_of_one_template_is_told_what_took_its_rows(
    store: Store, gated: Made, varied: Made, conversation: Made
) -> None:
    begin = "Please answer the question below as well as you can, in one short sentence and without any further remark:"
    alike = [conversation(f"{begin} {n}", f"{n}") for n in range(200)]
    one = varied("one", 200, words=(60, 90))
    near = []
    for row in one[:40]:
        asked, answer = (message["content"] for message in row["messages"])
        near.append(conversation(asked.replace("question", "problem"), answer))
    two, kinds = {"one": 0.5, "two": 0.5}, {"one": "chat", "two": "chat"}
    sources = [gated("one", one), gated("two", alike)]
    for given_sources, rows, says in (
        (sources, 200, r"\d+ covers a held-out question, .* raise mixture\.contamination_overlap"),
        ([sources[0], gated("two", near)], 40, r"40 near-duplicate\. .* raise mixture\.near_duplicates"),
    ):
        with pytest.raises(BadInput, match=rf"sources\.two: '{rows} rows' has none left to train on: {says}") as caught:
            mix(recipe(two, kinds), given_sources, store)
        assert sum(map(int, re.findall(r"(\d+) (?=near|covers|held)", str(caught.value)))) == rows
    free = mix(recipe(two, kinds, contamination_ngram=None), sources, store)
    assert free.shares["two"].rows > 0


def test_a_share_out_of_reach_names_source_share_and_tokens(store: Store, gated: Made, conversation: Made) -> None:
    def source(name: str, rows: int, tokens: int) -> Any:
        return gated(name, [conversation(f"{name} number {n}", f"answer {n}", tokens=tokens) for n in range(rows)])

    kinds = {"one": "chat", "two": "chat"}
    with pytest.raises(BadInput, match=r"sources\.\w+\.share: 0\.\d+ cannot be reached within 1%.*supervised tokens"):
        mix(recipe({"one": 0.9, "two": 0.1}, kinds, rows=12), [source("one", 60, 20), source("two", 60, 900)], store)


def test_a_kind_that_a_suite_needs_has_to_be_held_out(store: Store, gated: Made, varied: Made) -> None:
    sources = [gated("tools", varied("tools", 2, "tool")), gated("talk", varied("talk", 200, "chat"))]
    with pytest.raises(BadInput, match=r"mixture\.test.*none of the 2 tool conversations"):
        mix(recipe({"tools": 0.1, "talk": 0.9}, {"tools": "tool", "talk": "chat"}, test=0.001), sources, store)


def test_missing_and_refused_sources(store: Store, sources: list[Any], gated: Made, varied: Made) -> None:
    with pytest.raises(BadInput, match=r"sources\.talk"):
        mix(recipe(), sources[:2], store)
    with pytest.raises(Refused, match="talk"):
        mix(recipe(), [*sources[:2], gated("talk", varied("talk", 50), passed=False)], store)
    other_tokens = gated("talk", varied("talk", 50), tokenizer="u" * 64)
    with pytest.raises(BadInput, match="tokenizer"):
        mix(recipe(), [*sources[:2], other_tokens], store)


def test_a_damaged_file_is_an_error(store: Store, sources: list[Any]) -> None:
    file = next((store.folder(sources[0]) / "segments").iterdir())
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(WorldFailed, match="is damaged"):
        mix(recipe(), sources, store)
    assert not store.all(TokenisedMixture)


LONG = " ".join(f"word{n}" for n in range(30))
QUESTIONS = [
    *(f"question {n}" for n in range(12)), "Question 1", " question  2", "", "ﬁne", "fine",
    *(f"{LONG} {n}" for n in range(4)), *(f"{n} {LONG} x{n} y{n}" for n in range(3)),
]  # fmt: skip


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_are_conserved_and_nothing_leaks_whatever_comes(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory, gated: Made, conversation: Made, store: Store
) -> None:
    row = st.builds(
        conversation,
        st.sampled_from(QUESTIONS),
        st.sampled_from(["yes", "no", " yes ", "Yes", "", "a b", "a  b", LONG[40:], LONG[40:] + " z"]),
        st.just("chat"),
        st.integers(0, 5),
    )
    rows = {name: data.draw(st.lists(row, max_size=40), label=name) for name in ("one", "two")}
    method = data.draw(st.sampled_from(["fixed", "proportional", "temperature"]))
    wanted = recipe(
        {"one": 0.5, "two": 0.5} if method == "fixed" else dict.fromkeys(("one", "two")),
        {"one": "chat", "two": "chat"},
        method=method,
        measure=data.draw(st.sampled_from(["rows", "tokens", "supervised_tokens"])),
        repeats=data.draw(st.sampled_from([1, 3])),
        seed=data.draw(st.integers(0, 3)),
        test=data.draw(st.sampled_from([0.2, 0.4])),
        same_prompt=data.draw(st.sampled_from(["first", "all"])),
        near_duplicates=data.draw(st.sampled_from([None, 0.5, 0.8])),
    )
    given_sources = [gated(name, some) for name, some in rows.items()]
    try:
        mixture = mix(wanted, given_sources, store)
    except BadInput:
        return
    splits = {split: read(store, mixture, split) for split in ("train", "validation", "test")}
    aside = pl.read_parquet(store.folder(mixture) / "set_aside.parquet")
    before = sorted(row["row_id"] for some in rows.values() for row in some)
    written = [i for frame in splits.values() for i in frame.filter(repeat=1)["row_id"]]
    assert sorted([*aside["row_id"], *written]) == before
    assert mixture.rows_in == len(before)
    assert mixture.repeated == sum(frame.filter(pl.col("repeat") > 1).height for frame in splits.values())
    for part in mixture.shares.values():
        assert part.reached == pytest.approx(part.asked, abs=0.01)

    def prompts(frame: pl.DataFrame) -> set[str]:
        return {text for m in frame["messages"] if (text := " ".join(m[0]["content"].casefold().split()))}

    validation = splits["validation"]
    train, held_out = prompts(splits["train"]), prompts(splits["test"]) | prompts(validation)
    assert not train & held_out
    assert not prompts(splits["test"]) & prompts(validation)
    if wanted.mixture.near_duplicates is not None:
        pairs = [*itertools.product(train, held_out), *itertools.product(*map(prompts, (splits["test"], validation)))]
        assert all(similarity(*pair) < wanted.mixture.near_duplicates for pair in pairs)


def similarity(one: str, other: str) -> float:
    """Jaccard similarity of the runs of five words that may hang over the ends."""
    sets = []
    for text in (one, other):
        words = ["", "", "", "", *text.split(), "", "", "", ""]
        sets.append({tuple(words[n : n + 5]) for n in range(len(words) - 4)})
    return len(sets[0] & sets[1]) / len(sets[0] | sets[1])


def test_a_share_for_reasoning_of_three_quarters(store: Store, gated: Made, varied: Made) -> None:
    """The founding case: chat against chain-of-thought maths at 25/75, from sources of other proportions."""
    sources = [
        gated("talk", varied("talk", 400, "chat", words=(5, 40))),
        gated("maths", varied("maths", 300, "reasoning", words=(60, 200))),
        gated("logic", varied("logic", 100, "reasoning", words=(20, 60))),
    ]
    kinds = {"talk": "chat", "maths": "reasoning", "logic": "reasoning"}
    wanted = recipe(dict.fromkeys(kinds), kinds, method="proportional", reasoning_share=0.75, repeats=3)
    mixture = mix(wanted, sources, store)
    train = read(store, mixture, "train").with_columns(amount=pl.col("loss_mask").list.sum())
    amounts = dict(train.group_by("kind").agg(pl.col("amount").sum()).iter_rows())
    assert amounts["reasoning"] / sum(amounts.values()) == pytest.approx(0.75, abs=0.01)
    assert mixture.shares["maths"].reached + mixture.shares["logic"].reached == pytest.approx(0.75, abs=0.01)
    assert mixture.shares["talk"].epochs > 1


def test_a_small_source_comes_again_with_numbers(store: Store, gated: Made, varied: Made) -> None:
    sources = [gated("small", varied("small", 60)), gated("large", varied("large", 600))]
    wanted = {"small": 0.5, "large": 0.5}
    mixture = mix(recipe(wanted, dict.fromkeys(wanted, "chat"), repeats=3, measure="rows"), sources, store)
    small = read(store, mixture, "train").filter(source="small")
    distinct = small["row_id"].n_unique()
    assert small.height == 3 * distinct == mixture.shares["small"].rows
    assert set(small.group_by("row_id").agg(pl.col("repeat").sort())["repeat"].to_list()[0]) == {1, 2, 3}
    assert mixture.repeated == 2 * distinct
    assert mixture.splits["train"].rows == small.height + mixture.shares["large"].rows
    assert mixture.measure == "rows"
    assert mixture.shares["small"].reached == pytest.approx(0.5, abs=0.01)


def test_near_prompts_share_a_split_and_no_night_moves_a_row(store: Store, gated: Made, conversation: Made) -> None:
    def asking(topic: int, version: int) -> Row:
        words = " ".join(f"w{topic}x{n}" for n in range(40))
        answer = " ".join(f"a{topic}v{version}n{n}" for n in range(40))
        return conversation(f"{words} {'again ' * version}", answer)

    topics = [asking(topic, 0) for topic in range(120)]
    twins = [asking(topic, version) for topic in range(60) for version in (1, 2)]
    # It is near two prompts that are not near each other: half of each.
    bridge = topics[70]["messages"][0]["content"].split()[:38] + topics[71]["messages"][0]["content"].split()[:38]
    nights = [
        topics[:80],
        topics,
        topics + twins[:60],
        [*twins[60:], conversation(" ".join(bridge), "b"), *topics, *twins],
    ]
    names = ("one", "two")
    wanted = recipe(dict.fromkeys(names), dict.fromkeys(names, "chat"), near_duplicates=0.6, method="proportional")
    seen: dict[str, str] = {}
    shared = together = 0
    for rows in nights:
        sources = [gated("one", rows), gated("two", [conversation(f"other {n}", f"said {n}") for n in range(60)])]
        mixture = mix(wanted, sources, store)
        split_of_topic: dict[str, set[str]] = {}
        for split in ("train", "validation", "test"):
            for row_id, messages in read(store, mixture, split).select("row_id", "messages").iter_rows():
                assert seen.setdefault(row_id, split) == split
                topic = messages[0]["content"].split()[0]
                split_of_topic.setdefault(topic, set()).add(split)
        assert all(len(splits) == 1 for topic, splits in split_of_topic.items() if topic.startswith("w"))
        shared += mixture.set_aside.get("near prompts of another split", 0)
        together += len(split_of_topic)
    assert shared > 10
    assert together > 200


def test_clusters_name_every_row_that_says_the_same(
    store: Store, gated: Made, varied: Made, conversation: Made
) -> None:
    one = varied("one", 200, words=(60, 90))
    asked, answer = (message["content"] for message in one[3]["messages"])
    near = conversation(asked, answer + " indeed")
    copies = [one[3], near, near, one[5]]
    sources = [gated("one", one), gated("two", [*varied("two", 200), *copies])]
    mixture = mix(recipe({"one": 0.5, "two": 0.5}, {"one": "chat", "two": "chat"}, same_prompt="all"), sources, store)
    clusters = pl.read_parquet(store.folder(mixture) / "clusters.parquet")
    kept = {one[3]["row_id"]: [(near["row_id"], 2), (one[3]["row_id"], 2)], one[5]["row_id"]: [(one[5]["row_id"], 2)]}
    for (_,), rows in clusters.group_by("cluster"):
        (row_id,) = rows.filter("kept")["row_id"]
        assert rows.filter("kept")["source"].item() == "one"
        assert set(rows.filter(~pl.col("kept"))["row_id"]) == {one for one, _ in kept[row_id]}
    assert mixture.clusters == {"clusters": 2, "rows": 6, "largest": 4}


def test_a_twin_that_slipped_through_stops_the_night(
    store: Store, sources: list[Any], gated: Made, varied: Made, conversation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last look trusts no step before it: with each of these left out, it finds what they would have removed."""
    one = varied("one", 300, words=(60, 90))
    more = []
    for row in one:
        asked, answer = (message["content"] for message in row["messages"])
        more.append(conversation(asked.upper(), "quite another answer " + row["row_id"]))
        more.append(conversation(asked + " please", answer))
    kinds = {"one": "chat", "two": "chat"}
    given_sources = [gated("one", one), gated("two", more)]
    wanted = recipe({"one": 0.5, "two": 0.5}, kinds, same_prompt="all")
    assert mix(wanted, given_sources, store).set_aside["near-duplicate"] == 300

    nothing = pl.DataFrame(schema={"row": pl.UInt32, "twin": pl.UInt32, "jaccard": pl.Float64})
    with monkeypatch.context() as without:
        without.setattr("tasks.mix.near_duplicates", lambda *_: nothing)
        without.setattr("tasks.mixture.overlap.opened_with", lambda *_: nothing.select("row", item="twin"))
        without.setattr("tasks.mixture.overlap.near_twins", lambda *_: nothing)
        with pytest.raises(Refused, match=r"(?s)No training row has an exact or near twin.*near conversation"):
            mix(wanted.model_copy(update={"name": "again"}), given_sources, store)
    with monkeypatch.context() as without:
        every_seventh = [("test" if n % 7 == 0 else "train") for n in range(1000)]
        without.setattr("tasks.mix.split_of", lambda rows, **_: pl.Series("split", every_seventh[: len(rows)]))
        without.setattr("tasks.mix.other_side", lambda *_: nothing.select("row", "twin", split=pl.lit("train")))
        without.setattr(
            "tasks.mix.overlaps",
            lambda *_: pl.DataFrame(
                schema={"row": pl.UInt32, "item": pl.UInt32, "how": pl.String, "degree": pl.Float64}
            ),
        )
        with pytest.raises(Refused, match=r"(?s)No training row has an exact or near twin.*same question"):
            mix(wanted.model_copy(update={"name": "and again"}), given_sources, store)


def test_training_holds_no_question_of_a_suite_of_benchmark_files(
    store: Store, gated: Made, varied: Made, conversation: Made, tmp_path: Path
) -> None:
    asked = "Consider how a long walk along the river on a winter day with two friends and a dog came to its end: why?"
    (tmp_path / "maths.jsonl").write_text(json.dumps({"question": asked, "answer": "#### 4"}) + "\n")
    (tmp_path / "choice.csv").write_text('"Which bird hunts by night, of all that you know?",owl,hen,tit,jay,A\n')
    suites = [
        {"name": "sums", "measure": "final_answer", "data": str(tmp_path / "maths.jsonl"), "role": "target"},
        {"name": "birds", "measure": "choice", "data": str(tmp_path / "choice.csv"), "role": "target"},
        {"name": "made", "measure": "task", "data": "gym://chain_sum?size=3", "role": "target"},
    ]
    quoting = [conversation(f"Number {n}. {asked} {n}", f"answer {n}") for n in range(20)]
    same = conversation("which bird hunts by night, of all that you know?", "An owl.")
    given_sources = [gated("one", varied("one", 200)), gated("two", [*varied("two", 200), *quoting, same])]
    wanted = recipe({"one": 0.5, "two": 0.5}, {"one": "chat", "two": "chat"})
    held_out = wanted.evaluation.suites[0].model_dump()
    wanted = parse({**wanted.model_dump(), "evaluation": {"suites": [held_out, *suites]}})
    mixture = mix(wanted, given_sources, store)
    aside = pl.read_parquet(store.folder(mixture) / "set_aside.parquet")
    gone = aside.filter(pl.col("reason").str.contains("benchmark question"))
    in_training = {m[0]["content"] for m in read(store, mixture, "train")["messages"]}
    assert not {text for text in in_training if "long walk" in text or "bird" in text}
    assert gone["detail"].str.contains("maths.jsonl, item 0").any()
    assert "choice.csv, item 0" in gone.filter(row_id=same["row_id"])["detail"].item()
    (tmp_path / "maths.jsonl").write_text(json.dumps({"question": "another", "answer": "#### 4"}) + "\n")
    assert mix(wanted, given_sources, store) != mixture


def test_no_validation_row_is_near_a_test_row(
    store: Store, gated: Made, varied: Made, conversation: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    def asking(topic: int, more: str) -> Row:
        words = " ".join(f"w{topic}x{n}" for n in range(40))
        return conversation(words + more, " ".join(f"a{topic}{more}n{n}" for n in range(40)))

    pairs = [asking(topic, more) for topic in range(20) for more in ("", " again")]
    sources = [gated("one", varied("one", 300)), gated("two", [*varied("two", 100), *pairs])]
    places = ["test"] * 30 + ["train"] * 370 + ["validation", "test"] * 20
    monkeypatch.setattr("tasks.mix.split_of", lambda rows, **_: pl.Series("split", places[: len(rows)]))
    # As where the two prompts of a pair are in clusters of their own.
    none = pl.DataFrame(schema={"row": pl.UInt32, "twin": pl.UInt32, "split": pl.String})
    monkeypatch.setattr("tasks.mix.other_side", lambda *_: none)
    wanted = recipe({"one": 0.5, "two": 0.5}, {"one": "chat", "two": "chat"})
    mixture = mix(wanted, sources, store)
    aside = pl.read_parquet(store.folder(mixture) / "set_aside.parquet").filter(reason="near prompts of another split")
    assert set(aside["row_id"]) == {row["row_id"] for row in pairs[::2]}
    assert aside["detail"].str.starts_with("in test: two, source row 1").all()
    assert read(store, mixture, "test").height == 50
    nothing = pl.DataFrame(schema={"row": pl.UInt32, "twin": pl.UInt32, "jaccard": pl.Float64})
    monkeypatch.setattr("tasks.mix.near_twins", lambda *_: nothing)
    with pytest.raises(
        Refused, match=r"(?s)no validation row one in the test split \(critical\)\. 20\n.*near question"
    ):
        mix(wanted.model_copy(update={"name": "again"}), sources, store)


def test_near_duplicates_across_sources_are_set_aside_with_their_twin(
    store: Store, gated: Made, varied: Made, conversation: Made
) -> None:
    one = varied("one", 300, words=(60, 90))
    two = varied("two", 300, words=(60, 90))
    near = []
    for row in one[:40]:
        asked, answer = (message["content"] for message in row["messages"])
        near.append(conversation(asked.replace("question", "problem"), answer))
    kinds = {"one": "chat", "two": "chat"}
    sources = [gated("one", one), gated("two", near + two)]
    mixture = mix(recipe({"one": 0.5, "two": 0.5}, kinds), sources, store)
    assert mixture.set_aside["near-duplicate"] == 40
    aside = pl.read_parquet(store.folder(mixture) / "set_aside.parquet").filter(reason="near-duplicate")
    assert set(aside["source"]) == {"two"}
    first = aside.filter(row_id=near[0]["row_id"])["detail"].item()
    assert one[0]["row_id"] in first
    assert one[0]["messages"][0]["content"] in first
    without = mix(recipe({"one": 0.5, "two": 0.5}, kinds, near_duplicates=None), sources, store)
    assert "near-duplicate" not in without.set_aside


def test_training_holds_no_held_out_and_no_benchmark_question(
    store: Store, gated: Made, varied: Made, conversation: Made, tmp_path: Path
) -> None:
    rows = varied("one", 300)
    kinds = {"one": "chat", "two": "chat"}
    plain = mix(recipe({"one": 0.5, "two": 0.5}, kinds), [gated("one", rows), gated("two", varied("two", 300))], store)
    held_out = [messages[0]["content"] for messages in read(store, plain, "test").filter(source="one")["messages"]]

    def continued(question: str, number: int) -> Row:
        """The question under another prompt key: with a further turn."""
        row = conversation(question, f"well, {number}")
        row["messages"] = [*row["messages"], *conversation(f"and then, {number}?", "no")["messages"]]
        return {**row, "row_id": f"{number:032d}"}

    asked = "Consider how a long walk along the river on a winter day with two friends and a dog came to its end: why?"
    leaking = [continued(question, n) for n, question in enumerate(held_out)]
    benchmark = tmp_path / "benchmark.jsonl"
    benchmark.write_text(
        json.dumps({"question": asked}) + "\n" + json.dumps({"question": "What is a benchmark?"}) + "\n"
    )
    quoting = [conversation(f"Number {n}. {asked} {n}", f"answer {n}") for n in range(20)]
    short = [conversation("what is a benchmark", "a file")]
    sources = [gated("one", rows), gated("two", [*varied("two", 300), *leaking, *quoting, *short])]
    mixture = mix(recipe({"one": 0.5, "two": 0.5}, kinds, benchmarks=[str(benchmark)]), sources, store)

    aside = pl.read_parquet(store.folder(mixture) / "set_aside.parquet")
    train = read(store, mixture, "train")
    spoken = [{" ".join(m["content"].lower().split()) for m in messages} for messages in train["messages"]]
    held = {
        m[0]["content"].lower() for split in ("test", "validation") for m in read(store, mixture, split)["messages"]
    }
    assert not any(turns & held for turns in spoken)
    assert not any(asked.lower() in turn for turns in spoken for turn in turns)
    gone = aside.filter(pl.col("reason").str.contains("question"))
    assert {"covers a benchmark question", "opens with a held-out question"} <= set(gone["reason"])
    assert (
        gone.filter(reason="covers a benchmark question")["detail"]
        .str.contains("benchmark.jsonl, item 0: Consider .*river")
        .all()
    )
    in_split = pl.concat([read(store, mixture, split) for split in ("train", "validation", "test")])
    assert mixture.rows_in == in_split.height + aside.height
    benchmark.write_text(json.dumps({"question": "another"}))
    assert mix(recipe({"one": 0.5, "two": 0.5}, kinds, benchmarks=[str(benchmark)]), sources, store) != mixture
    with pytest.raises(BadInput, match=r"mixture\.benchmarks"):
        mix(recipe({"one": 0.5, "two": 0.5}, kinds, benchmarks=["nowhere.jsonl"]), sources, store)
