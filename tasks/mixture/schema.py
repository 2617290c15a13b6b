"""What mixing leaves in the store: tokenised splits and the record of how they came about."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from tasks.recipe import ShareMeasure
from tasks.store import RowManifest


class Split(BaseModel):
    """One split: its size, and the sha256 over its row ids in order."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    tokens: int
    supervised_tokens: int
    digest: str


class SharePart(BaseModel):
    """One source's part of the training split.

    `asked`, `reached`: fractions, in the mixture's measure; `rows`: with repetitions; `amount`: in the measure;
    `epochs`: how often the source's training rows come, 1 being all of them once.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: float
    reached: float
    rows: int
    amount: int
    epochs: float = 1.0


class TokenisedMixture(RowManifest):
    """Splits ready to train on and to evaluate with.

    Files: `train.parquet`, `validation.parquet`, `test.parquet` (schema CONVERSATION, and `input_ids`:
    list of i32, `loss_mask`: list of bool, `repeat`: i32, from 1, above it where a row comes again),
    `set_aside.parquet` (row_id, source, reason, detail), `clusters.parquet` (cluster, row_id, source, kept: the rows
    that say the same, exactly or nearly), `composition.png`, `.svg` and `.html`, and `docs/` (Great Expectations Data
    Docs).

    `rows_out` counts each row of the three splits once, `repeated` how often rows come again. `measure`: what shares
    are measured in. `limited_by`: the source that is used up, or "mixture.rows", whichever keeps the training split
    from being larger; None when no row was set aside for its source's share. `clusters`: how many there are, rows in
    them, rows in the largest. `chat_template` and `tokenizer`: digests, of what the tokens were made with.
    """

    kind = "mixture"

    recipe: str
    splits: dict[str, Split]
    shares: dict[str, SharePart]
    measure: ShareMeasure = "supervised_tokens"
    limited_by: str | None = None
    repeated: int = 0
    clusters: dict[str, int] = Field(default_factory=dict)
    chat_template: str
    tokenizer: str

    @model_validator(mode="after")
    def _holds_its_rows(self) -> Self:
        written = sum(split.rows for split in self.splits.values())
        if self.splits and written != self.rows_out + self.repeated:
            raise ValueError(f"{written} rows are in the splits, not {self.rows_out} and {self.repeated} repeated")
        return self
