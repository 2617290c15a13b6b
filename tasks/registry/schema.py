"""What the registry hands to the other rooms: versions, the champion, moves and the record of a night."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.recipe import Value
from tasks.store import Manifest

NightOutcome = Literal["promoted", "kept", "cannot tell", "skipped", "refused", "failed"]
"""How a night ended. `refused`: the data gate stopped it; `skipped`: nothing had moved."""

BASE = "base"
"""Stands for the base model where a champion's address would be."""


class Version(BaseModel):
    """A registered candidate. `adapter` is an address; `model_id` the logged model that holds the files."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model: str
    version: int
    adapter: str
    run_id: str
    model_id: str

    @property
    def uri(self) -> str:
        """What `mlflow.pyfunc.load_model` takes."""
        return f"models:/{self.model}/{self.version}"


class Champion(BaseModel):
    """The version that the alias `champion` names. `adapter` and `base` are addresses."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int
    adapter: str
    run_id: str
    base: str


class Candidate(BaseModel):
    """A registered version as people look it up. `verdict`: the gate's decision; `made_at`: UTC, ISO 8601.

    `night`: MLflow run id; `name`: the candidate's in that night; `values`: what a search tried, by field;
    `intervals`: of the scores, 95 %; `broken`: guards that the gate does not call unharmed, None where that was not
    written down.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: int
    adapter: str
    base: str
    aliases: tuple[str, ...]
    verdict: str
    reasons: tuple[str, ...]
    scores: dict[str, float]
    run_id: str
    made_at: str
    night: str = ""
    name: str = ""
    values: dict[str, Value] = {}
    intervals: dict[str, tuple[float, float]] = {}
    broken: tuple[str, ...] | None = None


class Move(BaseModel):
    """One attempt to move the champion alias, or to prune a version; every attempt is kept, with how it ended.

    `found` and `to` are version numbers (None: no champion); `at`: UTC, ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    number: int
    kind: Literal["promote", "rollback", "prune"]
    to: int
    found: int | None
    outcome: str
    moved: bool
    who: str
    why: str
    at: str


class NightRecord(BaseModel):
    """One night as MLflow remembers it. `started`: UTC, ISO 8601; `verdicts`: by adapter address."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    run_id: str
    recipe: str
    started: str
    seconds: float | None
    status: str
    outcome: str | None
    reason: str | None
    verdicts: dict[str, dict[str, Any]]


class Report(Manifest):
    """The report of a verdict.

    Files: `report.html` (one self-contained page), `report.md`, `card.md` (the model card) and
    `lineage.svg`.
    """

    kind = "report"

    verdict: str
    headline: str
