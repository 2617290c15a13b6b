"""Near-duplicates, exactly: every pair of texts whose Jaccard similarity reaches a threshold, and no other.

Texts are compared as sets of shingles, runs of `SHINGLE` words that may hang over both ends. Two templated prompts
that differ in a number or a name share few of them, so they stay apart; a copy with a changed sentence or a new
signature shares most.

MinHash with banded lookup (Broder 1997; rensa and datasketch implement it) finds a pair with some probability and has
to compute hundreds of minima a row. Here a set-similarity join finds all of them, in less time, since nearly
every text has no twin and a single look says so:

1. A row more than 1 - t of whose shingles occur nowhere else in the data has no twin at threshold t. Most end here.
2. Order the shingles of a row from rare to common. Two sets that are t alike have one in common among the first
   |x| - ceil(t |x|) + 1 of each (prefix filter: Chaudhuri, Ganti and Kaushik 2006; Bayardo, Ma and Srikant 2007), and
   their sizes are within t of each other (Xiao et al., PPJoin, 2008).
3. A set is summed up in 256 bits, each the parity of the shingles that fall on it: the bits in which two sets differ
   are no more than the shingles in which they do (bitmap filter: Sandes, Teodoro and Melo 2017). That settles nearly
   all pairs of a crowd that shares a template; what is left is compared in full.

So precision and recall are 1 but for collisions of hashes of 44 bits and more. Rows are worked on in blocks: held in
memory are 32-bit sketches of so many shingles as one pass sorts, and the prefixes of the few rows that pass the first
step.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, log2

import numpy as np
import polars as pl

from tasks.quality.words import PAD, BitTable, Words, chunks, distinct, runs, sketches

SHINGLE = PAD + 1
_SORTED = 1 << 26  # sketches sorted at once; more shingles than that are counted in several passes
_LOOKED_UP = 1 << 16  # shingles looked up at once: what stays in a core's cache
_GLANCE = 0.6  # the share of what a row may miss is this part of the share that is looked at first
_RARITY = 20  # bits of the table of how common a shingle is
_CLASS = 4  # bits of a token that say so: the logarithm of how often it was seen
_TOKEN = 48  # bits of a token in all: a chunk of rows is small enough to number them with the others
_PAIRS = 4_096  # compared at once
_CANDIDATES = 1 << 22  # pairs named at once
_NEIGHBOURS = 4
_EPSILON = 1e-9

TWINS = pl.Schema({"row": pl.UInt32, "twin": pl.UInt32, "jaccard": pl.Float64})


@dataclass(frozen=True)
class Prefixes:
    """The rows that may have a twin, and the rare shingles by which two of them can meet.

    `token` (u64) and `row` (u32), sorted by both: an entry for each shingle in a row's prefix. `sizes` (i64): distinct
    shingles of each row, 0 for rows that were ruled out. `place` (u32): where the others have their bits in `parities`
    (u64, 4 a row).
    """

    words: Words
    threshold: float
    token: np.ndarray
    row: np.ndarray
    sizes: np.ndarray
    place: np.ndarray
    parities: np.ndarray

    @classmethod
    def of(cls, words: Words, threshold: float, looked_at: np.ndarray | None = None) -> Prefixes:
        """`looked_at` (bool, one a row): the rows that are compared, by default all; those without words have no
        twin."""
        among = words.lengths > 0
        if looked_at is not None:
            among &= looked_at
        counts = words.lengths + PAD
        alone = _alone(words, among, min(2 * (1 - threshold), 1.0))
        left = np.flatnonzero(among & (alone <= (1 - threshold) * counts + _EPSILON))
        sizes = np.zeros(words.rows, np.int64)
        seen = np.zeros(1 << _RARITY, np.int64)
        for part in chunks(left, counts, 1 << 20):
            seen += np.bincount(_shingles(words.take(part)) >> np.uint64(64 - _RARITY), minlength=1 << _RARITY)
        rarity = np.minimum(np.frexp(seen)[1], 2**_CLASS - 1).astype(np.uint8)
        tokens, rows, parities = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint32)], [np.zeros((0, 4), np.uint64)]
        for part in chunks(left, counts):
            token, local, size = _distinct(words.take(part), rarity)
            sizes[part] = size
            parities.append(_parities(token, local, len(part)))
            nth = np.arange(len(token)) - np.repeat(np.cumsum(size) - size, size)
            first = nth < np.repeat(size - _least(size, threshold) + 1, size)
            # A shingle that no other row has cannot bring two together.
            shared = np.flatnonzero(first & (token >> np.uint64(64 - _CLASS) > 1))
            tokens.append(token[shared])
            rows.append(part[local[shared]].astype(np.uint32))
        entries = pl.DataFrame({"token": np.concatenate(tokens), "row": np.concatenate(rows)}).sort("token", "row")
        entries = entries.filter(pl.len().over("token") > 1) if entries.height else entries
        token, row = (entries[name].to_numpy() for name in ("token", "row"))
        place = np.zeros(words.rows, np.uint32)
        place[left] = np.arange(len(left))
        return cls(words, threshold, token, row, sizes, place, np.concatenate(parities))

    def entries(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(first place of its group, row) of the entries of these rows (bool, one a row), groups of one left out."""
        of = rows[self.row]
        token, row = self.token[of], self.row[of].astype(np.int64)
        starts = np.flatnonzero(np.concatenate([[True], token[1:] != token[:-1]])) if len(token) else np.zeros(0, int)
        sizes = np.diff(np.append(starts, len(token)))
        several = np.repeat(sizes > 1, sizes)
        sizes = sizes[sizes > 1]
        return np.repeat(np.cumsum(sizes) - sizes, sizes), row[several]

    def possible(self, pairs: np.ndarray) -> np.ndarray:
        """Whether pairs of rows (n, 2) may be near each other, by their sizes and bits alone (bool)."""
        low, high = pairs.T
        one, other = self.sizes[low], self.sizes[high]
        may = np.minimum(one, other) >= self.threshold * np.maximum(one, other) - _EPSILON
        at = self.place[pairs[may]]
        apart = np.bitwise_count(self.parities[at[:, 0]] ^ self.parities[at[:, 1]]).sum(axis=1, dtype=np.int64)
        # J >= t of sets of a and b elements leaves them no more than (1 - t) / (1 + t) (a + b) to differ in.
        most = (1 - self.threshold) / (1 + self.threshold) * (one + other)[may] + _EPSILON
        may[may] = apart <= most
        return may


def near_duplicates(prefixes: Prefixes, looked_at: np.ndarray | None = None) -> pl.DataFrame:
    """The rows to set aside, as TWINS; rows come best-ranked first, and `looked_at` narrows them further.

    A row goes when it is near a better-ranked row that stays. So no two rows that stay are near each other, each
    removal has a twin in the data, and chains of small changes do not carry a whole source away.
    """
    every = np.ones(len(prefixes.sizes), bool) if looked_at is None else looked_at
    known = _Pairs(prefixes)
    gone: dict[int, tuple[int, float]] = {}
    # Copies of one page meet in every shingle, and naming all their pairs would cost the square of the crowd. Most
    # of it goes by its first row; all pairs are then named among the rows that are left, until none is new.
    whole = False
    while True:
        staying = every.copy()
        staying[list(gone)] = False
        found = sum(known.add(pairs) for pairs in _meetings(*prefixes.entries(staying), whole=whole))
        if found:
            gone = known.leaders()
        elif whole:
            break
        whole = whole or not found
    ordered = sorted((row, twin, near) for row, (twin, near) in gone.items())
    return pl.DataFrame(ordered, schema=TWINS, orient="row")


def near_twins(prefixes: Prefixes, rows: np.ndarray, others: np.ndarray) -> pl.DataFrame:
    """For each of the `rows` that is near one of the `others` (bool, one a row, apart from each other) such a twin."""
    open_rows = rows.copy()
    known = _Pairs(prefixes)
    for whole in (False, True):
        for pairs in _meetings(*prefixes.entries(open_rows | others), whole=whole, first=others):
            low, high = pairs.T
            pairs = pairs[(open_rows[low] & others[high]) | (others[low] & open_rows[high])]
            known.add(pairs)
        near = known.near
        row = np.where(rows[near[:, 0]], near[:, 0], near[:, 1])
        open_rows[row] = False
    told = pl.DataFrame({"row": row, "twin": near.sum(axis=1) - row, "jaccard": known.alike}).cast(TWINS)
    return told.sort("row", "jaccard", "twin", descending=[False, True, False]).unique(
        "row", keep="first", maintain_order=True
    )


def counted_twins(items: Words, rows: Words, threshold: float, looked_at: np.ndarray) -> pl.DataFrame:
    """The pairs of a row that is looked at (bool, one a row) and an item that are near, as TWINS (`twin`: the item).

    It counts what two sets have in common and shares no step with `Prefixes`, whose results are checked with it.
    """
    candidates = _mostly_in(items, rows, threshold, np.flatnonzero(looked_at & (rows.lengths > 0)))
    asked = np.flatnonzero(items.lengths > 0)
    found = [pl.DataFrame(schema=TWINS)]
    for part in chunks(candidates, rows.lengths + PAD):
        some = rows.take(part)
        token, row, size = _distinct(some)
        sets = pl.DataFrame({"token": token, "row": row.astype(np.uint32)})
        for near in chunks(_mostly_in(some, items, threshold, asked), items.lengths + PAD):
            token, item, length = _distinct(items.take(near))
            both = sets.join(pl.DataFrame({"token": token, "item": item}), on="token").group_by("row", "item").len()
            row, item, shared = (both[name].to_numpy() for name in ("row", "item", "len"))
            alike = shared / (size[row] + length[item] - shared)
            pairs = pl.DataFrame({"row": part[row], "twin": near[item], "jaccard": alike})
            found.append(pairs.filter(pl.col("jaccard") >= threshold).cast(TWINS))
    return pl.concat(found).sort("row", "twin")


def _mostly_in(items: Words, rows: Words, threshold: float, looked_at: np.ndarray) -> np.ndarray:
    """Those of the rows looked at of whose shingles `threshold` may be the items'; none is left out in error.

    A row has no more than 1 - `threshold` to miss, so most are known to miss too many from every few of them.
    """
    table, most = BitTable(sketches(items.hashes, SHINGLE)), (1 - threshold) * (rows.lengths + PAD) + _EPSILON
    for step in sorted({max(int(_GLANCE / max(1 - threshold, 0.1)), 1), 1}, reverse=True):
        may, wanted = [np.zeros(0, np.int64)], np.zeros(rows.rows, bool)
        wanted[looked_at] = True
        for part, block in _blocks(rows, looked_at):
            found = sketches(block.hashes, SHINGLE, step)
            missing = np.flatnonzero(~table.has(found))
            row = np.repeat(np.arange(block.rows, dtype=np.uint64), block.lengths + PAD)[::step]
            # What a row says twice counts once.
            keyed = np.sort(row.take(missing) << np.uint64(32) | found.take(missing))
            once = keyed.take(np.flatnonzero(np.append(True, keyed[1:] != keyed[:-1])[: len(keyed)]))
            fewest = np.bincount((once >> np.uint64(32)).astype(np.int64), minlength=len(part))
            may.append(part[(fewest <= most[part]) & wanted[part]])
        looked_at = np.concatenate(may)
    return looked_at


def _blocks(words: Words, rows: np.ndarray) -> Iterator[tuple[np.ndarray, Words]]:
    """Rows and their words, block by block; where nearly all rows are asked for, all of them: copying costs more."""
    if 2 * len(rows) > words.rows:
        for first, block in words.blocks():
            yield np.arange(first, first + block.rows), block
    else:
        for part in chunks(rows, words.lengths + PAD, _LOOKED_UP):
            yield part, words.take(part)


class _Pairs:
    """Pairs that were compared, so that none is twice, and those of them that are near."""

    def __init__(self, prefixes: Prefixes) -> None:
        self._prefixes = prefixes
        self._compared = np.zeros(0, np.uint64)
        self.near, self.alike = np.zeros((0, 2), np.int64), np.zeros(0)

    def add(self, pairs: np.ndarray) -> int:
        """Compare these pairs (n, 2; the lower row first); how many were near and not known."""
        pairs = pairs[self._prefixes.possible(pairs)]
        packed = distinct(pairs[:, 0].astype(np.uint64) << np.uint64(32) | pairs[:, 1].astype(np.uint64))
        at = np.searchsorted(self._compared, packed)
        at[at == len(self._compared)] = 0
        packed = packed[self._compared[at] != packed] if len(self._compared) else packed
        self._compared = np.sort(np.concatenate([self._compared, packed]))
        pairs = np.stack([packed >> np.uint64(32), packed & np.uint64(0xFFFFFFFF)], axis=1).astype(np.int64)
        alike = jaccard(self._prefixes.words, pairs)
        near = alike >= self._prefixes.threshold
        self.near = np.concatenate([self.near, pairs[near]])
        self.alike = np.concatenate([self.alike, alike[near]])
        return int(near.sum())

    def leaders(self) -> dict[int, tuple[int, float]]:
        """For each row that goes, the best-ranked row that stays and is near it."""
        gone: dict[int, tuple[int, float]] = {}
        order = np.lexsort((self.near[:, 0], self.near[:, 1]))
        lows, highs = self.near[order].T.tolist()
        for low, high, alike in zip(lows, highs, self.alike[order].tolist(), strict=True):
            if low not in gone and high not in gone:
                gone[high] = (low, alike)
        return gone


def _meetings(
    begin: np.ndarray, row: np.ndarray, *, whole: bool, first: np.ndarray | None = None
) -> Iterator[np.ndarray]:
    """Pairs of rows (n, 2; the lower row first) that meet in a group of entries, so many at a time.

    `begin`: where each entry's group begins. Without `whole`, each row meets the first of its group (the first of
    `first`, where that is given) and its next few; with it, everyone in the group.
    """
    place = np.arange(len(row))
    if not whole:
        heads = row[begin]
        if first is not None:
            at = np.where(first[row], place, len(row))
            earliest = np.minimum.reduceat(at, np.unique(begin)) if len(row) else at
            heads = row[np.minimum(np.repeat(earliest, np.diff(np.append(np.unique(begin), len(row)))), len(row) - 1)]
        yield _ordered(heads, row)
    most = int((place - begin).max(initial=0))
    batch: list[np.ndarray] = []
    for step in range(1, (most if whole else min(most, _NEIGHBOURS)) + 1):
        if step & (step - 1) == 0:  # at each power of 2: groups that have no two rows so far apart are done
            sizes = np.unique(begin, return_counts=True)[1]
            large = np.repeat(sizes > step, sizes)
            sizes = sizes[sizes > step]
            begin, row = np.repeat(np.cumsum(sizes) - sizes, sizes), row[large]
        same = begin[step:] == begin[:-step]
        batch.append(_ordered(row[:-step][same], row[step:][same]))
        if sum(map(len, batch)) > _CANDIDATES:
            yield np.concatenate(batch)
            batch = []
    if batch:
        yield np.concatenate(batch)


def _ordered(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.stack([np.minimum(a, b), np.maximum(a, b)], axis=1)[a != b]


def _alone(words: Words, among: np.ndarray, share: float) -> np.ndarray:
    """How many shingles of each row surely occur once in all of `among` (bool, one a row): some, never too many.

    What has the sketch of another counts as common. Only this share of all shingles is looked at, the same in every
    row: where twice what a row has to have may be found, half of it is.
    """
    counts = words.lengths + PAD
    looked_at = ceil(32 * share)
    passes = ceil(log2(max(int(counts[among].sum()) * looked_at // 32 / _SORTED, 1)))
    everything = bool(among.all())

    def sampled(block: Words, first: int, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Sketches of a block's shingles that are looked at in this pass, and their places in it."""
        found = sketches(block.hashes, SHINGLE)
        mine = found & np.uint32(31) < looked_at
        if passes:
            mine &= found >> np.uint32(32 - passes) == number
        if not everything:
            mine &= np.repeat(among[first : first + block.rows], block.lengths + PAD)
        place = np.flatnonzero(mine)
        return found.take(place), place

    alone = np.zeros(words.rows, np.int64)
    for number in range(1 << passes):
        seen = [np.zeros(0, np.uint32), *(sampled(block, first, number)[0] for first, block in words.blocks())]
        ordered = np.concatenate(seen)
        del seen
        ordered.sort()
        common = BitTable(ordered[1:].take(np.flatnonzero(ordered[1:] == ordered[:-1])))
        del ordered
        for first, block in words.blocks():
            found, place = sampled(block, first, number)
            once = place.take(np.flatnonzero(~common.has(found)))
            alone[first : first + block.rows] += np.diff(np.searchsorted(once, block.offsets - PAD))
    return alone


def _shingles(words: Words) -> np.ndarray:
    """Hashes (u64) of the shingles of rows, one after the other; a row of n words has n + PAD of them."""
    return runs(words.hashes, SHINGLE)


def _distinct(words: Words, rarity: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The shingles of each row without repetition: token (u64), row (i64), and how many a row has.

    They come in the order of the tokens, that is, with `rarity` (u8, how common a shingle is by its upper bits), from
    rare to common: its `_CLASS` bits are a token's upper ones. A token holds `_TOKEN` bits of its shingle in all.
    """
    token = _shingles(words)
    if rarity is not None:
        seen = rarity.take(token >> np.uint64(64 - _RARITY)).astype(np.uint64)
        token = seen << np.uint64(64 - _CLASS) | token >> np.uint64(_CLASS)
    # Sorted as one number, row and shingle are in order in a fraction of the time of two keys; what the row's number
    # takes from the shingle is little where rows are long.
    bits = np.uint64(64 - max(words.rows - 1, 1).bit_length())
    row = np.repeat(np.arange(words.rows, dtype=np.uint64) << bits, words.lengths + PAD)
    keyed = np.sort(row | token >> (np.uint64(64) - bits))
    keyed = keyed.take(np.flatnonzero(np.append(True, keyed[1:] != keyed[:-1])[: len(keyed)]))
    row = (keyed >> bits).astype(np.int64)
    token = keyed << (np.uint64(64) - bits) & np.uint64(2**64 - 2 ** (64 - _TOKEN))
    return token, row, np.bincount(row, minlength=words.rows)


def _parities(token: np.ndarray, row: np.ndarray, rows: int) -> np.ndarray:
    """For each row, how many of its tokens fall on each of 256 bits, modulo 2, as u64 of shape (rows, 4)."""
    bit = (token >> np.uint64(64 - _TOKEN) & np.uint64(255)).astype(np.int64)
    odd = np.bincount(row * 256 + bit, minlength=rows * 256) & 1
    return np.packbits(odd.astype(bool).reshape(rows, 256), axis=1).view(np.uint64)


def _least(size: np.ndarray, threshold: float) -> np.ndarray:
    """The fewest shingles that a set of this size has in common with one that is `threshold` like it."""
    return np.maximum(np.ceil(threshold * size - _EPSILON).astype(np.int64), 1)


def jaccard(words: Words, pairs: np.ndarray) -> np.ndarray:
    """Jaccard similarity (f64) of the shingle sets of pairs of rows (n, 2)."""
    result = np.zeros(len(pairs))
    for first in range(0, len(pairs), _PAIRS):
        part = pairs[first : first + _PAIRS]
        needed, at = np.unique(part, return_inverse=True)
        token, _, sizes = _distinct(words.take(needed))
        starts = np.cumsum(sizes) - sizes
        sides = at.reshape(part.shape)
        both = sizes[sides].ravel()
        ends = np.cumsum(both)
        place = np.arange(ends[-1]) + np.repeat(starts[sides].ravel() - (ends - both), both)
        # Both sets of a pair, sorted together under the pair's number: what they share stands side by side.
        number = np.repeat(np.arange(len(part), dtype=np.uint64), both.reshape(part.shape).sum(axis=1))
        keyed = np.sort(number << np.uint64(52) | token[place] >> np.uint64(12))
        same = keyed[1:][keyed[1:] == keyed[:-1]] >> np.uint64(52)
        shared = np.bincount(same.astype(np.int64), minlength=len(part))
        result[first : first + _PAIRS] = shared / (both.reshape(part.shape).sum(axis=1) - shared)
    return result
