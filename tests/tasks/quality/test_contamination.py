from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import BadInput
from tasks.quality import benchmark_questions, contaminated, opened_with, opening_hashes, word_hashes

QUESTION = (
    "Janet’s ducks lay 16 eggs per day. She eats three for breakfast every morning and bakes muffins for her friends "
    "every day with four. How much does she make every day?"
)
OTHER = "A robe takes 2 bolts of blue fiber and half that much white fiber. How many bolts in total does it take then?"


def test_runs_of_thirteen_words_that_cover_half_of_a_question() -> None:
    training = word_hashes(
        pl.Series(
            [
                "Solve this. " + QUESTION.upper() + " The answer is 18.",
                "She eats three for breakfast every morning and bakes muffins for her friends.",
                "Nothing of the kind is said here, at any length, in any of these words that go on and on.",
                "",
                OTHER,
            ]
        )
    )
    items = word_hashes(pl.Series([OTHER, QUESTION, "short one"]))
    found = contaminated(training, items, ngram=13, overlap=0.5)
    assert found.select("row", "item", "covered").rows() == [(0, 1, 1.0), (4, 0, 1.0)]
    loose = contaminated(training, items, ngram=13, overlap=0.3)
    covered = dict(loose.select("row", "covered").iter_rows())
    assert covered[1] == pytest.approx(13 / items.lengths[1])
    assert contaminated(training, items, ngram=13, overlap=0.5, rows=np.array([1, 2, 3])).is_empty()
    assert contaminated(training, word_hashes(pl.Series([], dtype=pl.String)), ngram=13, overlap=0.5).is_empty()


def test_covered_words_are_counted_once() -> None:
    text = " ".join(f"w{n}" for n in range(40))
    items = word_hashes(pl.Series([text]))
    parts = " ".join(f"w{n}" for n in range(20)) + " x " + " ".join(f"w{n}" for n in range(15, 30))
    found = contaminated(word_hashes(pl.Series([parts + " " + parts])), items, ngram=13, overlap=0.1)
    assert found["covered"].item() == pytest.approx(30 / 40)
    assert found["at"].item() == 0


def test_conversations_that_open_with_a_question() -> None:
    # Three conversations: two turns, twice the same one, and one.
    turns = ["How do I sort a list?", "And backwards?", "Hi!", "Hi!", "How do I sort a list?"]
    row = np.array([0, 0, 1, 1, 2])
    asked = word_hashes(pl.Series([" ".join(turns[:2]), " ".join(turns[2:4]), turns[4]]))
    openings = opening_hashes(asked, row, word_hashes(pl.Series(turns)).lengths)
    train = pl.DataFrame({"row": row.astype(np.uint32), "opening": openings, "last": [False, True, False, True, True]})
    questions = word_hashes(pl.Series(["how do i sort a list", "hi", "and backwards", "hi hi"]))
    lengths = questions.lengths
    items = pl.DataFrame(
        {"item": range(4), "opening": opening_hashes(questions, np.arange(4), lengths), "words": lengths}
    )
    assert opened_with(train, items).rows() == [(0, 0), (1, 3), (2, 0)]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", '{"question": "One?", "answer": 1}\n\n{"question": "Two?", "answer": [2]}\n'),
        ("a.json", '[{"prompt": "One?"}, {"prompt": "Two?"}]'),
        ("lines.json", '{"question": [[{"role": "user", "content": "One?"}]]}\n{"question": [[{"content": "Two?"}]]}'),
        ("turns.jsonl", '{"turns": ["One?"], "text": "x"}\n{"turns": ["Two?"]}'),
        ("a.csv", "question,answer\nOne?,1\nTwo?,2\n"),
    ],
)
def test_benchmark_files(tmp_path: Path, name: str, text: str) -> None:
    file = tmp_path / name
    file.write_text(text)
    assert benchmark_questions(str(file)).to_list() == ["One?", "Two?"]


def test_benchmark_columns_by_name_and_number(tmp_path: Path) -> None:
    bare = tmp_path / "bare.csv"
    bare.write_text('"One, or?",1,A\nTwo?,2,B\n')
    assert benchmark_questions(f"{bare}#0").to_list() == ["One, or?", "Two?"]
    table = tmp_path / "a.parquet"
    pl.DataFrame({"text": ["x", "y"], "goal": ["One?", None]}).write_parquet(table)
    assert benchmark_questions(f"{table}#goal").to_list() == ["One?", ""]


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jsonl", b"{", "cannot be read"),
        ("a.json", b"\xff\xfe", "cannot be read"),
        ("a.parquet", b"PAR", "cannot be read"),
        ("a.json", b'["x"]', "cannot be read"),
        ("a.jsonl", json.dumps({"answer": "x"}).encode(), "has no question: its columns are answer"),
        ("a.csv", b"", "has no question: its columns are none"),
        ("a.jsonl#topic", b'{"question": "x"}', "has no question"),
    ],
)
def test_benchmark_files_that_cannot_be_used(tmp_path: Path, name: str, content: bytes, problem: str) -> None:
    (tmp_path / name.partition("#")[0]).write_bytes(content)
    with pytest.raises(BadInput, match=problem):
        benchmark_questions(str(tmp_path / name))


def test_a_missing_benchmark_file() -> None:
    with pytest.raises(BadInput, match=r"mixture\.benchmarks.*is not a file"):
        benchmark_questions("nowhere.jsonl")


def test_real_benchmarks_are_read_and_found(shared_data: Path) -> None:
    gsm8k = benchmark_questions(str(shared_data / "gsm8k" / "test.jsonl"))
    for path in ("ifeval/en_input_data.jsonl", "bfcl/BFCL_v4_multiple.json"):
        assert len(benchmark_questions(str(shared_data / path))) > 100
    first = "mmlu/data__mmlu__test__anatomy_test.csv#0"
    assert len(benchmark_questions(str(shared_data / first))) > 100
    items, training = word_hashes(gsm8k), word_hashes(benchmark_questions(str(shared_data / "gsm8k" / "train.jsonl")))
    assert contaminated(items, items, ngram=13, overlap=0.5)["row"].n_unique() >= 0.99 * (items.lengths >= 13).sum()
    # The benchmark's own training questions are other questions: few share half of one.
    assert contaminated(training, items, ngram=13, overlap=0.5).height < 0.02 * training.rows


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abcd"), max_size=40), min_size=2, max_size=12), st.integers(4, 13))
def test_every_run_in_common_is_found(texts: list[list[str]], ngram: int) -> None:
    words = word_hashes(pl.Series([" ".join(text) for text in texts]))
    items = words.take(np.arange(len(texts) // 2))
    grams = [{tuple(text[at : at + ngram]) for at in range(len(text) - ngram + 1)} for text in texts]
    expected = {row for row in range(len(texts)) if any(grams[row] & grams[item] for item in range(len(texts) // 2))}
    found = contaminated(words, items, ngram=ngram, overlap=1e-9)
    assert set(found["row"]) == expected
