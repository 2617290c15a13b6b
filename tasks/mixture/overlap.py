"""Overlap of training rows with what is held out: found, and found to be gone."""

from __future__ import annotations

import numpy as np
import polars as pl

from tasks.mixture.index import Index
from tasks.quality import Bands, Words, contaminated, near_pairs, opened_with, opening_hashes
from tasks.recipe import Mixture

_PASSES = 8
_FOUND = pl.Schema({"row": pl.UInt32, "item": pl.Int64, "how": pl.String, "degree": pl.Float64})


def overlaps(index: Index, train: pl.Series, items: Words, mixture: Mixture) -> pl.DataFrame:
    """Training rows that give an item away, as (row, item, how, degree), one line a row.

    `train`: rows of the index; `items`: the words of each question. `how`: "opens with", "covers" (runs of words in
    common) or "is near"; `degree`: share of the question covered, or Jaccard similarity of the questions.
    """
    every = opening_hashes(items, np.arange(items.rows))
    asked = pl.DataFrame({"item": np.arange(items.rows), "opening": every, "words": items.lengths})
    asked = asked.filter(pl.col("words") > 0)
    turns = index.openings().join(train.to_frame("row"), on="row", how="semi")
    opens = opened_with(turns.filter(pl.col("words") > 0).drop("words"), asked)
    found = [opens.select("row", "item", how=pl.lit("opens with"), degree=pl.lit(1.0)).cast(_FOUND)]
    if mixture.contamination_ngram:
        rows = _left(train, found)
        covers = contaminated(
            index.said, items, rows=rows, ngram=mixture.contamination_ngram, overlap=mixture.contamination_overlap
        )
        found.append(covers.select("row", "item", how=pl.lit("covers"), degree="covered").cast(_FOUND))
    if mixture.near_duplicates is not None:
        # A pass may miss a pair; a pass with other hash functions that finds none says that there is none to find.
        for seed in range(1, _PASSES + 1):
            near = _near(index, _left(train, found), items, mixture.near_duplicates, seed)
            if near.is_empty():
                break
            found.append(near)
        else:
            raise AssertionError(f"after {_PASSES} passes there are still near twins of held-out prompts in training")
    return pl.concat(found)


def _left(train: pl.Series, found: list[pl.DataFrame]) -> np.ndarray:
    return train.to_frame("row").join(pl.concat(found), on="row", how="anti", maintain_order="left")["row"].to_numpy()


def _near(index: Index, rows: np.ndarray, items: Words, threshold: float, seed: int) -> pl.DataFrame:
    both = items.then(index.asked.take(rows))
    pairs, alike = near_pairs(both, Bands(threshold, seed).of(both), threshold, across=items.rows)
    return (
        pl.DataFrame({"row": rows[pairs[:, 1] - items.rows], "item": pairs[:, 0], "degree": alike})
        .sort("row", "degree", "item", descending=[False, True, False])
        .unique("row", keep="first", maintain_order=True)
        .select("row", "item", how=pl.lit("is near"), degree="degree")
        .cast(_FOUND)
    )
