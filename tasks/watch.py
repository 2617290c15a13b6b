"""Watch: has anything upstream moved since a recipe's last night, without fetching any of it?"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tasks.fetch import base_inputs, source_inputs
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot, Snapshot
from tasks.store import Store


class Look(BaseModel):
    """What a source, or the base, points at. `revision`: commit, digest or watermark; `before`: that of its last
    snapshot in the store, None where there is none yet."""

    model_config = ConfigDict(frozen=True)

    name: str
    uri: str
    revision: str
    before: str | None
    moved: bool


def watch(recipe: Recipe, store: Store) -> tuple[Look, ...]:
    """Where the base and each source of a recipe point now, against what its nights have fetched.

    What has never been fetched has not moved: the recipe's first night is for a person or the clock to start.
    Raises BadInput and WorldFailed as `fetch` does for a source that cannot be resolved.
    """
    base = str(base_inputs(recipe.base)["revision"])
    looks = [
        _look("base", recipe.base.uri, base, [s.revision for s in store.all(BaseSnapshot) if s.uri == recipe.base.uri])
    ]
    for source in recipe.sources:
        inputs = source_inputs(source, store)
        known = [
            snapshot.revision
            for snapshot in store.all(Snapshot)
            if (snapshot.inputs["uri"], snapshot.inputs.get("stream")) == (inputs["uri"], inputs.get("stream"))
        ]
        looks.append(_look(source.name, source.uri, str(inputs["revision"]), known))
    return tuple(looks)


def _look(name: str, uri: str, revision: str, known: list[str]) -> Look:
    before = known[-1] if known else None
    return Look(name=name, uri=uri, revision=revision, before=before, moved=bool(known) and revision not in known)
