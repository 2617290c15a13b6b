from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.quality import Prefixes, counted_twins, near_duplicates, near_twins, word_hashes
from tasks.quality import near as near_module
from tasks.quality.near import SHINGLE, jaccard

VOCABULARY = [f"{a}{b}{c}" for a in "bdfgk" for b in "aeiou" for c in ("l", "m", "nt", "r", "sk", "t", "v", "z")]


def corpus(rows: int, seed: int) -> list[list[str]]:
    """Texts of 8 to 200 words, a third of them with 1 to 30 copies that differ in 0 to 10 % of their words."""
    draw = random.Random(seed)
    texts: list[list[str]] = []
    while len(texts) < rows:
        text = draw.choices(VOCABULARY, k=draw.randint(8, 200))
        texts.append(text)
        for _ in range(draw.choice([0, 0, 0, 0, 1, 1, 2, 5, 30])):
            copy = list(text)
            for _ in range(int(len(copy) * draw.choice([0, 0.005, 0.01, 0.02, 0.03, 0.05, 0.1]))):
                copy[draw.randrange(len(copy))] = draw.choice(VOCABULARY)
            if draw.random() < 0.3:
                copy += draw.choices(VOCABULARY, k=max(1, len(copy) // 15))
            texts.append(copy)
    texts = texts[:rows]
    draw.shuffle(texts)
    return texts


def shingles(text: list[str]) -> set[tuple[str, ...]]:
    framed = [""] * (SHINGLE - 1) + text + [""] * (SHINGLE - 1)
    return {tuple(framed[i : i + SHINGLE]) for i in range(len(framed) - SHINGLE + 1)}


def brute_force(texts: list[list[str]], threshold: float) -> dict[tuple[int, int], float]:
    """Every pair at or above a threshold, by counting common shingles of all pairs."""
    sets = [shingles(text) for text in texts]
    holders: dict[tuple[str, ...], list[int]] = {}
    pairs = {}
    for row, own in enumerate(sets):
        common = Counter(other for shingle in own for other in holders.get(shingle, ()))
        for other, shared in common.items():
            alike = shared / (len(own) + len(sets[other]) - shared)
            if alike >= threshold:
                pairs[other, row] = alike
        for shingle in own:
            holders.setdefault(shingle, []).append(row)
    return pairs


def kernel(pairs: Iterable[tuple[int, int]]) -> set[int]:
    """The rows that go, by the definition: those near a better-ranked row that stays."""
    gone: set[int] = set()
    for low, high in sorted(pairs, key=lambda pair: (pair[1], pair[0])):
        if low not in gone:
            gone.add(high)
    return gone


@pytest.mark.parametrize(("threshold", "rows"), [(0.8, 5000), (0.4, 1500), (0.95, 1500), (1.0, 1500)])
def test_exactly_what_brute_force_finds(threshold: float, rows: int) -> None:
    texts = corpus(rows, seed=3)
    true = brute_force(texts, threshold)
    assert len(true) > rows / 4
    words = word_hashes(pl.Series([" ".join(text) for text in texts]))
    prefixes = Prefixes.of(words, threshold)
    removed = near_duplicates(prefixes)
    assert set(removed["row"]) == kernel(true)
    assert not set(removed["row"]) & set(removed["twin"]), "a twin that is named stays in the data"
    assert all(alike == true[twin, row] for row, twin, alike in removed.iter_rows())

    some = np.arange(rows) % 3 == 0
    apart = {pair: alike for pair, alike in true.items() if some[pair[0]] != some[pair[1]]}
    one_side = {low if some[low] else high for low, high in apart}
    twins = near_twins(prefixes, some, ~some)
    assert set(twins["row"]) == one_side
    assert all(apart[min(row, twin), max(row, twin)] == alike for row, twin, alike in twins.iter_rows())

    others = np.flatnonzero(~some)
    counted = counted_twins(words.take(others), words, threshold, some)
    found = {tuple(sorted((row, int(others[item])))): alike for row, item, alike in counted.iter_rows()}
    assert found == apart


def test_tables_and_blocks_of_any_size_find_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    words = word_hashes(pl.Series([" ".join(text) for text in corpus(800, seed=5)]))
    half = np.arange(words.rows) % 4 > 0
    expected = near_duplicates(Prefixes.of(words, 0.8, half))
    assert expected.height > 100
    for name, value in (("_SORTED", 500), ("_LOOKED_UP", 500), ("_RARITY", 8), ("_PAIRS", 7), ("_CANDIDATES", 50)):
        monkeypatch.setattr(near_module, name, value)
    assert near_duplicates(Prefixes.of(words, 0.8, half)).equals(expected)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from("abc"), max_size=12), max_size=30), st.sampled_from([0.3, 0.5, 0.8, 1.0]))
def test_words_said_over_and_over(texts: list[list[str]], threshold: float) -> None:
    words = word_hashes(pl.Series([" ".join(text) for text in texts], dtype=pl.String))
    true = brute_force(texts, threshold)
    true = {pair: alike for pair, alike in true.items() if texts[pair[0]] and texts[pair[1]]}
    assert set(near_duplicates(Prefixes.of(words, threshold))["row"]) == kernel(true)
    even = np.arange(len(texts)) % 2 == 0
    counted = counted_twins(words.take(np.flatnonzero(~even)), words, threshold, even)
    expected = {(low, high) if even[low] else (high, low) for low, high in true if even[low] != even[high]}
    assert {(row, 2 * item + 1) for row, item, _ in counted.iter_rows()} == expected


def test_a_crowd_of_copies_costs_no_square_and_leaves_one() -> None:
    draw = random.Random(0)
    text = draw.choices(VOCABULARY, k=300)
    copies = []
    for n in range(2500):
        copy = list(text)
        copy[draw.randrange(300)] = f"other{n}"
        copies.append(" ".join(copy))
    rows = word_hashes(pl.Series(copies))
    removed = near_duplicates(Prefixes.of(rows, 0.8))
    assert removed.height == 2499
    assert removed["twin"].unique().to_list() == [0]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("What is the weather in Paris tomorrow?", "What is the weather in Berlin tomorrow?"),
        ("State the final answer to the following arithmetic problem: 7 + 0", "State the final answer to the following "
         "arithmetic problem: 7 + 4"),
        ("State the final answer to the following problem: 29 + 48 = ?", "State the final answer to the following "
         "problem: 29 - 48 = ?"),
        ("Set a timer for 5 minutes", "Set a timer for 7 minutes"),
        ("", "a"),
    ],
)  # fmt: skip
def test_short_templated_texts_that_differ_in_a_number_or_name_are_apart(one: str, other: str) -> None:
    rows = word_hashes(pl.Series([one, other]))
    assert jaccard(rows, np.array([[0, 1]]))[0] < 0.8
    assert near_duplicates(Prefixes.of(rows, 0.8)).is_empty()


def test_rows_without_words_are_no_twins() -> None:
    rows = word_hashes(pl.Series(["", "?!", "...", "a", "a"]))
    assert near_duplicates(Prefixes.of(rows, 0.8)).rows() == [(4, 3, 1.0)]


def test_only_the_rows_left_are_compared() -> None:
    rows = word_hashes(pl.Series(["a b c d e f"] * 3))
    assert near_duplicates(Prefixes.of(rows, 0.8, np.array([False, True, True]))).rows() == [(2, 1, 1.0)]
    assert near_duplicates(Prefixes.of(rows, 0.8), np.array([False, True, True])).rows() == [(2, 1, 1.0)]
    assert near_duplicates(Prefixes.of(rows, 0.8, np.zeros(3, bool))).is_empty()
