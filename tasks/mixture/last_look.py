"""The last look: nothing that is held out has a twin in the training split, and no validation row one in the test
split, whatever the steps before may have missed.

What is held out is read back from the files that were written and looked up anew, by counting (tasks.quality
`counted_twins`), among the rows that the files of the other splits name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from tasks.mixture.index import Index, spoken
from tasks.quality import Words, counted_twins, questions, said

_BATCH = 8_192
LEAKS = pl.Schema({"row_id": pl.String, "held_out": pl.String, "how": pl.String})


class _Held(NamedTuple):
    """What a written split holds out: `rows` (row_id, question), and the words of each row and of its user."""

    rows: pl.DataFrame
    said: list[Words]
    asked: list[Words]


def leaks(work: Path, index: Index, threshold: float | None) -> pl.DataFrame:
    """Training rows in the split files of `work` that have a twin in another split, and validation rows that have one
    in the test split, as LEAKS; empty when all is well.

    `how`: same conversation, same question, near conversation or near question, from a Jaccard similarity of
    `threshold` on; None: only what is the same is looked for.
    """
    test, validation = _held_out(work, "test"), _held_out(work, "validation")
    train = pl.read_parquet(work / "train.parquet", columns=["row_id"])
    found = [
        *_twins(index, train, (test, validation), threshold),
        *_twins(index, validation.rows.select("row_id"), (test,), threshold),
    ]
    return pl.concat([one.cast(LEAKS) for one in found])


def _twins(index: Index, ids: pl.DataFrame, held: Sequence[_Held], threshold: float | None) -> Iterator[pl.DataFrame]:
    rows = index.rows.join(ids, on="row_id", how="semi")
    if rows["row_id"].n_unique() != ids["row_id"].n_unique():
        raise AssertionError("a split holds rows that no source has")
    out = pl.concat([part.rows for part in held])
    for key, what in (("row_id", "conversation"), ("question", "question")):
        yield rows.join(out, on=key, suffix="_held").select(
            "row_id", held_out="row_id" if key == "row_id" else "row_id_held", how=pl.lit(f"same {what}")
        )
    if threshold is None:
        return
    looked_at = np.zeros(index.asked.rows, bool)
    looked_at[rows["row"].to_numpy()] = True
    turns, asked = ([words for part in held for words in getattr(part, name)] for name in ("said", "asked"))
    for what, items, among in (("conversation", turns, index.said), ("question", asked, index.asked)):
        near = counted_twins(Words.joined(items), among, threshold, looked_at[: among.rows])
        row_ids = index.rows["row_id"].gather(near["row"]).alias("row_id")
        held_out = out["row_id"].gather(near["twin"]).alias("held_out")
        yield pl.DataFrame([row_ids, held_out]).with_columns(how=pl.lit(f"near {what}"))


def _held_out(work: Path, split: str) -> _Held:
    held = _Held(pl.DataFrame(schema={"row_id": pl.String, "question": pl.UInt64}), [], [])
    rows = [held.rows]
    with pq.ParquetFile(work / f"{split}.parquet") as file:
        for some in file.iter_batches(_BATCH, columns=["row_id", "messages"]):
            batch = pl.DataFrame(pl.from_arrow(some))
            rows.append(batch.select("row_id", question=pl.Series(questions(batch), dtype=pl.UInt64)))
            words, asked, _ = spoken(said(batch))
            held.said.append(words)
            held.asked.append(asked)
    return held._replace(rows=pl.concat(rows))
