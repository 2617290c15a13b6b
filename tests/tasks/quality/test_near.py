from __future__ import annotations

import random
from collections import Counter

import numpy as np
import polars as pl
import pytest

from tasks.quality import Bands, near_duplicates, near_pairs, word_hashes
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


def test_against_brute_force_on_5000_rows() -> None:
    texts = corpus(5000, seed=3)
    true = brute_force(texts, 0.8)
    rows = word_hashes(pl.Series([" ".join(text) for text in texts]))
    keys = Bands(0.8).of(rows)
    pairs, alike = near_pairs(rows, keys, 0.8)
    found = {(low, high): near for (low, high), near in zip(pairs.tolist(), alike.tolist(), strict=True)}
    assert len(true) > 2000
    assert all(found[pair] == pytest.approx(near) for pair, near in true.items() if pair in found)
    assert len(found.keys() & true.keys()) / len(found) >= 0.98
    assert len(found.keys() & true.keys()) / len(true) >= 0.95

    gone: set[int] = set()
    for low, high in sorted(true, key=lambda pair: (pair[1], pair[0])):
        if low not in gone:
            gone.add(high)
    removed = near_duplicates(rows, keys, 0.8)
    rows_removed = set(removed["row"].to_list())
    assert len(rows_removed & gone) / len(rows_removed) >= 0.98
    assert len(rows_removed & gone) / len(gone) >= 0.95
    assert not rows_removed & set(removed["twin"].to_list()), "a twin that is named stays in the data"
    assert removed["jaccard"].min() >= 0.8  # type: ignore[operator]


def test_a_crowd_of_copies_costs_no_square_and_leaves_one() -> None:
    draw = random.Random(0)
    text = draw.choices(VOCABULARY, k=300)
    copies = []
    for n in range(2500):
        copy = list(text)
        copy[draw.randrange(300)] = f"other{n}"
        copies.append(" ".join(copy))
    rows = word_hashes(pl.Series(copies))
    removed = near_duplicates(rows, Bands(0.8).of(rows), 0.8)
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
    assert near_duplicates(rows, Bands(0.8).of(rows), 0.8).is_empty()


def test_rows_without_words_are_no_twins() -> None:
    rows = word_hashes(pl.Series(["", "?!", "...", "a", "a"]))
    assert near_duplicates(rows, Bands(0.8).of(rows), 0.8).rows() == [(4, 3, 1.0)]


def test_only_the_rows_left_are_compared() -> None:
    rows = word_hashes(pl.Series(["a b c d e f"] * 3))
    removed = near_duplicates(rows, Bands(0.8).of(rows), 0.8, np.array([1, 2]))
    assert removed.rows() == [(2, 1, 1.0)]
    assert near_duplicates(rows, Bands(0.8).of(rows), 0.8, np.array([], np.int64)).is_empty()
