"""The index of a mixture: what is known of each conversation while it is decided where it goes.

A few numbers and hashes a row are held in memory, best-ranked row first (recipe order, then source order); the
words that overlap is measured on are on disk, and the conversations themselves stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from tasks.conversations import prompt_key, read_conversations
from tasks.mixture.split import hash64, hash128
from tasks.quality import WordFile, Words, fingerprints, opening_hashes, said, word_hashes


@dataclass(frozen=True)
class Index:
    """What is known of the rows, best-ranked first.

    `rows`: row, source, at (place in the source's file), row_id, source_row, kind, tokens, supervised, prompt
    (hash), said and asked (see fingerprints), and the hashes (u64) that put rows in order: take, order, fixed_order.
    `said`: words of each row. `turns`: words of each user turn; row r has turn_offsets[r] to turn_offsets[r + 1].
    """

    rows: pl.DataFrame
    said: Words
    turns: Words
    turn_offsets: np.ndarray

    @property
    def asked(self) -> Words:
        """The words of all that the user says, by row."""
        return Words(self.turns.hashes, self.turns.offsets[self.turn_offsets])

    def openings(self) -> pl.DataFrame:
        """(row, opening, last, words), one line a user turn; see tasks.quality opening_hashes."""
        counts = np.diff(self.turn_offsets)
        row = np.repeat(np.arange(len(counts)), counts)
        ends = np.zeros(self.turns.rows, bool)
        ends[self.turn_offsets[1:][counts > 0] - 1] = True
        return pl.DataFrame(
            {
                "row": row.astype(np.uint32),
                "opening": opening_hashes(self.turns, np.repeat(self.turn_offsets[:-1], counts)),
                "last": ends,
                "words": self.asked.lengths[row],
            }
        )


def gather(folders: Mapping[str, Path], seed: int, scratch: Path) -> Index:
    """The index of gated sources, in the order given; `scratch`: a folder for the words, to be removed after use."""
    parts, counts = [], [np.zeros(1, np.int64)]
    said_file, turn_file = WordFile(scratch / "said"), WordFile(scratch / "turns")
    for source, folder in folders.items():
        for batch in read_conversations(folder, counts=True):
            light = batch.select(
                "at",
                "row_id",
                "source_row",
                "kind",
                source=pl.lit(source),
                tokens=pl.col("tokens").cast(pl.Int64),
                supervised=pl.col("supervised_tokens").cast(pl.Int64),
            )
            # The prompt's hash stands for it from here on: a million prompts in full would fill the memory.
            prompts = hash128(prompt_key(batch), "prompt")
            parts.append(pl.concat([light, fingerprints(batch, prompts)], how="horizontal"))
            texts = said(batch)
            said_file.append(word_hashes(texts["all"]))
            turn_file.append(word_hashes(texts["turns"].explode(empty_as_null=False)))
            counts.append(texts["turns"].list.len().to_numpy().astype(np.int64))
    rows = pl.concat(parts).with_row_index("row")
    ids = rows["row_id"]
    return Index(
        rows.with_columns(
            take=hash64(ids, f"take {seed}"), order=hash64(ids, f"order{seed}"), fixed_order=hash64(ids, "held out")
        ),
        said_file.read(),
        turn_file.read(),
        np.cumsum(np.concatenate(counts)),
    )


def excerpts(index: pl.DataFrame, rows: Sequence[int], folders: Mapping[str, Path]) -> dict[int, str]:
    """The first 160 characters of what is said in some rows, for people to see why one was set aside."""
    wanted = index.filter(pl.col("row").is_in(rows)).select("row", "source", "at")
    found: dict[int, str] = {}
    for (source,), part in wanted.group_by(["source"]):
        for batch in read_conversations(folders[str(source)], part["at"].to_list(), counts=True):
            texts = batch.join(part, on="at", maintain_order="left")
            shortened = said(texts)["all"].str.replace_all(r"\s+", " ").str.strip_chars().str.slice(0, 160)
            found.update(zip(texts["row"].to_list(), shortened.to_list(), strict=True))
    return found
