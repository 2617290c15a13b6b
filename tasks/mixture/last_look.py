"""The last look: nothing that is held out has a twin in the training split, whatever the steps before may have missed.

What is held out is read back from the files that were written and looked up anew, by counting (tasks.quality
`counted_twins`), among the rows that the training file names.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from tasks.mixture.index import Index, spoken
from tasks.mixture.split import SPLITS
from tasks.quality import Words, counted_twins, fingerprints, said

_BATCH = 8_192
LEAKS = pl.Schema({"row_id": pl.String, "held_out": pl.String, "how": pl.String})


def leaks(work: Path, index: Index, threshold: float | None) -> pl.DataFrame:
    """Training rows in the split files of `work` that have a twin in another split, as LEAKS; empty when all is well.

    `how`: same conversation, same question, near conversation or near question, from a Jaccard similarity of
    `threshold` on; None: only what is the same is looked for.
    """
    train = pl.read_parquet(work / "train.parquet", columns=["row_id"])
    rows = index.rows.join(train, on="row_id", how="semi")
    if rows["row_id"].n_unique() != train["row_id"].n_unique():
        raise AssertionError("the training split holds rows that no source has")
    held, turns, asked = [pl.DataFrame(schema={"row_id": pl.String, "question": pl.UInt64})], [], []
    for batch in _held_out(work):
        held.append(batch.select("row_id").hstack(fingerprints(batch).select("question")))
        words, questions, _ = spoken(said(batch))
        turns.append(words)
        asked.append(questions)
    out = pl.concat(held)
    found = [
        rows.join(out, on=key, suffix="_held").select(
            "row_id", held_out="row_id" if key == "row_id" else "row_id_held", how=pl.lit(f"same {what}")
        )
        for key, what in (("row_id", "conversation"), ("question", "question"))
    ]
    if threshold is not None:
        looked_at = np.zeros(index.asked.rows, bool)
        looked_at[rows["row"].to_numpy()] = True
        for what, items, among in (("conversation", turns, index.said), ("question", asked, index.asked)):
            near = counted_twins(Words.joined(items), among, threshold, looked_at[: among.rows])
            row_ids = index.rows["row_id"].gather(near["row"]).alias("row_id")
            held_out = out["row_id"].gather(near["twin"]).alias("held_out")
            found.append(pl.DataFrame([row_ids, held_out]).with_columns(how=pl.lit(f"near {what}")))
    return pl.concat(found).cast(LEAKS)


def _held_out(work: Path) -> Iterator[pl.DataFrame]:
    for split in SPLITS:
        if split != "train":
            with pq.ParquetFile(work / f"{split}.parquet") as file:
                for batch in file.iter_batches(_BATCH, columns=["row_id", "kind", "messages", "tools"]):
                    yield pl.DataFrame(pl.from_arrow(batch))
