"""How models are compared, and when a candidate is let out."""

from __future__ import annotations

from typing import Literal, Self, cast, get_args

from pydantic import Field, model_validator

from tasks.recipe.part import Kind, Mode, Name, Part

Role = Literal["target", "guard"]
Measure = Literal[
    "tool_call",
    "final_answer",
    "chat_format",
    "held_out_loss",
    "thinking",
    "overlap",
    "choice",
    "instructions",
    "task",
]
_OF_DATA = ("choice", "instructions", "task")


class Suite(Part):
    """One evaluation suite and its part in the verdict."""

    name: Name
    """Name of the suite; of what it measures as well, where measure is null."""
    measure: Measure | None = None
    """tool_call: exact names and arguments, in any order, and no call where none fits; final_answer: right number,
    after one closed thinking block if asked for; chat_format: stops by itself, in plain text; held_out_loss: nats per
    token on held-out answers; thinking: one closed block and then an answer in thinking mode, no block in direct
    mode; overlap: ROUGE-L with the held-out answer. Of data alone: choice: the right letter; instructions: every rule
    of the prompt kept; task: what a reasoning-gym task's own scorer gives. null: what the name says."""
    kind: Kind | None = None
    """Kind of the held-out conversations that are its items; null: its items are in data."""
    data: str | None = None
    """A benchmark's file, folder or glob (BFCL, GSM8K, IFEval, MMLU), or gym://task?size=&seed=; null: held-out
    conversations."""
    role: Role
    """target: must be better; guard: must not be worse than its margin."""
    mode: Mode = "direct"
    """direct: no thinking; thinking: with a thinking block."""
    items: int = Field(100, ge=1)
    """Most items, taken in an order that does not change as data grows."""
    margin: float = Field(0.0, ge=0)
    """How much worse a guard may be, in the unit of its score (points as a fraction; nats per token)."""
    max_new_tokens: int = Field(128, ge=1, le=32_768)
    """Bound of an answer, in tokens."""

    @model_validator(mode="after")
    def _knows_what_it_measures(self) -> Self:
        if self.measure is None and self.name not in get_args(Measure):
            raise ValueError(f"suite {self.name!r} needs measure, one of {', '.join(get_args(Measure))}")
        if (self.kind is None) == (self.data is None):
            raise ValueError(f"suite {self.name!r} needs either kind, of held-out conversations, or data")
        if self.kind is not None and self.measures in _OF_DATA:
            raise ValueError(f"suite {self.name!r} measures {self.measures}, which takes data")
        if self.data is not None and self.measures == "held_out_loss":
            raise ValueError(f"suite {self.name!r} measures held_out_loss, which takes held-out conversations")
        return self

    @property
    def measures(self) -> Measure:
        """What is scored."""
        return self.measure or cast(Measure, self.name)


class Evaluation(Part):
    """How base, champion and candidate are compared."""

    suites: tuple[Suite, ...]
    """The suites; at least one target."""
    batch_size: int = Field(16, ge=1, le=1024)
    """Prompts generated together."""
    rotate: bool = True
    """Draw a suite's items anew from the held-out split whenever that has changed, so that no test set is worn out;
    false: keep to the same items, which spares evaluating the champion on new ones."""

    @model_validator(mode="after")
    def _has_a_target(self) -> Self:
        names = [suite.name for suite in self.suites]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"suite {doubled[0]!r} appears more than once")
        if not any(suite.role == "target" for suite in self.suites):
            raise ValueError("no suite has the role 'target', so no candidate could ever be better")
        return self


class Gate(Part):
    """When a candidate is let out."""

    year_error: float = Field(0.04, gt=0, le=0.5)
    """Chance that any 365 days of nights promote a candidate that is no better than its champion."""
    confidence: float = Field(0.95, gt=0.5, lt=1)
    """Two-sided confidence of the intervals that are shown, that guards are held to, and that call a model worse."""
    min_items: int = Field(20, ge=2)
    """Fewest paired items a suite needs before the gate reads anything into it."""
    approval: Literal["none", "required"] = "none"
    """required: what the gate would let out waits for a person; a flow run in Prefect asks."""
    approval_hours: float = Field(12, gt=0, le=24 * 30)
    """How long that flow run waits for an answer; without one, the champion stays."""
