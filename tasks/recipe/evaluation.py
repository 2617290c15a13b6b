"""How models are compared, and when a candidate is let out."""

from __future__ import annotations

from typing import Literal, Self, cast, get_args
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

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
    "judge",
]
Backend = Literal["transformers", "vllm"]
_OF_DATA = ("choice", "instructions", "task")


class Suite(Part):
    """One evaluation suite and its part in the verdict."""

    name: Name
    """Name of the suite; of what it measures as well, where measure is null."""
    measure: Measure | None = None
    """tool_call: exact names and arguments, in any order, and no call where none fits; final_answer: right number,
    after one closed thinking block if asked for; chat_format: stops by itself, in plain text; held_out_loss: nats per
    token on held-out answers; thinking: one closed block and then an answer in thinking mode, no block in direct
    mode; overlap: ROUGE-L with the held-out answer; judge: evaluation.judge finds it better than the held-out answer,
    1, worse, 0, or as good. Of data alone: choice: the right letter; instructions: every rule
    of the prompt kept; task: what a reasoning-gym task's own scorer gives. null: what the name says."""
    kind: Kind | None = None
    """Kind of the held-out conversations that are its items; null: its items are in data."""
    data: str | None = None
    """A benchmark's file, folder or glob (BFCL, GSM8K, IFEval, MMLU), its place on a hub (such as
    hf://openai/gsm8k?subset=main&split=test) or its name (gsm8k, mmlu, ifeval), or
    gym://task?size=&seed=; null: held-out conversations."""
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
    decoding: Literal["greedy", "sampled"] = "greedy"
    """greedy: the likeliest token each time; sampled: tokens are drawn, from a seed, so that answers repeat."""
    samples: int = Field(1, ge=1, le=64)
    """Answers to each item; an item's score is their mean. More than one where decoding is sampled."""
    temperature: float | None = Field(None, gt=0, le=5)
    """Of sampled decoding; null: what the base model's card recommends for the suite's mode."""
    top_p: float | None = Field(None, gt=0, le=1)
    """Share of probability that tokens are drawn from, likeliest first; null: as the card recommends, else all."""
    top_k: int | None = Field(None, ge=0, le=1_000_000)
    """Number of tokens that are drawn from, likeliest first; 0: all; null: as the card recommends, else all."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of sampled decoding. All models meet the same draws."""

    @model_validator(mode="after")
    def _knows_what_it_measures(self) -> Self:
        if self.measure is None and self.name not in get_args(Measure):
            raise ValueError(f"suite {self.name!r} needs measure, one of {', '.join(get_args(Measure))}")
        if (self.kind is None) == (self.data is None):
            raise ValueError(f"suite {self.name!r} needs either kind, of held-out conversations, or data")
        if self.kind is not None and self.measures in _OF_DATA:
            raise ValueError(f"suite {self.name!r} measures {self.measures}, which takes data")
        if self.decoding == "greedy" and self.samples > 1:
            raise ValueError(f"suite {self.name!r} wants {self.samples} samples, which are all alike unless decoding "
                             "is sampled")  # fmt: skip
        set_for_nothing = [name for name in ("temperature", "top_p", "top_k") if getattr(self, name) is not None]
        if self.decoding == "greedy" and set_for_nothing:
            raise ValueError(f"suite {self.name!r} has {set_for_nothing[0]}, which takes decoding: sampled")
        if self.decoding == "sampled" and self.measures == "held_out_loss":
            raise ValueError(f"suite {self.name!r} measures held_out_loss, for which nothing is decoded")
        if self.data is not None and self.measures == "held_out_loss":
            raise ValueError(f"suite {self.name!r} measures held_out_loss, which takes held-out conversations")
        return self

    @property
    def measures(self) -> Measure:
        """What is scored."""
        return self.measure or cast(Measure, self.name)


class Judge(Part):
    """A model that judges answers, behind an OpenAI-compatible API."""

    url: str
    """Address of the API, up to and with /v1."""
    model: str
    """Its name there."""
    key_variable: str = Field("OPENAI_API_KEY", pattern=r"^[A-Z_][A-Z0-9_]{0,63}$")
    """Environment variable that holds the key, where the evaluation runs. The key itself is never in a recipe."""
    at_once: int = Field(4, ge=1, le=256)
    """Requests under way together."""
    timeout: float = Field(120, gt=0, le=3600)
    """Seconds that one verdict may take."""

    @field_validator("url")
    @classmethod
    def _is_an_address(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is no http or https address")
        if parts.username or parts.password or parts.query:
            raise ValueError("holds more than an address; a key belongs in the environment")
        return url


class Evaluation(Part):
    """How base, champion and candidate are compared."""

    suites: tuple[Suite, ...]
    """The suites; at least one target."""
    backend: Backend = "transformers"
    """transformers: one loaded base, on a GPU or without; vllm: a server of vLLM on this machine, with the adapters,
    where there is the vllm command."""
    batch_size: int = Field(16, ge=1, le=1024)
    """Prompts of 1,024 tokens, answer included, that are generated together; of short ones up to four times as many."""
    rotate: bool = True
    """Draw a suite's items anew from the held-out split whenever that has changed, so that no test set is worn out;
    false: keep to the same items, which spares evaluating the champion on new ones."""

    judge: Judge | None = None
    """Who judges in suites that measure judge."""

    @model_validator(mode="after")
    def _has_a_target(self) -> Self:
        names = [suite.name for suite in self.suites]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"suite {doubled[0]!r} appears more than once")
        if self.judge is None and (judged := [suite.name for suite in self.suites if suite.measures == "judge"]):
            raise ValueError(f"suite {judged[0]!r} measures judge, and evaluation.judge is not set")
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
