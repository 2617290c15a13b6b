"""Words as numbers: what near-duplicates and contamination are measured on.

Texts become a flat array of 32-bit word hashes with row offsets (compressed sparse rows), straight from their
UTF-8 bytes: a few array operations a byte, many times faster than a list of strings a row, and the same on every
machine. A word is a run of letters and digits; case and punctuation make no difference, but a sign that stands for
something does (29 + 48 is not 29 - 48). Where a script writes no spaces (Han, kana), each character is a word.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

# Blanks between rows. A run of one word more hangs over both ends of its row and touches no other one, so a
# whole block of rows is cut into runs by one pass over a flat array.
PAD = 4
_PRIME = np.uint32(0x9E3779B1)
_RUN = 0x9E3779B97F4A7C15
_SORTED = 1 << 22  # hashes sorted at once
_BLOCK = 1 << 16  # bytes, and words, worked on at once: what stays in a core's cache


@dataclass(frozen=True)
class Words:
    """Word hashes of rows: `hashes` (u32, flat), with `PAD` zeros before the first row and after each one; those of
    row r begin at `offsets[r]` (i64) and end `PAD` before `offsets[r + 1]`."""

    hashes: np.ndarray
    offsets: np.ndarray

    @property
    def rows(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets) - PAD

    def take(self, rows: np.ndarray) -> Words:
        """These rows, in this order."""
        return self.spans(self.offsets[rows], self.lengths[rows], np.arange(len(rows) + 1))

    def spans(self, starts: np.ndarray, lengths: np.ndarray, rows: np.ndarray) -> Words:
        """Rows pieced together from spans of words; row r is made of the spans from `rows[r]` to `rows[r + 1]`."""
        counts = np.diff(rows)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        offsets = PAD + ends[rows] + PAD * np.arange(len(rows))
        hashes = np.zeros(offsets[-1], np.uint32)
        pads = PAD * (1 + np.repeat(np.arange(len(counts)), counts))
        place = np.arange(ends[-1])
        hashes[place + np.repeat(pads, lengths)] = self.hashes[place + np.repeat(starts - ends[:-1], lengths)]
        return Words(hashes, offsets)

    @classmethod
    def joined(cls, parts: Sequence[Words]) -> Words:
        """The rows of all parts, one after the other."""
        hashes = np.concatenate([np.zeros(PAD, np.uint32), *(part.hashes[PAD:] for part in parts)])
        lengths = np.concatenate([np.zeros(0, np.int64), *(part.lengths for part in parts)])
        return cls(hashes, PAD + np.concatenate([[0], np.cumsum(lengths + PAD)]))

    def blocks(self, words: int = _BLOCK) -> Iterator[tuple[int, Words]]:
        """Consecutive rows, about so many words at a time, each with the number of its first row."""
        first = 0
        while first < self.rows:
            last = int(np.searchsorted(self.offsets, self.offsets[first] + words, side="right")) - 1
            last = min(max(last, first + 1), self.rows)
            low, high = self.offsets[first] - PAD, self.offsets[last]
            yield first, Words(np.asarray(self.hashes[low:high]), self.offsets[first : last + 1] - low)
            first = last


class WordFile:
    """Words on disk, appended batch by batch and read back mapped, so that they need not fit in memory."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file = open(path, "wb")  # noqa: SIM115
        self._lengths: list[np.ndarray] = []
        np.zeros(PAD, np.uint32).tofile(self._file)

    def append(self, words: Words) -> None:
        words.hashes[PAD:].tofile(self._file)
        self._lengths.append(words.lengths)

    def read(self) -> Words:
        """All rows, in the order in which they came; closes the file."""
        self._file.close()
        lengths = np.concatenate([np.zeros(0, np.int64), *self._lengths])
        offsets = PAD + np.concatenate([[0], np.cumsum(lengths + PAD)])
        return Words(np.memmap(self._path, dtype=np.uint32, mode="r"), offsets)


_SIGN, _WORD = 2, 1
_CLASSES = bytes(
    _SIGN if byte in b"\0+-*/=<>^%$&|~@#\\" else _WORD if byte >= 128 or chr(byte).isalnum() else 0
    for byte in range(256)
)


def word_hashes(texts: pl.Series) -> Words:
    """The words of each text, a row each."""
    return turn_words(texts, np.ones(len(texts), bool))[0]


def turn_words(turns: pl.Series, last: np.ndarray) -> tuple[Words, np.ndarray]:
    """The words of texts, and where in the flat array those of each text end (i64).

    A row ends with the text at which `last` (bool) is true, so one row may be made of several texts.
    """
    if not len(turns):
        return Words(np.zeros(PAD, np.uint32), np.full(1, PAD)), np.zeros(0, np.int64)
    # NUL is a sign of its own whose hash is 0: so the blanks between rows come out of the same pass.
    said = turns.fill_null("").str.to_lowercase()
    if said.str.contains("\0", literal=True).any():
        said = said.str.replace_all("\0", " ", literal=True)
    ended = pl.DataFrame({"said": said, "last": last}).select(
        pl.concat_str("said", pl.when("last").then(pl.lit("\0" * PAD)).otherwise(pl.lit(" ")))
    )
    flat = ended.to_series().to_arrow(compat_level=pl.CompatLevel.oldest())
    if isinstance(flat, pa.ChunkedArray):
        flat = flat.combine_chunks()
    _, places, content = flat.buffers()
    ends = np.frombuffer(places, np.int64)[flat.offset : flat.offset + len(flat) + 1]
    data, ends = np.frombuffer(content, np.uint8)[ends[0] : ends[-1]], ends - ends[0]
    hashes, counts = _bytes_words(data, ends)
    after = PAD + counts
    return Words(np.append(np.zeros(PAD, np.uint32), hashes), np.append(PAD, after[last])), after - PAD * last


def from_word(text: str, word: int) -> str:
    """A text from its word of this number on, counted from 0."""
    lowered = pl.Series([text]).str.to_lowercase()[0].replace("\0", " ").encode()
    starts = _stretches(np.frombuffer(lowered + b"\0", np.uint8))[0]
    whole = text.encode()
    # A few letters of other alphabets take more or fewer bytes as small ones.
    return (whole if len(whole) == len(lowered) else lowered)[int(starts[word]) :].decode(errors="ignore")


def _bytes_words(data: np.ndarray, ends: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The words in bytes whose texts end at `ends[1:]`, each with what is no letter: their hashes (u32), and how many
    begin before each of these ends."""
    data = np.append(data, np.zeros(8, np.uint8))
    eights = np.ndarray((len(data) - 7,), "<u8", data, strides=(1,))  # the eight bytes from any place on
    # Only what is handed on outlives its block: memory that has not been used yet costs more than the work in it.
    hashes, counts = [np.zeros(0, np.uint32)], [np.zeros(1, np.int64)]
    first = 0
    while first < len(ends) - 1:
        until = max(int(np.searchsorted(ends, ends[first] + _BLOCK, side="right")) - 1, first + 1)
        starts, lengths = _stretches(data[ends[first] : ends[until]])
        counts.append(counts[-1][-1] + np.searchsorted(starts, ends[first + 1 : until + 1] - ends[first]))
        starts += ends[first]
        hashes.append(_hashed(eights, starts, lengths))
        first = until
    return np.concatenate(hashes), np.concatenate(counts)[1:]


def _hashed(eights: np.ndarray, starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Hashes (u32) of stretches of bytes, in which eight bytes at a time are a number; that of a NUL is 0."""
    values = eights[starts]
    values &= _FIRST.take(lengths, mode="clip")
    longer = np.flatnonzero(lengths > 8)
    starts, lengths = starts.take(longer) + 8, lengths.take(longer) - 8
    further = eights[starts]
    further &= _FIRST.take(lengths, mode="clip")
    further *= np.uint64(_RUN)
    if len(long := np.flatnonzero(lengths > 8)):
        counts = (lengths[long] - 1) >> 3
        firsts = np.cumsum(counts) - counts
        nth = np.arange(1, counts.sum() + 1) - np.repeat(firsts, counts)
        rest = eights[np.repeat(starts[long], counts) + 8 * nth]
        rest &= _FIRST.take(np.repeat(lengths[long], counts) - 8 * nth, mode="clip")
        rest *= np.cumprod(np.full(counts.max() + 2, _RUN, np.uint64)).take(nth)
        further[long] += np.add.reduceat(rest, firsts)
    values[longer] += further
    # Every bit counts, and 0 stays 0: after the finaliser of MurmurHash3 (Appleby 2011).
    values *= np.uint64(0xFF51AFD7ED558CCD)
    values ^= values >> np.uint64(32)
    values *= np.uint64(0xC4CEB9FE1A85EC53)
    values >>= np.uint64(32)
    return values.astype(np.uint32)


def _stretches(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where the words of a block of bytes begin, and how many bytes they have (i64)."""
    classes = np.frombuffer(bytearray(data.tobytes().translate(_CLASSES)), np.uint8)
    cuts = _wide(data, classes) if data.max() >= 0xE2 else np.zeros(0, np.int64)
    # A sign is a word, and so is a run of what is neither sign nor blank.
    inside = (classes == _WORD).view(np.uint8)
    begins, ends = (np.empty(len(data), bool) for _ in range(2))
    begins[0], ends[-1] = classes[0], classes[-1]
    np.greater(classes[1:], inside[:-1], out=begins[1:])
    np.greater(classes[:-1], inside[1:], out=ends[:-1])
    begins[cuts] |= classes[cuts] > 0
    ends[cuts - 1] |= classes[cuts - 1] > 0
    starts, lengths = np.flatnonzero(begins), np.flatnonzero(ends)
    lengths -= starts
    lengths += 1
    return starts, lengths


def _wide(data: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Places at which a word ends and another one begins: before and after characters beyond the alphabets, which are
    of three or four bytes. Typographic quotes and dashes (U+2000 to U+206F) and East Asian ones (U+3000 to U+303F),
    which are no words, are taken out of the `classes`."""
    first = np.flatnonzero(data >= 0xE2)
    lead = data[first]
    second = data[np.minimum(first + 1, len(data) - 1)]
    marks = first[((lead == 0xE2) & (second <= 0x81)) | ((lead == 0xE3) & (second == 0x80))]
    for step in range(3):
        classes[marks + step] = 0
    cuts = np.concatenate([first, first + np.where(lead >= 0xF0, 4, 3)])
    return cuts[(cuts > 0) & (cuts < len(data))]


_FIRST = np.array([2 ** (8 * count) - 1 for count in range(9)], np.uint64)  # masks of a number's first bytes


def runs(hashes: np.ndarray, size: int) -> np.ndarray:
    """Hashes (u64) of all runs of `size` words in a flat array, (words - size + 1,), by doubling their length."""
    if len(hashes) < size:
        return np.zeros(0, np.uint64)
    rolled, length = hashes.astype(np.uint64), 1
    for bit in bin(size)[3:]:
        rolled = rolled[:-length] * np.uint64(pow(_RUN, length, 2**64)) + rolled[length:]
        length *= 2
        if bit == "1":
            rolled = rolled[:-1] * np.uint64(_RUN) + hashes[length:]
            length += 1
    rolled ^= rolled >> np.uint64(32)
    rolled *= np.uint64(0xD6E8FEB86659FD93)
    return rolled


def sketches(hashes: np.ndarray, size: int, step: int = 1) -> np.ndarray:
    """Hashes (u32) of the runs of `size` words that begin at every `step`th word of a flat array.

    Made in a third of the time of `runs`, and enough to tell which runs are surely not the same.
    """
    count = -(-(len(hashes) - size + 1) // step)
    if count <= 0:
        return np.zeros(0, np.uint32)
    rolled = np.zeros(count, np.uint32)
    for word in range(size):
        rolled *= _PRIME
        rolled += hashes[word : word + (count - 1) * step + 1 : step]
    rolled ^= rolled >> np.uint32(16)
    rolled *= np.uint32(0x85EBCA6B)
    return rolled


def chunks(rows: np.ndarray, counts: np.ndarray, most: int = 1 << 18) -> Iterator[np.ndarray]:
    """Rows in chunks of about so many words, of which each row has so many as `counts` says."""
    ends = np.cumsum(counts[rows])
    first = 0
    while first < len(rows):
        begun = ends[first - 1] if first else 0
        last = max(int(np.searchsorted(ends, begun + most, side="right")), first + 1)
        yield rows[first:last]
        first = last


def distinct(numbers: np.ndarray) -> np.ndarray:
    """The numbers in order, each once; for many, sorting is faster than the hash table of `np.unique`."""
    ordered = np.sort(numbers)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])[: len(ordered)]]


class BitTable:
    """A set of slots, a bit each, so that many of them stay in a core's cache; a hash's upper bits are its slot."""

    def __init__(self, hashes: np.ndarray, most_bits: int = 27) -> None:
        """The slots of these hashes (u32 or u64), in a table that they fill to a sixteenth, if it may be that large."""
        self._shift = hashes.dtype.type(8 * hashes.itemsize - min(len(hashes).bit_length() + 4, most_bits))
        members = np.zeros(1 << (8 * hashes.itemsize - int(self._shift)), bool)
        for first in range(0, len(hashes), _SORTED):
            # In order, they walk the table instead of jumping.
            members[np.sort(hashes[first : first + _SORTED]) >> self._shift] = True
        self._bits = np.packbits(members, bitorder="little")

    def has(self, hashes: np.ndarray) -> np.ndarray:
        """Whether the slot of each hash is in the set (bool): true for all of its hashes, and a few others."""
        slots = hashes >> self._shift
        bits = self._bits.take(slots >> slots.dtype.type(3))
        return (bits >> (slots & slots.dtype.type(7)).astype(np.uint8) & 1).view(bool)
