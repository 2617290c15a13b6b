from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.mixture import other_side, split_of
from tasks.quality import TWINS
from tasks.quality.duplicates import hashes

HASHES = st.integers(0, 2**64 - 1)


def splits(hashes: list[int], test: float = 0.15, validation: float = 0.05) -> list[str]:
    return split_of(pl.Series(hashes, dtype=pl.UInt64), test=test, validation=validation).to_list()


def hashed(count: int) -> list[int]:
    return hashes(str(n).encode() for n in range(count)).tolist()


def test_shares_of_prompts_are_held_out() -> None:
    found = splits(hashed(20_000))
    assert found.count("test") / 20_000 == pytest.approx(0.15, abs=0.01)
    assert found.count("validation") / 20_000 == pytest.approx(0.05, abs=0.01)
    assert splits([0, 2**64 - 1]) == ["test", "validation"]


@settings(deadline=None)
@given(st.lists(HASHES, max_size=30))
def test_a_prompt_has_the_same_split_in_any_company(some: list[int]) -> None:
    alone = [splits([one])[0] for one in some]
    assert splits(some) == alone
    assert splits(some[::-1]) == alone[::-1]


def test_a_larger_test_split_moves_no_validation_row_and_loses_no_test_row() -> None:
    some = hashed(2000)
    small, large = splits(some, test=0.1), splits(some, test=0.3)
    for before, after in zip(small, large, strict=True):
        assert before == after or (before, after) == ("train", "test")
    assert "validation" not in splits(some, validation=0)


def astray(split_of_row: list[str], twins: list[tuple[int, int]]) -> list[tuple[int, int, str]]:
    rows = pl.DataFrame({"row": range(len(split_of_row)), "split": split_of_row}, schema_overrides={"row": pl.UInt32})
    pairs = pl.DataFrame([(*pair, 0.9) for pair in twins], schema=TWINS, orient="row")
    return other_side(rows, pairs).rows()


def test_a_cluster_takes_the_split_of_most_of_its_rows() -> None:
    assert astray(["train", "test", "train", "test"], [(1, 0), (2, 0)]) == [(1, 0, "train")]
    assert astray(["train", "test", "test"], [(1, 0), (2, 0)]) == [(0, 1, "test")]
    assert astray(["validation", "train", "test"], [(1, 0), (2, 0)]) == [(0, 2, "test"), (1, 2, "test")]
    assert astray(["train", "train", "test", "validation"], [(1, 0), (3, 2)]) == [(3, 2, "test")]
    assert astray(["train", "test"], []) == []


@settings(deadline=None)
@given(st.data())
def test_no_cluster_is_on_two_sides_and_nothing_is_moved(data: st.DataObject) -> None:
    count = data.draw(st.integers(1, 12))
    split = data.draw(st.lists(st.sampled_from(["train", "validation", "test"]), min_size=count, max_size=count))
    leader = [data.draw(st.integers(0, n)) for n in range(count)]
    leader = [n if leader[one] != one else one for n, one in enumerate(leader)]
    gone = {row for row, _, _ in astray(split, [(n, one) for n, one in enumerate(leader) if one != n])}
    for one in set(leader):
        members = [n for n in range(count) if leader[n] == one]
        sides = {split[n] for n in members if n not in gone}
        assert len(sides) == 1
        assert sum(split[n] in sides for n in members) == max(map([split[n] for n in members].count, sides))
        assert all(split[n] not in sides for n in members if n in gone)
