"""Tokenised rows on their way into training: checked, memory-mapped, and put in order.

The ids and the loss mask come from the mixture's split as rendering made them; nothing here changes
a token. Rows are checked as they stream by, because each of these mistakes trains on without a
complaint and shows only in what the adapter says: a row with nothing to learn, a row without a
prompt, a row that never learns to stop.
"""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tasks.errors import BadInput

IGNORED = -100  # the label that the loss leaves out
USEFUL = 0.92  # least share of an epoch's tokens that are no padding, where the lengths allow it
_ROWS_AT_ONCE = 8192
_SCHEMA = pa.schema({"input_ids": pa.list_(pa.int32()), "labels": pa.list_(pa.int32())})
_ASK = "Look at how the source is rendered with `nightowl check`; the chat template is the usual cause."


@dataclass(frozen=True)
class Rows:
    """A split ready to train on.

    `file`: Arrow stream of `input_ids` and `labels` (list of i32 each); `lengths` and `supervised`:
    tokens and supervised tokens by row; `ends`: the last supervised token of the rows, with counts.
    """

    file: Path
    lengths: np.ndarray
    supervised: np.ndarray
    ends: dict[int, int]

    def __len__(self) -> int:
        return len(self.lengths)


def prepare(split: Path, to: Path, *, max_length: int, vocabulary: int) -> Rows:
    """Check a split (Parquet with `input_ids` and `loss_mask`) and write it as Arrow for memory-mapping.

    Raises BadInput for an empty split, and for a row whose mask does not fit its ids, that is masked
    throughout or not at all, that is longer than `max_length` tokens or holds an id outside the
    `vocabulary` (number of ids).
    """
    lengths: list[np.ndarray] = []
    supervised: list[np.ndarray] = []
    ends: dict[int, int] = {}
    seen = 0
    with pa.OSFile(str(to), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        for batch in pq.ParquetFile(split).iter_batches(_ROWS_AT_ONCE, columns=["input_ids", "loss_mask"]):
            offsets, ids, mask = _flat(batch, split, seen)
            length = np.diff(offsets)
            learned = np.add.reduceat(np.append(mask, False), offsets[:-1], dtype=np.int64) * (length > 0)
            for wrong, problem in (
                (learned == 0, "has no supervised token"),
                (learned == length, "has no prompt: every token is supervised"),
                (length > max_length, f"is longer than base.max_length ({max_length} tokens)"),
            ):
                if wrong.any():
                    raise BadInput(split.name, f"row {seen + int(wrong.argmax())}", problem, _ASK)
            if ids.min() < 0 or ids.max() >= vocabulary:
                raise BadInput(
                    split.name,
                    int(ids.max()),
                    f"is a token id outside the base model's vocabulary of {vocabulary}",
                    "The mixture was tokenised for another model; run `nightowl mix` for this one.",
                )
            at = np.flatnonzero(mask)
            for token, count in zip(*np.unique(ids[at[np.cumsum(learned) - 1]], return_counts=True), strict=True):
                ends[int(token)] = ends.get(int(token), 0) + int(count)
            boundaries = pa.array(offsets.astype(np.int32))
            columns = [
                pa.ListArray.from_arrays(boundaries, pa.array(values.astype(np.int32)))
                for values in (ids, np.where(mask, ids, IGNORED))
            ]
            writer.write_batch(pa.record_batch(columns, schema=_SCHEMA))
            lengths.append(length)
            supervised.append(learned)
            seen += batch.num_rows
    if not seen:
        raise BadInput(split.name, 0, "holds no rows", "Ask for more rows (mixture.rows) or add a source.")
    return Rows(to, np.concatenate(lengths), np.concatenate(supervised), ends)


def _flat(batch: pa.RecordBatch, split: Path, seen: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Offsets of the rows, and their ids and masks end to end."""
    ids, mask = batch.column("input_ids"), batch.column("loss_mask")
    offsets = np.asarray(ids.offsets) - ids.offsets[0].as_py()
    if (
        ids.null_count
        or mask.null_count
        or not np.array_equal(offsets, np.asarray(mask.offsets) - mask.offsets[0].as_py())
    ):
        raise BadInput(split.name, f"rows {seen} and on", "have loss masks that do not fit their token ids", _ASK)
    return offsets, ids.flatten().to_numpy(), mask.flatten().to_numpy(zero_copy_only=False).astype(bool)


def ends_of_turn(rows: Rows, stops: set[int], special: set[int]) -> list[int]:
    """The tokens that end a turn; every row must train one.

    `stops`: ids that the base stops on at generation; `special`: ids that are no ordinary text. Raises
    BadInput where a row's last supervised token is ordinary text: such an adapter never learns to stop.
    """
    if text := {token: count for token, count in rows.ends.items() if token not in stops | special}:
        found = ", ".join(f"{token} ({count} rows)" for token, count in sorted(text.items(), key=lambda e: -e[1])[:5])
        raise BadInput(
            rows.file.stem,
            found,
            "is ordinary text as the last supervised token: the end of the turn is not trained",
            "The loss mask has to cover the token that ends the assistant's turn. " + _ASK,
        )
    return sorted(rows.ends)


def steps(rows: int, *, batch_size: int, epochs: float, max_steps: int | None) -> int:
    """Optimiser steps of a run; the last one may be short of rows."""
    full = math.ceil(math.ceil(rows * epochs - 1e-9) / batch_size)
    return min(full, max_steps) if max_steps else full


def order(lengths: np.ndarray, *, batch_size: int, epochs: float, max_steps: int | None, seed: int) -> np.ndarray:
    """Row numbers in the order of training (i64), every epoch's rows once, batches of like length.

    The order is fixed before the first step and depends on the seed alone, so that a resumed run goes on with the very
    next row; and not on how a batch is cut into passes, so that the curve is the same however that is. An epoch's rows
    are shuffled, sorted by length within windows of some batches, and the batches of a window shuffled again: little
    padding without a curriculum. The window is the shortest, from 50 batches or a quarter of a shorter epoch on, with
    which USEFUL of each epoch's tokens are no padding where a pass takes a whole batch, and at most the epoch.
    """
    rng = np.random.default_rng(seed)
    total = math.ceil(len(lengths) * epochs - 1e-9)
    if max_steps:
        total = min(total, max_steps * batch_size)
    ordered = []
    for start in range(0, total, len(lengths)):
        shuffled = rng.permutation(len(lengths))[: total - start]
        # Where an epoch ends within a batch, the next one fills it up.
        lead = min(-start % batch_size, len(shuffled))
        ordered += [shuffled[:lead], _grouped(shuffled[lead:], lengths, batch_size, rng)]
    return np.concatenate(ordered).astype(np.int64)


def _grouped(shuffled: np.ndarray, lengths: np.ndarray, batch_size: int, rng: np.random.Generator) -> np.ndarray:
    """An epoch's rows in batches of like length, from as short a window as will do."""
    window = batch_size * min(50, max(1, len(shuffled) // (4 * batch_size)))
    while True:
        ordered = _sorted_in_windows(shuffled, lengths, batch_size, window, deepcopy(rng))
        batches = micro_batches(ordered, batch_size=batch_size, micro_batch_size=batch_size)
        if window >= len(shuffled) or lengths[ordered].sum() >= USEFUL * tokens_of(lengths, batches).sum():
            return ordered
        window *= 2


def _sorted_in_windows(
    shuffled: np.ndarray, lengths: np.ndarray, batch_size: int, window: int, rng: np.random.Generator
) -> np.ndarray:
    ordered = [shuffled[:0]]
    for start in range(0, len(shuffled), window):
        part = shuffled[start : start + window]
        part = part[np.argsort(-lengths[part], kind="stable")]
        whole = len(part) // batch_size * batch_size
        ordered += [rng.permutation(part[:whole].reshape(-1, batch_size)).ravel(), part[whole:]]
    return np.concatenate(ordered)


def micro_batches(row_order: np.ndarray, *, batch_size: int, micro_batch_size: int) -> list[np.ndarray]:
    """The row numbers of every forward pass, in order."""
    return [
        row_order[at : min(at + micro_batch_size, start + batch_size)]
        for start in range(0, len(row_order), batch_size)
        for at in range(start, min(start + batch_size, len(row_order)), micro_batch_size)
    ]


def tokens_of(lengths: np.ndarray, batches: list[np.ndarray], packed: bool = False) -> np.ndarray:
    """Tokens of every batch (i64), end to end where it is packed, else with its padding."""
    if packed:
        return np.array([lengths[batch].sum() for batch in batches], dtype=np.int64)
    return np.array([len(batch) * lengths[batch].max() for batch in batches], dtype=np.int64)


def useful(
    lengths: np.ndarray, row_order: np.ndarray, *, batch_size: int, micro_batch_size: int, packed: bool
) -> list[float]:
    """Share of the tokens that are no padding, in each epoch."""
    found = []
    for start in range(0, len(row_order), len(lengths)):
        epoch = row_order[start : start + len(lengths)]
        batches = micro_batches(epoch, batch_size=batch_size, micro_batch_size=micro_batch_size)
        found.append(float(lengths[epoch].sum() / tokens_of(lengths, batches, packed).sum()))
    return found
