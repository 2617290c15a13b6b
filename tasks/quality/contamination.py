"""Contamination: training conversations that give away what a model will be tested on.

A test item is its question, everything that the user says. It is taken to be given away by a training
conversation that holds `overlap` of the question's words in runs of `ngram` words that both have. Thirteen-word
runs are what GPT-3 was checked with (Brown et al. 2020, arXiv 2005.14165, app. C); a bound on the share of the item
that is covered, rather than on a single common run, is how Llama 2 (Touvron et al. 2023, arXiv 2307.09288, A.6) and
Tülu 3 (Lambert et al. 2024, arXiv 2411.15124, 3.2) tell an item from a turn of phrase that a whole data set shares.
A question shorter than `ngram` words cannot have such a run: it is given away by a conversation that opens with it.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from tasks.errors import BadInput
from tasks.quality.words import PAD, BitTable, Words, chunks, distinct, runs, sketches

QUESTION_COLUMNS = ("turns", "prompt", "question", "problem", "query", "instruction", "input", "text")
SHORTEST = 4
_FACTOR = np.uint64(0xD1B54A32D192ED03)
_WORDS = 1 << 15  # looked up at once: what stays in a core's cache


def opening_hashes(asked: Words, rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """One u64 for each user turn: of the words of its conversation's user turns up to and with it.

    `asked`: what the user says, by row; `rows`: the row of each turn, in order; `lengths`: its words. Two
    conversations whose users open alike have the same hash there, whatever comes after.
    """
    begins = asked.offsets[:-1]
    position = np.arange(len(asked.hashes)) - np.repeat(np.append(0, begins), np.diff(asked.offsets, prepend=0))
    powers = np.cumprod(np.full(int(position.max(initial=0)) + 1, _FACTOR, np.uint64))
    running = np.append(np.uint64(0), np.cumsum(asked.hashes * powers[position], dtype=np.uint64))
    spoken = np.append(0, np.cumsum(lengths))
    so_far = spoken[1:] - spoken[np.searchsorted(rows, rows)]
    return running[begins[rows] + so_far] - running[begins[rows]]


def opened_with(train: pl.DataFrame, items: pl.DataFrame) -> pl.DataFrame:
    """Training rows that open with an item's question, as (`row`, `item`).

    `train`: (row, opening: u64, last: bool), one line a turn; `items`: (item, opening, words). A question of fewer
    than `SHORTEST` words ("Hi there") opens anything: it counts where it is all that the user says.
    """
    return (
        train.join(items, on="opening")
        .filter(pl.col("last") | (pl.col("words") >= SHORTEST))
        .sort("row", "item")
        .unique("row", keep="first", maintain_order=True)
        .select("row", "item")
    )


def contaminated(
    training: Words, items: Words, *, ngram: int, overlap: float, rows: np.ndarray | None = None
) -> pl.DataFrame:
    """Training rows that cover a test item, as (`row`, `item`: u32, `covered`: share of its words, `at`: i64).

    `training`: all words of each conversation; `items`: the words of each question. One line a row, for the item
    covered most; `at` is the word of the item at which the first common run begins. `rows`: the training rows that
    are looked at, by default all.
    """
    counts = np.maximum(items.lengths - ngram + 1, 0)
    item = np.repeat(np.arange(items.rows), counts)
    place = np.arange(len(item)) - np.repeat(np.cumsum(counts) - counts, counts)
    grams = runs(items.hashes, ngram)[items.offsets[item] + place]
    index = pl.DataFrame({"gram": grams, "item": item, "place": place})
    known = _Known(grams)
    looked_at = np.ones(training.rows, bool)
    if rows is not None:
        looked_at[:] = False
        looked_at[rows] = True
    hits = []
    for part in chunks(_suspects(training, items, ngram, looked_at), training.lengths + PAD):
        block = training.take(part)
        # Runs that hang over a row's end hold blanks, and no item's run does.
        found = runs(block.hashes, ngram)
        hit = known.places(found)
        row = np.searchsorted(block.offsets, hit, side="right") - 1
        hits.append(pl.DataFrame({"row": part[row], "gram": found[hit]}))
    pairs = pl.concat(hits).unique().join(index, on="gram") if hits else pl.DataFrame()
    if pairs.is_empty():
        return pl.DataFrame(schema={"row": pl.UInt32, "item": pl.UInt32, "covered": pl.Float64, "at": pl.Int64})
    lengths = pl.DataFrame({"item": np.arange(items.rows), "words": items.lengths})
    # Runs overlap: each covers the words from its own start to the next run's start, or its whole length.
    step = pl.col("place").shift(-1).over("row", "item", order_by="place") - pl.col("place")
    return (
        pairs.with_columns(covers=step.fill_null(ngram).clip(upper_bound=ngram))
        .group_by("row", "item")
        .agg(pl.col("covers").sum(), at=pl.col("place").min())
        .join(lengths, on="item")
        .select(pl.col("row", "item").cast(pl.UInt32), covered=pl.col("covers") / pl.col("words"), at="at")
        .filter(pl.col("covered") >= overlap)
        .sort("row", "covered", "item", descending=[False, True, False])
        .unique("row", keep="first", maintain_order=True)
    )


class _Known:
    """Hashes to be found among many others; nearly all are none of them, which two tables of bits tell."""

    def __init__(self, hashes: np.ndarray) -> None:
        self._hashes = distinct(hashes)
        self._factor = hashes.dtype.type(0x9E3779B1)
        self._table, self._second = BitTable(hashes), BitTable(hashes * self._factor)

    def places(self, hashes: np.ndarray) -> np.ndarray:
        """The places (i64) of the known ones among these hashes."""
        maybe = np.flatnonzero(self._table.has(hashes))
        maybe = maybe.take(np.flatnonzero(self._second.has(hashes.take(maybe) * self._factor)))
        if not len(self._hashes):
            return maybe[:0]
        found = hashes.take(maybe)
        at = np.minimum(np.searchsorted(self._hashes, found), len(self._hashes) - 1)
        return maybe.take(np.flatnonzero(self._hashes[at] == found))


def _suspects(training: Words, items: Words, ngram: int, looked_at: np.ndarray) -> np.ndarray:
    """Those of the rows looked at (bool, one a row) that may have a run of `ngram` words in common with an item.

    In every such run one half as long begins at a word whose number is a multiple of `step`: nearly every row is told
    from a few of its words.
    """
    half = (ngram + 1) // 2
    step = ngram - half + 1
    long = np.flatnonzero(items.lengths >= ngram)
    if not len(long):
        return long
    known = _Known(sketches(items.take(long).hashes, half))
    may = []
    for first, block in training.blocks(step * _WORDS):
        found = step * known.places(sketches(block.hashes, half, step))
        row = first + distinct(np.searchsorted(block.offsets, found[found >= PAD], side="right") - 1)
        may.append(row[looked_at[row]])
    return np.concatenate(may)


def benchmark_questions(path: str) -> pl.Series:
    """The questions of a benchmark file (JSON, JSON Lines, Parquet or CSV), one string an item.

    The question is the first of `QUESTION_COLUMNS` that the file has; `path#column` names another one, by its name
    or, for a CSV without a header, by its number from 0. Of nested turns the text is taken.

    Raises BadInput when the file is missing, cannot be read, or has no such column.
    """
    field = "mixture.benchmarks"
    name, _, column = path.partition("#")
    file = Path(name)
    if not file.is_file():
        raise BadInput(field, path, "is not a file", "Give the path of a benchmark's questions.")
    try:
        items = _items(file, headed=not column.isdigit())
    except (pl.exceptions.PolarsError, csv.Error, ValueError) as error:
        raise BadInput(field, path, f"cannot be read ({error})", "Give JSON, JSON Lines, Parquet or CSV.") from error
    columns = {key: None for item in items for key in item}
    question = column or next((name for name in QUESTION_COLUMNS if name in columns), "")
    texts = [" ".join(_texts(item.get(question))) for item in items]
    if not any(text.strip() for text in texts):
        raise BadInput(
            field,
            path,
            f"has no question: its columns are {', '.join(columns) or 'none'}",
            f"Name the column as {name}#column; without a name it is the first of {', '.join(QUESTION_COLUMNS)}.",
        )
    return pl.Series("question", texts, dtype=pl.String)


def _items(file: Path, *, headed: bool) -> list[dict[str, Any]]:
    if file.suffix == ".parquet":
        return pl.read_parquet(file).to_dicts()
    if file.suffix == ".csv":
        with open(file, encoding="utf-8", newline="") as lines:
            if headed:
                return list(csv.DictReader(lines))
            return [{str(n): value for n, value in enumerate(line)} for line in csv.reader(lines)]
    text = file.read_text(encoding="utf-8")
    try:
        items = json.loads(text)
    except ValueError:
        items = [json.loads(line) for line in text.splitlines() if line.strip()]
    items = items if isinstance(items, list) else [items]
    if not all(isinstance(item, dict) for item in items):
        raise ValueError("an item is no object")
    return items


def _texts(value: Any) -> Iterator[str]:
    """The texts in a question of any shape; of a message, its content."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict):
        yield from _texts(value["content"] if "content" in value else list(value.values()))
