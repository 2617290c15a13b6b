from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.errors import BadInput
from tasks.mixture import allot, asked_shares
from tasks.recipe import Kind, Mixture

PLAIN = Mixture()


def test_the_source_with_least_for_its_share_sets_the_size() -> None:
    supervised = {"chat": np.full(1000, 20), "maths": np.full(1000, 100)}
    parts, limit = allot(supervised, {"chat": 0.25, "maths": 0.75}, PLAIN)
    assert limit == "chat"
    assert (parts["chat"].rows, parts["maths"].rows) == (1000, 600)
    assert parts["maths"].reached == 0.75
    assert parts["maths"].amount == 60_000
    assert parts["maths"].epochs == 0.6


def test_nothing_limits_what_fits() -> None:
    parts, limit = allot({"a": np.full(30, 10), "b": np.full(10, 10)}, {"a": 0.75, "b": 0.25}, PLAIN)
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
        parts, limit = allot(supervised, asked, Mixture(rows=most_rows))
    except BadInput:
        # Only a mixture of few rows can be too coarse, never one that all the rows could have gone into.
        few = most_rows is not None and most_rows < 150
        assert few
        return
    assert sum(part.reached for part in parts.values()) == pytest.approx(1)
    for name, part in parts.items():
        assert abs(part.reached - asked[name]) <= 0.01
        assert part.amount == supervised[name][: part.rows].sum()
    rows = sum(part.rows for part in parts.values())
    assert rows <= (most_rows or rows)
    if limit == "mixture.rows":
        # Few rows are too coarse for most sizes, and then a smaller one that fits is taken.
        assert most_rows is not None
        assert rows > 0.9 * most_rows or most_rows < 150
    elif limit:
        assert parts[limit].rows == len(supervised[limit])


def test_rows_too_coarse_for_the_share() -> None:
    with pytest.raises(BadInput, match=r"sources\.\w\.share.*within 1%.*1000 rows.*supervised tokens") as error:
        allot({"a": np.full(1000, 7), "b": np.full(1000, 500)}, {"a": 0.5, "b": 0.5}, Mixture(rows=50))
    assert "mixture.rows limits" in str(error.value)


def test_a_source_without_supervised_tokens() -> None:
    with pytest.raises(BadInput, match=r"sources\.logic.*no supervised token"):
        asked_shares({**SIZES, "logic": 0}, dict.fromkeys(KINDS), KINDS, Mixture(method="proportional"))


KINDS: dict[str, Kind] = {"chat": "chat", "maths": "reasoning", "logic": "reasoning"}
SIZES = {"chat": 900, "maths": 75, "logic": 25}


def asked(fixed: dict[str, float | None] | None = None, **mixture: Any) -> list[float]:
    shares = asked_shares(SIZES, fixed or dict.fromkeys(KINDS), KINDS, Mixture(**mixture))
    assert sum(shares.values()) == pytest.approx(1)
    return [round(shares[name], 4) for name in KINDS]


def test_where_shares_come_from() -> None:
    fixed = {"chat": 0.5, "maths": 0.4, "logic": 0.1}
    assert asked(fixed) == [0.5, 0.4, 0.1]
    assert asked(method="proportional") == [0.9, 0.075, 0.025]
    assert asked(method="temperature", temperature=1) == [0.9, 0.075, 0.025]
    roots = np.sqrt(list(SIZES.values()))
    assert asked(method="temperature", temperature=2) == np.round(roots / roots.sum(), 4).tolist()
    assert max(asked(method="temperature", temperature=100)) < 0.35


def test_one_number_sets_chat_against_reasoning() -> None:
    assert asked({"chat": 0.5, "maths": 0.4, "logic": 0.1}, reasoning_share=0.75) == [0.25, 0.6, 0.15]
    assert asked(method="proportional", reasoning_share=0.75) == [0.25, 0.5625, 0.1875]


def test_a_small_source_comes_again() -> None:
    amounts = {"small": np.full(100, 10), "large": np.full(1000, 10)}
    half = {"small": 0.5, "large": 0.5}
    parts, limit = allot(amounts, half, Mixture(repeats=4))
    assert (limit, parts["small"].rows, parts["large"].rows) == ("small", 400, 400)
    assert parts["small"].epochs == 4
    # No source comes again for its own sake: the mixture ends where the largest is used up.
    parts, limit = allot(amounts, half, Mixture(repeats=100))
    assert (limit, parts["small"].rows, parts["large"].rows) == (None, 1000, 1000)
    parts, limit = allot(amounts, half, Mixture(repeats=100, rows=500))
    assert (limit, parts["small"].epochs) == ("mixture.rows", 2.5)


def test_too_few_rows_for_the_shares() -> None:
    with pytest.raises(BadInput, match=r"mixture\.min_rows: 300 cannot be reached.* 200 rows.*small \(100 rows.*50%"):
        allot({"small": np.full(100, 10), "large": np.full(1000, 10)}, dict.fromkeys(("small", "large"), 0.5),
              Mixture(min_rows=300))  # fmt: skip
