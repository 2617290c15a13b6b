"""The split: which conversations are held out.

**For ever.** The hash of its own prompt, and nothing else, says which split a conversation belongs to: BLAKE2b of what
the user says, normalised (tasks.quality `questions`), the same on any machine, whatever the seed, the
order or the other data. Nothing that arrives later can move it: it is in that split or set aside, never in another.
The test split is the lower end of the hash range and the validation split its upper end, so that changing the
size of one moves no conversation of the other. The bounds are the same for every kind, so that each kind is held out
in the same proportion, up to chance.

**Twins share a split.** Conversations that ask the same have the same hash. Prompts that are near one best-ranked
prompt form a cluster, and their hashes may disagree; a function of the data that moved one of them to the other's side
would move it back and forth as data come and go, from training into the test of a model that has seen it. So a
cluster takes the split of most of its rows (of as many, the smaller split), and its other rows are set aside. A row
that arrives and joins two clusters joins that of the better-ranked prompt; a training row which is then still
near a held-out prompt, of whatever cluster, is set aside too, and so is a validation row near a test prompt.
"""

from __future__ import annotations

import polars as pl

SPLITS = ("train", "validation", "test")
_SMALL_FIRST = {"test": 0, "validation": 1, "train": 2}


def split_of(questions: pl.Series, *, test: float, validation: float) -> pl.Series:
    """The split of each question's hash (u64): train, validation or test, in these shares of all questions."""
    at = pl.col("hash")
    top = 2**64 - 1
    return pl.DataFrame({"hash": questions}).select(
        split=pl.when(at < int(test * top))
        .then(pl.lit("test"))
        .when(at >= top - int(validation * top))
        .then(pl.lit("validation") if validation else pl.lit("train"))
        .otherwise(pl.lit("train"))
    )["split"]


def other_side(rows: pl.DataFrame, twins: pl.DataFrame) -> pl.DataFrame:
    """The rows to set aside because most of their cluster is in another split, as (row, twin, split).

    `rows`: row (u32), split; `twins`: TWINS, each row of a cluster but its first with that one. `twin` is the
    best-ranked row of the cluster that stays, and `split` where.
    """
    first = pl.concat([twins.select("row", cluster="twin"), twins.select(row="twin", cluster="twin")]).unique()
    members = rows.join(first, on="row").with_columns(small=pl.col("split").replace_strict(_SMALL_FIRST))
    sides = (
        members.group_by("cluster", "split", "small")
        .agg(pl.len(), twin=pl.col("row").min())
        .sort("cluster", "len", "small", descending=[False, True, False])
        .unique("cluster", keep="first", maintain_order=True)
        .select("cluster", "twin", side="split")
    )
    members = members.join(sides, on="cluster").filter(pl.col("split") != pl.col("side"))
    return members.select("row", "twin", split="side").sort("row")
