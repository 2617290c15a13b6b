from __future__ import annotations

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.quality import RULES, first_reasons, reasons, required_share

NAMES = [rule.name for rule in RULES]


@settings(deadline=None)
@given(st.lists(st.sets(st.sampled_from(NAMES)), max_size=30))
def test_every_row_is_kept_or_counted_once(broken: list[set[str]]) -> None:
    found = pl.DataFrame(
        {name: [name in row for row in broken] for name in NAMES}, schema=dict.fromkeys(NAMES, pl.Boolean)
    )
    lists = reasons(found, RULES)
    counted = first_reasons(lists)
    aside = {rule.name for rule in RULES if rule.sets_aside}
    assert sum(counted.values()) == sum(bool(row & aside) for row in broken)
    assert [set(why) for why in lists.to_list()] == [row & aside for row in broken]
    assert [why[0] for why in lists.to_list() if why] == [
        next(name for name in NAMES if name in row & aside) for row in broken if row & aside
    ]


@pytest.mark.parametrize(("asked", "share"), [(0.1, 0.9), (0.3, 0.7), (0.0, 1.0), (1.0, 0.0)])
def test_a_rule_must_be_kept_by_what_the_recipe_does_not_let_go(asked: float, share: float) -> None:
    for rule in RULES:
        expected = rule.mostly if rule.mostly is not None else share if rule.sets_aside else 0.0
        assert required_share(rule, asked) == expected
