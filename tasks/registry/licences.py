"""Licences of what an adapter is made of: carried along, flagged, and refused where the recipe says so."""

from __future__ import annotations

from collections.abc import Mapping

from tasks.errors import Refused
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot, Snapshot

_UNKNOWN = ("", "unknown", "other", "noassertion")
_NON_COMMERCIAL = ("-nc", "noncommercial", "non-commercial", "research")
BASE_MODEL = "the base model"


def licence_flag(licence: str | None) -> str | None:
    """What is wrong with a licence for general use, or None."""
    if licence is None or licence.strip().lower() in _UNKNOWN:
        return "not stated"
    if any(mark in licence.lower() for mark in _NON_COMMERCIAL):
        return "non-commercial"
    return None


def licences(recipe: Recipe, base: BaseSnapshot, snapshots: Mapping[str, Snapshot]) -> dict[str, str | None]:
    """The licence of the base model and of each source: what it states itself, else what the recipe says of it."""
    said = {source.name: source.licence for source in recipe.sources}
    stated = {name: snapshot.licence or said.get(name) for name, snapshot in snapshots.items()}
    return {BASE_MODEL: base.licence or recipe.base.licence, **stated}


def require_licences(recipe: Recipe, base: BaseSnapshot, snapshots: Mapping[str, Snapshot]) -> None:
    """Raise Refused for flagged licences where the recipe forbids them, before anything is validated or trained."""
    if recipe.registry.licences == "flag":
        return
    found = licences(recipe, base, snapshots)
    flagged = [f"{name} ({found[name] or 'none'}: {flag})" for name in found if (flag := licence_flag(found[name]))]
    if flagged:
        raise Refused(
            f"registry.licences refuses what this night would be made of: {'; '.join(flagged)}. Leave it out, or state "
            "the licence of what is your own (sources.<name>.licence, base.licence)."
        )
