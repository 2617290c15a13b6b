"""What evaluation and the gate leave in the store."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.recipe import Role
from tasks.store import Manifest

Decision = Literal["promote", "keep", "cannot tell"]
Outcome = Literal["better", "not worse", "worse", "cannot tell"]


class SuiteScore(BaseModel):
    """One suite's result for one model.

    `digest`: of its items and generation settings; `settings`: of the generation settings alone; `not_run`: rows of a
    benchmark that are no items, and rules that are not run, by reason.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    items: int
    mean: float
    unit: str
    higher_is_better: bool
    digest: str
    settings: str = ""
    not_run: dict[str, int] = {}


class EvaluationSets(Manifest):
    """The items of every suite, checked before they are used. Files: `docs/`, a page a suite. `items`: by suite."""

    kind = "evaluation-sets"

    items: dict[str, int]


class SuiteRun(Manifest):
    """One model on one suite.

    Files: `items.parquet` (suite, item_id, sample: i32, several of an item where its answers are drawn, cluster: what
    items that are not independent share, score: f64, prompt, output: raw text, expected, stopped: bool,
    new_tokens: i32, detail), EvalScope's own report under `evalscope/` and, of a judged suite, `judge.jsonl`: what the
    judge said.
    """

    kind = "suite-run"

    score: SuiteScore
    seconds: float


class Scores(Manifest):
    """One model on all suites of a recipe, put together from its runs of each.

    Files: `items.parquet`, the runs' under one another. `base` and `adapter` are addresses; `adapter` is None for the
    base model itself.
    """

    kind = "scores"

    base: str
    adapter: str | None
    suites: dict[str, SuiteScore]
    seconds: float


class Comparison(BaseModel):
    """Candidate against reference on one suite, paired by item.

    `difference` is candidate minus reference, signed so that positive is better; `low` and `high`
    bound it at the gate's confidence; `p` tests that there is no difference, two-sided. `level`: the night's, which
    half of a target's p must not exceed. `detectable`: the true difference that this night sees 8 times in 10; None
    where there are too few items.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str
    role: Role
    unit: str
    higher_is_better: bool
    items: int
    base: float
    reference: float
    candidate: float
    difference: float
    low: float
    high: float
    p: float
    margin: float
    wins: int
    losses: int
    outcome: Outcome
    level: float | None = None
    detectable: float | None = None


class Reason(BaseModel):
    """One reason of a verdict, for programs: what was found (`code`), where, its numbers, and the same in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    code: Literal["better", "not worse", "worse", "cannot tell", "too few items", "other base", "level", "not run"]
    suite: str | None = None
    numbers: dict[str, float] = {}
    text: str


class Verdict(Manifest):
    """What the gate said of a candidate, and why. `champion` is an adapter's address, None: the base.

    `findings`: the reasons with their numbers; `level`: what this hypothesis spent of the year's error (one-sided);
    `left` and `hypotheses`: what is left of the budget after it, as a share, and how many the last 365 days have seen;
    `asked_at`: when it was entered, UTC. Files: `verdict.md`, one page for people.
    """

    kind = "verdict"

    candidate: str
    champion: str | None
    decision: Decision
    reasons: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    findings: tuple[Reason, ...] = ()
    level: float | None = None
    left: float | None = None
    hypotheses: int | None = None
    asked_at: str = ""
