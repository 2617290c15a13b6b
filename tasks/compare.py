"""Compare: what has changed about a source since the last night that passed.

A night whose sources all pass leaves a record of their conversations, and the recipe a pointer to it, which is
replaced whole: a night that is killed, or another at the same time, leaves one record or the other. The rows
themselves are not needed again, since each source keeps its profile.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tasks.conversations import Conversations
from tasks.quality import NIGHT_RULES, Change, Passed, Profile, applied, compared, decide_change, draw_drift
from tasks.recipe import Recipe
from tasks.store import Store, code_digest, digest

log = logging.getLogger("nightowl")


def compare(recipe: Recipe, gated: Conversations, store: Store, history: Path | None = None) -> Change:
    """A source held against the last night of the recipe that passed with other rows, made unless the store has it.

    With nothing to compare with, because no night has passed yet or its profile is gone, the change says so.
    `history`: folder of the pages of all nights; null: the home's.
    Raises BadInput for rules that are none, WorldFailed where the check itself failed.
    """
    rules = applied(recipe.quality, NIGHT_RULES)
    last = _last(recipe, store)
    if last and last.conversations.get(gated.source) == gated.address:
        # Nothing has moved since: what was said of these rows then still holds.
        if change := store.find(Change, last.changes[gated.source]):
            return change
        last = None
    address = last.conversations.get(gated.source) if last else None
    before = store.find(Conversations, address) if address else None
    then = _profile(before, store) if before else None
    inputs = {
        "conversations": gated.address,
        "before": before.address if before and then else None,
        "recipe": recipe.name,
        "bounds": recipe.quality.drift,
        "rules": {rule.name: rule.severity for rule in rules},
        "code": code_digest("tasks/compare.py", *_CODE, libraries=("great-expectations", "matplotlib")),
    }

    def build(work: Path) -> dict[str, Any]:
        about = {"source": gated.source, "conversations": gated.address}
        now = _profile(gated, store)
        if not (before and then and now):
            return {**about, "before": None, "before_made_at": None, "measures": ()}
        measures = compared(then, now, recipe.quality.drift, rules)
        draw_drift(gated.source, then, now, measures, work)
        if measures:
            decide_change(f"{recipe.name}-{gated.source}", measures, work / "drift.svg", work / "docs", history)
        made_at = before.made_at.removesuffix("+00:00").replace("T", " ")
        return {**about, "before": before.address, "before_made_at": made_at, "measures": tuple(measures)}

    return store.make(Change, inputs, build)[0]


_CODE = (
    *(f"tasks/quality/{part}.py" for part in ("decision", "drift", "drift_picture", "profile", "rules")),
    "expectations",
)


def remember(recipe: Recipe, gated: Sequence[Conversations], changes: Sequence[Change], store: Store) -> None:
    """Make this the last night of the recipe that passed: all its sources at once, when all have passed."""
    fields = {
        "conversations": {source.source: source.address for source in gated},
        "changes": {change.source: change.address for change in changes},
    }
    passed, _ = store.make(Passed, {"recipe": recipe.name, **fields}, lambda _: fields)
    store.set_latest(_line(recipe), passed)


def _line(recipe: Recipe) -> str:
    return digest({"recipe": recipe.name})


def _last(recipe: Recipe, store: Store) -> Passed | None:
    try:
        return store.latest(Passed, _line(recipe))
    except (OSError, ValueError) as error:
        log.warning("the record of the last night of %s cannot be read (%s): nothing is compared", recipe.name, error)
        return None


def _profile(gated: Conversations, store: Store) -> Profile | None:
    try:
        return Profile.model_validate_json((store.folder(gated) / "profile.json").read_bytes())
    except (OSError, ValueError) as error:
        log.warning("the profile of %s of %s cannot be read (%s)", gated.source, gated.made_at, error)
        return None
