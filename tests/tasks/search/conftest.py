"""A recipe whose share of reasoning and rank vary."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tasks.recipe import Recipe, load

SHARE = "mixture.reasoning_share"
RANK = "training.rank"
VARY = f"search.vary=[{{field: {SHARE}, low: 0.1, high: 0.9}}, {{field: {RANK}, choices: [8, 16, 32]}}]"


@pytest.fixture
def recipe() -> Callable[..., Recipe]:
    """The demo's recipe with a search; `changes` come last."""
    return lambda *changes: load("demo", ["mixture.reasoning_share=0.3", VARY, *changes])[0]
