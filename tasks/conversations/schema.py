"""The conversation row: what every source is turned into, and the manifest of a gated source.

`row_id` is the first 32 hex characters of the sha256 of the canonical content (messages, tools and
kind), so the same conversation has the same id wherever it came from. `thinking` is a field of its
own, so that it can be rendered or left out by mode. Tool-call arguments and tool schemas are
canonical JSON (sorted keys, no spaces): a nested, ever-changing struct has no place in a column.
"""

from __future__ import annotations

from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, Field

from tasks.recipe import Kind
from tasks.store import RowManifest

MESSAGES = pl.List(
    pl.Struct(
        {
            "role": pl.String,  # system, user, assistant or tool
            "content": pl.String,
            "thinking": pl.String,
            "tool_calls": pl.List(pl.Struct({"name": pl.String, "arguments": pl.String})),
            "tool_call_id": pl.String,
        }
    )
)

CONVERSATION: dict[str, pl.DataType | type[pl.DataType]] = {
    "row_id": pl.String,
    "source": pl.String,
    "revision": pl.String,
    "source_row": pl.Int64,
    "kind": pl.String,
    "messages": MESSAGES,
    "tools": pl.String,
}


class Finding(BaseModel):
    """What one rule found in one source.

    `rows`: rows that break the rule; `share` of the source; `mostly`: the share that must keep it;
    `stops`: whether this stops the night; `row`: the number of one such row in the source, from 0; `example`: what
    it says there, shortened.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rule: str
    severity: Literal["critical", "warning", "info"]
    rows: int
    share: float
    mostly: float
    stops: bool
    explanation: str
    row: int | None = None
    example: str | None = None


class Conversations(RowManifest):
    """One source after the data gate.

    Files: `rows.parquet` and `segments/` (see segments.py), `quarantine.parquet` (rows set aside, with `reasons`:
    list of rule names, and `detail`), `changed.parquet` (rows that the recipe had redacted or truncated: source_row,
    row_id, `was` before, `change`), `profile.json` (the kept rows, counted), `docs/` (Great Expectations Data Docs).
    `changed`: rows by change. `answers`: assistant turns of the rows that pass; `trained_answers`: those of them that
    are trained, which are fewer where the chat template writes earlier turns otherwise than inference asks for them.
    """

    kind = "conversations"

    source: str
    snapshot: str
    row_kind: Kind
    format: str
    passed: bool
    findings: tuple[Finding, ...]
    changed: dict[str, int] = Field(default_factory=dict)
    answers: int
    trained_answers: int
    tokens: int
    supervised_tokens: int
    encoding: dict[str, Any] = Field(default_factory=dict)
