"""The index of a mixture: what is known of each conversation while it is decided where it goes.

A few numbers and hashes a row are held in memory, best-ranked row first (recipe order, then source order); the
words that overlap is measured on are on disk, and the conversations themselves stay where they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np
import polars as pl

from tasks.conversations import read_conversations
from tasks.quality import WordFile, Words, answers, fingerprints, opening_hashes, said, turn_words, word_hashes

EXCERPT = 160  # characters


@dataclass(frozen=True)
class Index:
    """What is known of the rows, best-ranked first.

    `rows`: row, source, at (place in the source's file), row_id, source_row, kind, tokens, supervised, question and
    asked (see fingerprints), answer (of rows whose prompt others have; see answers), and the hashes (u64) that put rows
    in order: take, order, fixed_order.
    `said`: words of each row, but for the system's. `asked`: words of all that its user says; after the rows come the
    benchmarks' questions. `openings`: (row, opening, last), one line a user turn that has words; see tasks.quality
    opening_hashes. `begun`: a folder of Arrow files (row, text) with the first characters of each row.
    """

    rows: pl.DataFrame
    said: Words
    asked: Words
    openings: pl.DataFrame
    begun: Path


def gather(folders: Mapping[str, Path], seed: int, scratch: Path, questions: pl.Series) -> Index:
    """The index of gated sources, in the order given.

    `scratch`: a folder for the words, to be removed after use; `questions`: of benchmarks.
    """
    parts, openings, rows = [], [], 0
    (scratch / "begun").mkdir()
    said_file, asked_file = WordFile(scratch / "said"), WordFile(scratch / "asked")
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
            parts.append(pl.concat([light, fingerprints(batch)], how="horizontal"))
            turns = said(batch)
            begins = turns.list.get(0).struct.field("text").str.slice(0, EXCERPT)
            begun = pl.DataFrame({"row": np.arange(rows, rows + batch.height, dtype=np.uint32), "text": begins})
            begun.write_ipc(scratch / "begun" / f"{rows}.arrow")
            words, asked, opening = spoken(turns)
            said_file.append(words)
            asked_file.append(asked)
            openings.append(opening.with_columns(row=pl.col("row") + pl.lit(rows, pl.UInt32)))
            rows += batch.height
    asked_file.append(word_hashes(questions))
    index = _with_answers(pl.concat(parts).with_row_index("row"), folders)
    keys = np.frombuffer(bytes.fromhex("".join(index["row_id"].str.slice(0, 16).to_list())), ">u8").astype(np.uint64)
    return Index(
        index.with_columns(
            take=_shuffled(keys, f"take {seed}"),
            order=_shuffled(keys, f"order {seed}"),
            fixed_order=_shuffled(keys, "held out"),
        ),
        said_file.read(),
        asked_file.read(),
        pl.concat(openings),
        scratch / "begun",
    )


def _with_answers(index: pl.DataFrame, folders: Mapping[str, Path]) -> pl.DataFrame:
    """The index with `answer`, for which rows that others share a prompt with are read once more."""
    rivals = index.unique("row_id", keep="first").filter(pl.col("asked").is_duplicated()).select("row", "source", "at")
    found = [pl.DataFrame(schema={"row": pl.UInt32, "answer": pl.UInt64})]
    for (source,), part in rivals.group_by("source"):
        for batch in read_conversations(folders[str(source)], part["at"].to_list(), counts=True):
            rows = batch.join(part.select("at", "row"), on="at", maintain_order="left")
            found.append(rows.select("row").hstack([answers(rows)]))
    return index.join(pl.concat(found), on="row", how="left", maintain_order="left")


def spoken(turns: pl.Series) -> tuple[Words, Words, pl.DataFrame]:
    """The words of each row, those of its user alone, and the openings of its user turns; `turns`: see said."""
    counts = turns.list.len().to_numpy().astype(np.int64)
    flat = turns.explode(empty_as_null=False).struct.unnest()
    last = np.zeros(flat.height, bool)
    last[np.cumsum(counts) - 1] = True
    words, ends = turn_words(flat["text"], last)
    row = np.repeat(np.arange(len(turns)), counts)
    starts = np.where(np.append(True, last[:-1]), words.offsets[row], np.append(0, ends[:-1]))
    user = flat["user"].fill_null(False).to_numpy()
    row, starts, lengths = row[user], starts[user], (ends - starts)[user]
    asked = words.spans(starts, lengths, np.searchsorted(row, np.arange(len(turns) + 1)))
    opening = pl.DataFrame(
        {
            "row": row.astype(np.uint32),
            "opening": opening_hashes(asked, row, lengths),
            "last": np.append(row[1:] != row[:-1], True)[: len(row)],
        }
    )
    return words, asked, opening.filter(asked.lengths[row] > 0)


def _shuffled(keys: np.ndarray, salt: str) -> np.ndarray:
    """Hashes (u64) of uniform keys (u64) under a salt (SplitMix64, Steele et al. 2014); the same on every machine."""
    values = keys ^ np.uint64(int.from_bytes(blake2b(salt.encode(), digest_size=8).digest(), "big"))
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def excerpts(index: Index, rows: pl.Series) -> pl.DataFrame:
    """How some rows begin, for people to see why another one was set aside: (row, text)."""
    if not len(rows):
        return pl.DataFrame(schema={"row": pl.UInt32, "text": pl.String})
    begun = pl.scan_ipc(index.begun / "*.arrow").filter(pl.col("row").is_in(rows.implode())).collect()
    return begun.with_columns(pl.col("text").str.replace_all(r"\s+", " ").str.strip_chars())
