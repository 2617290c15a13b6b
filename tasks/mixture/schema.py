"""What mixing leaves in the store: tokenised splits and the record of how they came about."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tasks.store import RowManifest


class Split(BaseModel):
    """One split: its size, and the sha256 over its row ids in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    tokens: int
    supervised_tokens: int
    digest: str


class SharePart(BaseModel):
    """One source's part of the training split; shares are fractions of supervised tokens."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: float
    reached: float
    rows: int
    supervised_tokens: int


class TokenisedMixture(RowManifest):
    """Splits ready to train on and to evaluate with.

    Files: `train.parquet`, `validation.parquet`, `test.parquet` (schema CONVERSATION, and `input_ids`:
    list of i32, `loss_mask`: list of bool), `set_aside.parquet` (row_id, source, reason, detail) and
    `composition.png` and `.svg`. `rows_out` counts the rows of all three splits. `limited_by`: the source
    that is used up, or "mixture.rows", whichever keeps the training split from being larger; None when no
    row was set aside for its source's share. `chat_template` and `tokenizer`: digests, of what the tokens
    were made with.
    """

    kind = "mixture"

    recipe: str
    splits: dict[str, Split]
    shares: dict[str, SharePart]
    limited_by: str | None = None
    chat_template: str
    tokenizer: str
