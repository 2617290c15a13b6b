"""Overlap of training rows with what is held out: found, and found to be gone."""

from __future__ import annotations

import numpy as np
import polars as pl

from tasks.mixture.index import Index
from tasks.quality import Prefixes, contaminated, near_twins, opened_with, opening_hashes
from tasks.recipe import Mixture

FOUND = pl.Schema({"row": pl.UInt32, "item": pl.UInt32, "how": pl.String, "degree": pl.Float64, "at": pl.Int64})


def overlaps(
    index: Index, train: pl.Series, items: np.ndarray, prompts: Prefixes | None, mixture: Mixture
) -> pl.DataFrame:
    """Training rows that give an item away, as FOUND, one line a row.

    `train`: rows of the index; `items`: rows of `index.asked`, questions of held-out rows and of benchmarks; `prompts`:
    of `index.asked`. `how`: "opens with", "covers" (runs of words in common) or "is near"; `degree`: share of the
    question covered, or Jaccard similarity of the questions; `at`: the word of the question at which what they share
    begins with.
    """
    words = index.asked.take(items)
    every = opening_hashes(words, np.arange(words.rows), words.lengths)
    asked = pl.DataFrame({"item": items.astype(np.uint32), "opening": every, "words": words.lengths})
    turns = index.openings.join(train.to_frame("row"), on="row", how="semi")
    opens = opened_with(turns, asked.filter(pl.col("words") > 0))
    found = [opens.select("row", "item", how=pl.lit("opens with"), degree=pl.lit(1.0), at=pl.lit(0))]
    if mixture.contamination_ngram:
        covers = contaminated(
            index.said,
            words,
            rows=train.to_numpy(),
            ngram=mixture.contamination_ngram,
            overlap=mixture.contamination_overlap,
        )
        item = pl.Series("item", items.astype(np.uint32)).gather(covers["item"])
        found.append(covers.select("row", item, how=pl.lit("covers"), degree="covered", at="at"))
    if prompts is not None:
        rows, others = np.zeros((2, index.asked.rows), bool)
        rows[train.to_numpy()], others[items] = True, True
        near = near_twins(prompts, rows, others)
        found.append(near.select("row", item="twin", how=pl.lit("is near"), degree="jaccard", at=pl.lit(0)))
    every_way = pl.concat([one.cast(FOUND) for one in found])
    return every_way.unique("row", keep="first", maintain_order=True).sort("row")
