"""Licences: flagged on the card, refused before training where the recipe says so."""

from __future__ import annotations

from typing import Any

import pytest

from tasks.errors import Refused
from tasks.recipe import Recipe
from tasks.registry import licence_flag, licences, require_licences, source_names


@pytest.mark.parametrize(
    ("licence", "flag"),
    [
        ("Apache-2.0", None),
        ("cc-by-sa-4.0", None),
        ("cc-by-nc-4.0", "non-commercial"),
        ("Tongyi-Qianwen-Research", "non-commercial"),
        (None, "not stated"),
        (" Other ", "not stated"),
    ],
)
def test_what_is_wrong_with_a_licence(licence: str | None, flag: str | None) -> None:
    assert licence_flag(licence) == flag


def refusing(recipe: Recipe, **said: str) -> Recipe:
    """The recipe that refuses flagged licences, with what it says of sources that state none."""
    sources = tuple(source.model_copy(update={"licence": said.get(source.name)}) for source in recipe.sources)
    registry = recipe.registry.model_copy(update={"licences": "refuse"})
    return recipe.model_copy(update={"registry": registry, "sources": sources})


def test_a_recipe_may_refuse_them(world: Any) -> None:
    named = source_names(world.snapshots, world.conversations)
    require_licences(world.recipe, world.base, named)  # by default they are only told
    with pytest.raises(Refused, match=r"arithmetic \(cc-by-nc-4\.0: non-commercial\); chat \(none: not stated\)"):
        require_licences(refusing(world.recipe), world.base, named)
    stated = refusing(world.recipe, chat="MIT", arithmetic="MIT")
    assert licences(stated, world.base, named)["chat"] == "MIT"
    # What a source states itself is not talked away.
    with pytest.raises(Refused, match=r"made of: arithmetic \(cc-by-nc-4\.0: non-commercial\)\. "):
        require_licences(stated, world.base, named)
    require_licences(stated, world.base, {"tools": named["tools"], "chat": named["chat"]})
