"""Near-duplicates: MinHash to find candidates, exact Jaccard to decide.

Texts are compared as sets of runs of `SHINGLE` words. Two templated prompts that differ in a number or a name
share few such runs, so they stay apart; a copy with a changed sentence or a new signature shares most. Candidates
come from MinHash signatures cut into bands (Broder 1997; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets,
ch. 3), wide enough that a pair at the threshold is found with probability `RECALL`; every candidate is then
checked on the sets themselves, so no two texts below the threshold are ever taken for twins.
"""

from __future__ import annotations

from math import ceil, log

import numpy as np
import polars as pl

from tasks.quality.words import Words, ngrams

SHINGLE = 5
RECALL = 0.99
BAND_ROWS = 6
NEIGHBOURS = 32
CROWD = 64
CROWD_NEIGHBOURS = 4
_PAIRS = 20_000


class Bands:
    """The band keys of rows, taken block by block; a row without a word has none."""

    def __init__(self, threshold: float, seed: int = 1) -> None:
        # A band of r rows agrees with probability threshold**r; enough bands make it RECALL that one does.
        self._count = ceil(log(1 - RECALL) / log(1 - min(threshold, 0.999) ** BAND_ROWS))
        self._seed = seed
        mixing = np.random.Generator(np.random.PCG64(seed))
        self._factors = mixing.integers(1, 2**63, BAND_ROWS, dtype=np.uint64) | np.uint64(1)

    def of(self, rows: Words) -> np.ndarray:
        """Keys (u64) of shape (rows, bands); 0 for a row without a word."""
        from rensa import RMinHash

        keys = np.zeros((rows.rows, self._count), np.uint64)
        for first, block in rows.blocks():
            shingles, offsets = ngrams(block, SHINGLE, edges=True)
            matrix = RMinHash.digest_matrix_from_flat_token_hashes(
                shingles, offsets.astype(np.uint64), self._count * BAND_ROWS, self._seed
            )
            signature = np.array(matrix.to_rows(), np.uint32).reshape(block.rows, self._count, BAND_ROWS)
            mixed = (signature * self._factors).sum(axis=2, dtype=np.uint64)
            mixed = (mixed ^ (mixed >> np.uint64(31))) | np.uint64(1)
            keys[first : first + block.rows] = np.where((block.lengths > 0)[:, None], mixed, np.uint64(0))
        return keys


def candidates(keys: np.ndarray) -> np.ndarray:
    """Pairs of rows (n, 2; the lower row first) that agree in a band.

    Not every pair of a bucket is named, or a page of boilerplate would cost its square: each row is paired with
    the bucket's first and with its next `NEIGHBOURS`, in a bucket above `CROWD` rows its next `CROWD_NEIGHBOURS`.
    """
    found = np.zeros(0, np.uint64)
    for band in keys.T:
        order = np.argsort(band, kind="stable")
        order = order[np.searchsorted(band[order], 1) :]
        key = band[order]
        starts = np.flatnonzero(np.concatenate([[True], key[1:] != key[:-1]])) if len(key) else np.zeros(0, np.int64)
        sizes = np.diff(np.append(starts, len(key)))
        heads, of_size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
        pairs = [_packed(order[heads], order)]
        for step in range(1, min(NEIGHBOURS, int(sizes.max(initial=1)) - 1) + 1):
            same = key[step:] == key[:-step]
            if step > CROWD_NEIGHBOURS:
                same &= of_size[step:] <= CROWD
            pairs.append(_packed(order[:-step][same], order[step:][same]))
        found = np.unique(np.concatenate([found, *pairs]))
    low, high = found >> np.uint64(32), found & np.uint64(0xFFFFFFFF)
    return np.stack([low, high], axis=1).astype(np.int64)[low != high]


def _packed(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    low, high = np.minimum(a, b).astype(np.uint64), np.maximum(a, b).astype(np.uint64)
    return (low << np.uint64(32)) | high


def jaccard(rows: Words, pairs: np.ndarray) -> np.ndarray:
    """Exact Jaccard similarity of the shingle sets of pairs of rows (n, 2)."""
    result = np.zeros(len(pairs))
    for first in range(0, len(pairs), _PAIRS):
        part = pairs[first : first + _PAIRS]
        needed, at = np.unique(part, return_inverse=True)
        shingles, offsets = ngrams(rows.take(needed), SHINGLE, edges=True)
        row = np.repeat(np.arange(len(needed)), np.diff(offsets))
        sets = pl.DataFrame({"row": row, "shingle": shingles}).unique().group_by("row").agg("shingle")
        every = pl.DataFrame({"row": np.arange(len(needed))})
        set_of = every.join(sets, on="row", how="left", maintain_order="left")["shingle"].fill_null([])
        at = at.reshape(part.shape)
        counts = pl.DataFrame({"a": set_of.gather(at[:, 0]), "b": set_of.gather(at[:, 1])}).select(
            shared=pl.col("a").list.set_intersection("b").list.len().cast(pl.Float64),
            total=pl.col("a").list.len() + pl.col("b").list.len(),
        )
        shared, total = counts["shared"].to_numpy(), counts["total"].to_numpy()
        result[first : first + _PAIRS] = shared / np.maximum(total - shared, 1)
    return result


def near_pairs(
    rows: Words, keys: np.ndarray, threshold: float, *, across: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pairs of rows (n, 2) that are at least `threshold` alike, and how alike they are.

    With `across`, only pairs of one of the first so many rows and one of the others.
    """
    pairs = candidates(keys)
    if across is not None:
        pairs = pairs[(pairs[:, 0] < across) & (pairs[:, 1] >= across)]
    alike = jaccard(rows, pairs)
    return pairs[alike >= threshold], alike[alike >= threshold]


def near_duplicates(rows: Words, keys: np.ndarray, threshold: float, left: np.ndarray | None = None) -> pl.DataFrame:
    """The rows to set aside, as (`row`, `twin`: u32, `jaccard`: f64); `rows` come best-ranked first.

    `left`: the rows that are compared, in ascending order, by default all.

    A row goes when it is near a better-ranked row that stays, so each removal has a twin in the data that is
    at least `threshold` like it, and chains of small changes do not carry a whole source away.
    """
    pairs = candidates(keys if left is None else keys[left])
    if left is not None:
        pairs = left[pairs].astype(np.int64)
    alike = jaccard(rows, pairs)
    pairs, alike = pairs[alike >= threshold], alike[alike >= threshold]
    twins = _leaders(pairs, alike)
    # In a crowded bucket a row may have met only rows that go: let it meet the rows that these go for.
    met = {(leader, high) for low, high in pairs.tolist() if (leader := twins.get(low, (high, 0.0))[0]) != high}
    met -= set(map(tuple, pairs.tolist()))
    if met:
        more = np.array(sorted(met), np.int64)
        near = jaccard(rows, more)
        pairs = np.concatenate([pairs, more[near >= threshold]])
        twins = _leaders(pairs, np.concatenate([alike, near[near >= threshold]]))
    ordered = sorted((row, twin, near) for row, (twin, near) in twins.items())
    schema = {"row": pl.UInt32, "twin": pl.UInt32, "jaccard": pl.Float64}
    return pl.DataFrame(ordered, schema=schema, orient="row")


def _leaders(pairs: np.ndarray, alike: np.ndarray) -> dict[int, tuple[int, float]]:
    """For each row that goes, the best-ranked row that stays and is near it."""
    gone: dict[int, tuple[int, float]] = {}
    order = np.lexsort((pairs[:, 0], pairs[:, 1]))
    for (low, high), near in zip(pairs[order].tolist(), alike[order].tolist(), strict=True):
        if low not in gone and high not in gone:
            gone[high] = (low, near)
    return gone
