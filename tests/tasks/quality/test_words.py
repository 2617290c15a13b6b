from __future__ import annotations

import re

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.quality import WordFile, Words, from_word, turn_words, word_hashes
from tasks.quality.words import PAD, BitTable, runs, sketches


def listed(found: Words) -> list[list[int]]:
    return [found.hashes[a : a + n].tolist() for a, n in zip(found.offsets[:-1], found.lengths, strict=True)]


def same(*texts: str) -> bool:
    rows = listed(word_hashes(pl.Series(texts)))
    return all(row == rows[0] for row in rows)


def test_case_punctuation_and_spacing_make_no_difference_but_signs_do() -> None:
    assert same("Hello, World! It's 3.5", "hello world it s 3 5", "“hello” — world: it‘s\n\n(3,5)")
    assert not same("29 + 48", "29 - 48")
    assert same("29+48", "29 + 48")
    assert not same("a b", "ab")
    assert not same("ab", "ba")


def test_scripts_without_spaces_have_a_word_a_character() -> None:
    assert word_hashes(pl.Series(["你好，world。再见", "", "   ", "éclair café", "x"])).lengths.tolist()[1:] == [
        0,
        0,
        2,
        1,
    ]
    assert same("你好world再见", "你好 world 再见", "你 好 world 再见。")


@settings(deadline=None)
@given(st.lists(st.text(alphabet="ab Z9.,!?\n'", max_size=30), max_size=20))
def test_words_are_what_a_regular_expression_finds(texts: list[str]) -> None:
    expected = [re.findall(r"[a-z0-9]+", text.lower()) for text in texts]
    found = listed(word_hashes(pl.Series(texts, dtype=pl.String)))
    assert [len(row) for row in found] == [len(row) for row in expected]
    hash_of: dict[str, int] = {}
    for row, hashes in zip(expected, found, strict=True):
        for word, value in zip(row, hashes, strict=True):
            assert hash_of.setdefault(word, value) == value
    assert len(set(hash_of.values())) == len(hash_of)


def test_long_words_are_told_apart_by_every_letter() -> None:
    words = [letter * length for length in (7, 8, 9, 16, 17, 64, 300) for letter in "ab"]
    words += [f"{word[:place]}x{word[place + 1 :]}" for word in words for place in (0, len(word) // 2, len(word) - 1)]
    found = word_hashes(pl.Series(words))
    assert found.lengths.tolist() == [1] * len(words)
    assert len(set(found.hashes[found.offsets[:-1]].tolist())) == len(set(words))
    assert [found.hashes[found.offsets[:-1]].tolist()] == listed(word_hashes(pl.Series([" ".join(words)])))


@settings(deadline=None)
@given(st.lists(st.text(max_size=40), max_size=10))
def test_a_text_has_the_same_words_whatever_stands_beside_it(texts: list[str]) -> None:
    together = listed(word_hashes(pl.Series(texts, dtype=pl.String)))
    assert together == [listed(word_hashes(pl.Series([text])))[0] for text in texts]


def test_texts_longer_than_a_block() -> None:
    long = "word " * 50_000 + "x" * 200_000
    found = word_hashes(pl.Series(["a", long, "b c"]))
    assert found.lengths.tolist() == [1, 50_001, 2]
    assert sum(block.rows for _, block in found.blocks(1000)) == 3


@pytest.mark.parametrize("size", range(1, 15))
def test_runs_are_the_same_where_the_words_are(size: int) -> None:
    draw = np.random.default_rng(size).integers(0, 3, 400).astype(np.uint32)
    expected = [tuple(draw[n : n + size].tolist()) for n in range(len(draw) - size + 1)]
    found = runs(draw, size).tolist()
    assert len(found) == len(expected)
    assert len(set(found)) == len(set(zip(found, expected, strict=True))) == len(set(expected))
    assert len(runs(draw[: size - 1], size)) == 0
    # Sketches of the same words are the same, at any step.
    short = sketches(draw, size).tolist()
    assert len(short) == len(expected)
    assert len(set(zip(short, expected, strict=True))) == len(set(expected))
    assert [sketches(draw, size, step).tolist() for step in (2, 7)] == [short[::2], short[::7]]
    assert len(sketches(draw[: size - 1], size)) == 0


def test_blanks_keep_runs_within_their_row() -> None:
    rows = word_hashes(pl.Series(["a b c d", "", "a b", "b c d"]))
    assert rows.hashes[:PAD].tolist() == rows.hashes[-PAD:].tolist() == [0] * PAD
    found = runs(rows.hashes, PAD + 1)
    of_row = np.split(found, (rows.offsets - PAD)[1:-1])
    assert [len(part) for part in of_row] == [4 + PAD, PAD, 2 + PAD, 3 + PAD]
    alone = word_hashes(pl.Series(["b c d"]))
    assert of_row[3].tolist() == runs(alone.hashes, PAD + 1).tolist()


def test_turns_make_rows() -> None:
    turns = pl.Series(["a b", "c", "", "d\0e", None, "f"])
    rows, ends = turn_words(turns, np.array([False, True, True, False, False, True]))
    a, b, c, d, e, f = (word_hashes(pl.Series([letter])).hashes[PAD] for letter in "abcdef")
    assert listed(rows) == [[a, b, c], [], [d, e, f]]
    assert [rows.hashes[end - 1] for end in ends[[0, 1, 3, 5]]] == [b, c, e, f]
    assert listed(rows.spans(np.array([PAD, ends[4]]), np.array([2, 1]), np.array([0, 1, 1, 2]))) == [[a, b], [], [f]]
    assert turn_words(turns[:0], np.zeros(0, bool))[0].rows == 0


def test_a_table_of_bits_has_what_was_put_in_and_little_else() -> None:
    hashes = np.random.default_rng(0).integers(0, 2**64, 20_000, np.uint64)
    table = BitTable(hashes[:10_000])
    assert table.has(hashes[:10_000]).all()
    assert table.has(hashes[10_000:]).mean() < 0.1
    assert not BitTable(hashes[:0]).has(hashes).any()


def test_words_on_disk_are_the_words_in_memory(tmp_path) -> None:  # type: ignore[no-untyped-def]
    texts = pl.Series(["one two", "", "three", "four five six"])
    file = WordFile(tmp_path / "words")
    file.append(word_hashes(texts[:2]))
    file.append(word_hashes(texts[2:]))
    read = file.read()
    assert listed(read) == listed(word_hashes(texts))
    assert listed(read.take(np.array([3, 0]))) == [listed(read)[3], listed(read)[0]]
    assert listed(Words.joined([read, word_hashes(texts)])) == listed(read) * 2
    assert Words.joined([]).rows == 0
    nothing = WordFile(tmp_path / "nothing")
    assert nothing.read().rows == 0


@settings(deadline=None)
@given(st.text(max_size=60))
def test_a_text_from_each_of_its_words_on(text: str) -> None:
    (whole,) = listed(word_hashes(pl.Series([text])))
    for word in range(len(whole)):
        (rest,) = listed(word_hashes(pl.Series([from_word(text, word)])))
        assert rest == whole[word:]
    assert from_word("It is, as Zoë said, 4 o'clock.", 3) == "Zoë said, 4 o'clock."
