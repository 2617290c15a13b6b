"""What the search hands to the other rooms."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.recipe import Recipe, Value


class Proposal(BaseModel):
    """One candidate of a night: the values that it tries, by field, and the recipe that they make.

    `trial`: its number in today's Optuna study; None where the recipe has no search.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    values: dict[str, Value] = {}
    recipe: Recipe
    trial: int | None = None


class Outcome(BaseModel):
    """What a candidate came to, larger is better everywhere.

    `gains`: by target, how much better than the base on the same items; `slacks`: by guard, what is left of its margin
    against whoever the gate compared with (negative: over it). In the units of the suites.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    gains: dict[str, float]
    slacks: dict[str, float]
    decision: str | None = None


class Tried(BaseModel):
    """One candidate as the search remembers it. `study` and `trial` are Optuna's; `settings`: the value of
    every field that may vary, also of those that did not; `night`: an MLflow run id; `nights`: how many were
    killed with it; `outcome`: None while it runs, and where it failed, for `reason`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    study: str
    trial: int
    state: Literal["running", "judged", "failed"]
    values: dict[str, Value]
    settings: dict[str, Value]
    night: str
    nights: int
    candidate: str
    at: str
    outcome: Outcome | None = None
    reason: str | None = None
