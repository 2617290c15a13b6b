from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.mixture import leaks, split_of
from tasks.mixture.split import hash64


def splits(prompts: list[str], test: float = 0.15, validation: float = 0.05) -> list[str]:
    return split_of(pl.Series(prompts, dtype=pl.String), test=test, validation=validation).to_list()


def test_the_hash_is_blake2b_and_never_changes() -> None:
    # Of the standard library, for whoever has to find a conversation's split without this code:
    # blake2b(b"hello", digest_size=8, salt=b"split") read as a big-endian number.
    assert hash64(["hello", ""], "split").to_list() == [hash_of("hello"), hash_of("")]


def hash_of(text: str) -> int:
    from hashlib import blake2b

    return int.from_bytes(blake2b(text.encode(), digest_size=8, salt=b"split").digest(), "big")


def test_shares_of_prompts_are_held_out() -> None:
    found = splits([f"prompt {n}" for n in range(20_000)])
    assert found.count("test") / 20_000 == pytest.approx(0.15, abs=0.01)
    assert found.count("validation") / 20_000 == pytest.approx(0.05, abs=0.01)


@given(st.lists(st.text(), max_size=30), st.integers(0, 2**31))
def test_a_prompt_has_the_same_split_in_any_company(prompts: list[str], seed: int) -> None:
    alone = [splits([prompt])[0] for prompt in prompts]
    assert splits(prompts) == alone
    assert splits(prompts[::-1]) == alone[::-1]


def test_a_larger_test_split_moves_no_validation_row_and_loses_no_test_row() -> None:
    prompts = [f"prompt {n}" for n in range(2000)]
    small, large = splits(prompts, test=0.1), splits(prompts, test=0.3)
    for before, after in zip(small, large, strict=True):
        assert before == after or (before, after) == ("train", "test")
    assert "validation" not in splits(prompts, validation=0)


def test_leaks_are_found() -> None:
    rows = pl.DataFrame({"prompt": ["a", "a", "b", "c"], "split": ["train", "test", "train", "validation"]})
    assert leaks(rows)["prompt"].to_list() == ["a"]
    assert leaks(rows.filter(pl.col("prompt") != "a")).is_empty()
