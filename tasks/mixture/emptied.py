"""A source that has lost all its rows on the way to the training split: what took them, and what helps."""

from __future__ import annotations

import polars as pl

from tasks.errors import BadInput

_HELD_OUT = "held out for test or validation"
# By what the reason for which most rows were set aside says; the first that fits.
_WAYS_OUT = {
    "benchmark question": "It holds questions of a benchmark: take that one out of mixture.benchmarks or "
    "evaluation.suites if training may see it, or give the source other rows",
    "covers": "Rows of one template cover each other's questions: raise mixture.contamination_overlap or "
    "mixture.contamination_ngram, or set the latter to null",
    "near": "Rows of one template are near each other: raise mixture.near_duplicates, or set it to null",
    "other answer": "Its rows ask the same: set mixture.same_prompt to all, or give it rows that ask something else",
    "duplicate": "A better-ranked source, or the source itself, has the same rows: give it rows of its own",
    "opens with": "Its rows begin with the same questions: give it rows that ask something else",
    _HELD_OUT: "Give it more rows, or lower mixture.test and mixture.validation",
}


def something_left(rows: pl.DataFrame, left: pl.DataFrame, aside: pl.DataFrame) -> None:
    """Raise BadInput for the first source of `rows` (row, source) that has no row in `left` (source).

    `aside`: (row, reason) of the rows set aside so far; what is in neither is held out.
    """
    here = left["source"].unique()
    for source in rows["source"].unique(maintain_order=True):
        if source in here:
            continue
        mine = rows.filter(source=source).join(aside, on="row", how="left")
        reasons = mine.group_by(pl.col("reason").fill_null(_HELD_OUT)).len().sort("len", "reason", descending=True)
        most = reasons["reason"][0]
        raise BadInput(
            f"sources.{source}",
            f"{mine.height} rows",
            "has none left to train on: " + ", ".join(f"{count} {reason}" for reason, count in reasons.iter_rows()),
            f"{next(way for sign, way in _WAYS_OUT.items() if sign in most)}; or remove the source and raise the "
            "other shares.",
        )
