from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import BadInput
from tasks.mixture import allot


def test_the_source_with_least_for_its_share_sets_the_size() -> None:
    supervised = {"chat": np.full(1000, 20), "maths": np.full(1000, 100)}
    parts, limit = allot(supervised, {"chat": 0.25, "maths": 0.75})
    assert limit == "chat"
    assert (parts["chat"].rows, parts["maths"].rows) == (1000, 600)
    assert parts["maths"].reached == 0.75
    assert parts["maths"].supervised_tokens == 60_000


def test_nothing_limits_what_fits() -> None:
    parts, limit = allot({"a": np.full(30, 10), "b": np.full(10, 10)}, {"a": 0.75, "b": 0.25})
    assert limit is None
    assert (parts["a"].rows, parts["b"].rows) == (30, 10)


@settings(deadline=None)
@given(
    st.integers(0, 2**31),
    st.lists(st.integers(2, 10), min_size=1, max_size=4),
    st.one_of(st.none(), st.integers(1, 1000)),
)
def test_shares_are_within_one_percent_and_rows_within_bounds_or_it_says_so(
    seed: int, weights: list[int], most_rows: int | None
) -> None:
    draw = np.random.default_rng(seed)
    supervised = {f"s{n}": draw.integers(1, 200, draw.integers(150, 400)) for n in range(len(weights))}
    whole = sum(weights)
    asked = {f"s{n}": weights[n] / whole for n in range(len(weights))}
    try:
        parts, limit = allot(supervised, asked, most_rows)
    except BadInput:
        # Only a mixture of few rows can be too coarse, never one that all the rows could have gone into.
        few = most_rows is not None and most_rows < 150
        assert few
        return
    assert sum(part.reached for part in parts.values()) == pytest.approx(1)
    for name, part in parts.items():
        assert abs(part.reached - asked[name]) <= 0.01
        assert part.supervised_tokens == supervised[name][: part.rows].sum()
    rows = sum(part.rows for part in parts.values())
    assert rows <= (most_rows or rows)
    if limit == "mixture.rows":
        assert rows > most_rows - 2 * len(weights)  # type: ignore[operator]
    elif limit:
        assert parts[limit].rows == len(supervised[limit])


def test_rows_too_coarse_for_the_share() -> None:
    with pytest.raises(BadInput, match=r"sources\.\w\.share.*within 1%.*1000 rows.*supervised tokens") as error:
        allot({"a": np.full(1000, 7), "b": np.full(1000, 500)}, {"a": 0.5, "b": 0.5}, most_rows=50)
    assert "mixture.rows limits" in str(error.value)


@pytest.mark.parametrize("tokens", [[], [0, 0]])
def test_a_source_without_supervised_tokens(tokens: list[int]) -> None:
    with pytest.raises(BadInput, match=r"sources\.b.*no supervised token"):
        allot({"a": np.array([5, 5]), "b": np.array(tokens, dtype=np.int64)}, {"a": 0.5, "b": 0.5})
