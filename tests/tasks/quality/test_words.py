from __future__ import annotations

import re

import numpy as np
import polars as pl
from hypothesis import given
from hypothesis import strategies as st

from tasks.quality import WordFile, Words, word_hashes
from tasks.quality.words import ngrams


def listed(found: Words) -> list[list[int]]:
    return [found.hashes[a:b].tolist() for a, b in zip(found.offsets[:-1], found.offsets[1:], strict=True)]


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


@given(st.lists(st.text(max_size=40), max_size=10))
def test_a_text_has_the_same_words_whatever_stands_beside_it(texts: list[str]) -> None:
    together = listed(word_hashes(pl.Series(texts, dtype=pl.String)))
    assert together == [listed(word_hashes(pl.Series([text])))[0] for text in texts]


def test_texts_longer_than_a_block() -> None:
    long = "word " * 50_000 + "x" * 200_000
    found = word_hashes(pl.Series(["a", long, "b c"]))
    assert found.lengths.tolist() == [1, 50_001, 2]
    assert sum(block.rows for _, block in found.blocks(1000)) == 3


def test_runs_of_words() -> None:
    rows = word_hashes(pl.Series(["a b c d", "", "a b", "b c d"]))
    runs, offsets = ngrams(rows, 3)
    assert np.diff(offsets).tolist() == [2, 0, 0, 1]
    assert runs[1] == runs[2]
    assert runs[0] != runs[1]
    _, framed = ngrams(rows, 3, edges=True)
    assert np.diff(framed).tolist() == [6, 0, 4, 5]


def test_words_on_disk_are_the_words_in_memory(tmp_path) -> None:  # type: ignore[no-untyped-def]
    texts = pl.Series(["one two", "", "three", "four five six"])
    file = WordFile(tmp_path / "words")
    file.append(word_hashes(texts[:2]))
    file.append(word_hashes(texts[2:]))
    read = file.read()
    assert listed(read) == listed(word_hashes(texts))
    assert listed(read.take(np.array([3, 0]))) == [listed(read)[3], listed(read)[0]]
    assert listed(read.then(word_hashes(texts))) == listed(read) * 2
    nothing = WordFile(tmp_path / "nothing")
    assert nothing.read().rows == 0
