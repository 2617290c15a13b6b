"""How conversations become splits."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from tasks.recipe.part import Part

ShareMeasure = Literal["supervised_tokens", "tokens", "rows"]


class Mixture(Part):
    """How the conversations become splits."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the order and of the choice of rows where a source has more than its share."""
    test: float = Field(0.15, gt=0, lt=0.5)
    """Share of the prompts that are held out for evaluation, by hash of the prompt."""
    validation: float = Field(0.05, ge=0, lt=0.5)
    """Share of the prompts that are held out for the loss during training, by hash of the prompt."""
    method: Literal["fixed", "proportional", "temperature"] = "fixed"
    """Where the shares of the sources come from: fixed: their share fields; proportional: what they have after
    filtering; temperature: that to the power of 1 / temperature."""
    temperature: float = Field(2.0, ge=1, le=100)
    """method temperature: 1 is proportional; the larger, the nearer to equal shares."""
    measure: ShareMeasure = "supervised_tokens"
    """What shares are measured in: supervised tokens (those that the loss is computed on), tokens or rows."""
    reasoning_share: float | None = Field(None, gt=0, lt=1)
    """Share of all reasoning sources together, in the measure; within it and within the rest, sources keep their
    proportions; null: what their shares come to."""
    repeats: int = Field(1, ge=1, le=100)
    """Most epochs of a source within the training split: how often its rows may come, so that a small source does not
    limit the others."""
    rows: int | None = Field(None, ge=1)
    """Most rows in the training split; null: all that the shares allow."""
    min_rows: int = Field(1, ge=1)
    """Fewest rows in the training split; with fewer, the night stops."""
    same_prompt: Literal["first", "all"] = "first"
    """Conversations of one kind that ask the same and get other answers: first keeps the best-ranked source's
    first one and sets the others aside; all keeps them, in one split."""
    near_duplicates: float | None = Field(0.8, ge=0.3, le=1)
    """Jaccard similarity, of the runs of five words in two conversations, from which the worse-ranked one is set
    aside, and from which two prompts may not be in different splits; null: only exact duplicates are."""
    contamination_ngram: int | None = Field(13, ge=4, le=64)
    """Length, in words, of the runs that a training conversation may not share with a held-out question; null: off."""
    contamination_overlap: float = Field(0.5, gt=0, le=1)
    """Share of a held-out question's words, covered by such runs, from which a training conversation is set aside."""
    benchmarks: tuple[str, ...] = ()
    """Files of benchmark questions (JSON, JSON Lines, Parquet, CSV) that training may not see, beside those of the
    evaluation suites; path#column names the column."""
