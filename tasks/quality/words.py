"""Words as numbers: what near-duplicates and contamination are measured on.

Texts become a flat array of 32-bit word hashes with row offsets (compressed sparse rows), straight from their
UTF-8 bytes: a few array operations a byte, many times faster than a list of strings a row, and the same on every
machine. A word is a run of letters and digits; case and punctuation make no difference, but a sign that stands for
something does (29 + 48 is not 29 - 48). Where a script writes no spaces (Han, kana), each character is a word.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

_PRIME = np.uint64(0x9E3779B97F4A7C15)  # odd, so it has an inverse modulo 2**64
_INVERSE = np.uint64(pow(int(_PRIME), -1, 2**64))
_BLOCK = 1 << 16  # bytes, and words, worked on at once: what stays in a core's cache


@dataclass(frozen=True)
class Words:
    """Word hashes of rows: `hashes` (u32, flat), those of row r from `offsets[r]` to `offsets[r + 1]` (i64)."""

    hashes: np.ndarray
    offsets: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def take(self, rows: np.ndarray) -> Words:
        """These rows, in this order."""
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        at = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Words(self.hashes[at], offsets)

    def then(self, other: Words) -> Words:
        """These rows and then the other ones."""
        offsets = np.concatenate([self.offsets, other.offsets[1:] + self.offsets[-1]])
        return Words(np.concatenate([self.hashes, other.hashes]), offsets)

    def blocks(self, words: int = _BLOCK) -> Iterator[tuple[int, Words]]:
        """Consecutive rows, about so many words at a time, each with the number of its first row."""
        first = 0
        while first < self.rows:
            last = int(np.searchsorted(self.offsets, self.offsets[first] + words, side="right")) - 1
            last = min(max(last, first + 1), self.rows)
            low, high = self.offsets[first], self.offsets[last]
            yield first, Words(np.asarray(self.hashes[low:high]), self.offsets[first : last + 1] - low)
            first = last


class WordFile:
    """Words on disk, appended batch by batch and read back mapped, so that they need not fit in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "wb")  # noqa: SIM115
        self._lengths: list[np.ndarray] = []

    def append(self, words: Words) -> None:
        words.hashes.tofile(self._file)
        self._lengths.append(words.lengths)

    def read(self) -> Words:
        """All rows, in the order in which they came; closes the file."""
        self._file.close()
        offsets = np.concatenate([[0], np.cumsum(np.concatenate([np.zeros(0, np.int64), *self._lengths]))])
        if not offsets[-1]:
            return Words(np.zeros(0, np.uint32), offsets)
        return Words(np.memmap(self._path, dtype=np.uint32, mode="r"), offsets)


_SIGN, _WORD = 2, 1
_CLASSES = bytes(
    _SIGN if byte in b"+-*/=<>^%$&|~@#\\" else _WORD if byte >= 128 or chr(byte).isalnum() else 0 for byte in range(256)
)


def word_hashes(texts: pl.Series) -> Words:
    """The words of each text."""
    lowered = texts.fill_null("").str.to_lowercase()
    lengths = lowered.str.len_bytes().to_numpy().astype(np.int64)
    # A space after each text keeps a word from running over into the next row.
    data = np.frombuffer((" ".join(lowered.to_list()) + " ").encode(), np.uint8)
    ends = np.concatenate([[0], np.cumsum(lengths + 1)])
    found, starts = [np.zeros(0, np.uint32)], [np.zeros(0, np.int64)]
    first = 0
    while first < len(lengths):
        last = max(int(np.searchsorted(ends, ends[first] + _BLOCK, side="right")) - 1, first + 1)
        hashes, at = _block_words(data[ends[first] : ends[last]])
        found.append(hashes)
        starts.append(at + ends[first])
        first = last
    return Words(np.concatenate(found), np.searchsorted(np.concatenate(starts), ends))


def _block_words(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Hashes and starts of the words in a block of bytes that ends with a space."""
    classes = np.frombuffer(data.tobytes().translate(_CLASSES), np.uint8)
    word, signs = _without_punctuation(classes > 0, data), classes == _SIGN
    begins = word & signs
    # The first byte begins a word, and so does what follows a sign or what is of no word.
    begins[0] = word[0]
    begins[1:] |= word[1:] & (signs[:-1] | ~word[:-1])
    alone = data >= 0xE2  # first of the three or four bytes of a character beyond the alphabets
    if alone.any():
        begins |= word & alone
        after = np.flatnonzero(alone)
        after = after + np.where(data[after] >= 0xF0, 4, 3)
        after = after[after < len(data)]
        begins[after] |= word[after]
    # A word ends where the next byte is of no word, or of the next one.
    ends_next = word.copy()
    ends_next[:-1] &= ~word[1:] | begins[1:]
    starts, ends = np.flatnonzero(begins), np.flatnonzero(ends_next) + 1
    powers, inverses = _powers(len(data))
    running = np.zeros(len(data) + 1, np.uint64)
    np.cumsum(data * powers[: len(data)], out=running[1:])
    return _mix((running.take(ends) - running.take(starts)) * inverses.take(starts)), starts


def _without_punctuation(word: np.ndarray, data: np.ndarray) -> np.ndarray:
    """Typographic quotes and dashes (U+2000 to U+206F) and East Asian ones (U+3000 to U+303F) are no words."""
    first = np.flatnonzero(data[:-2] >= 0xE2) if len(data) > 2 else np.zeros(0, np.int64)
    lead, second = data[first], data[first + 1]
    marks = first[((lead == 0xE2) & (second <= 0x81)) | ((lead == 0xE3) & (second == 0x80))]
    for step in range(3):
        word[marks + step] = False
    return word


_tables: dict[str, np.ndarray] = {}


def _powers(length: int) -> tuple[np.ndarray, np.ndarray]:
    """The powers of the prime and of its inverse, modulo 2**64, at least so many."""
    if len(_tables.get("powers", ())) < length:
        size = max(length, _BLOCK)
        for name, factor in (("powers", _PRIME), ("inverses", _INVERSE)):
            table = np.full(size, factor, np.uint64)
            table[0] = 1
            _tables[name] = np.cumprod(table)
    return _tables["powers"], _tables["inverses"]


def _mix(values: np.ndarray) -> np.ndarray:
    """The upper half of a finaliser (as in SplitMix64, Steele et al. 2014), so that every bit counts."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return (values >> np.uint64(32)).astype(np.uint32)


def ngrams(rows: Words, size: int, *, edges: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Hashes (u64) of the runs of `size` words in each row, flat, and their row offsets.

    With `edges`, runs may hang over the beginning and the end of a row, so that its first and last words count as
    often as the others and a row of fewer words has runs as well; a row without a word has none in any case.
    """
    if edges:
        rows = _framed(rows, size - 1)
    counts = np.maximum(rows.lengths - size + 1, 0)
    offsets = np.concatenate([[0], np.cumsum(counts)])
    total = len(rows.hashes) - size + 1
    if total <= 0:
        return np.zeros(0, np.uint64), offsets
    rolled = np.zeros(total, np.uint64)
    for k in range(size):
        rolled = rolled * _PRIME + rows.hashes[k : k + total]
    rolled ^= rolled >> np.uint64(29)
    at = np.arange(offsets[-1]) + np.repeat(rows.offsets[:-1] - offsets[:-1], counts)
    return rolled[at], offsets


def _framed(rows: Words, width: int) -> Words:
    """The rows with so many blanks before and after, but for rows without a word."""
    wanted = np.where(rows.lengths > 0, rows.lengths + 2 * width, 0)
    offsets = np.concatenate([[0], np.cumsum(wanted)])
    hashes = np.zeros(offsets[-1], np.uint32)
    hashes[np.arange(len(rows.hashes)) + np.repeat(offsets[:-1] + width - rows.offsets[:-1], rows.lengths)] = (
        rows.hashes
    )
    return Words(hashes, offsets)
