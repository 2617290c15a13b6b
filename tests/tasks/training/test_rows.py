"""Rows on their way into training: what is refused, and in what order the rest comes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tasks.errors import BadInput
from tasks.training import rows


def write(folder: Path, ids: list[list[int]], mask: list[list[bool]]) -> Path:
    split = folder / "train.parquet"
    schema = {"input_ids": pl.List(pl.Int32), "loss_mask": pl.List(pl.Boolean)}
    pl.DataFrame({"input_ids": ids, "loss_mask": mask}, schema=schema).write_parquet(split)
    return split


def prepare(folder: Path, ids: list[list[int]], mask: list[list[bool]]) -> rows.Rows:
    return rows.prepare(write(folder, ids, mask), folder / "train.arrow", max_length=6, vocabulary=100)


def test_labels_are_the_ids_where_the_mask_says_and_ignored_elsewhere(tmp_path: Path) -> None:
    from datasets import Dataset

    found = prepare(tmp_path, [[5, 6, 7], [8, 9, 10, 11]], [[False, True, True], [False, False, True, False]])
    data = Dataset.from_file(str(found.file))
    assert data["input_ids"][:] == [[5, 6, 7], [8, 9, 10, 11]]
    assert data["labels"][:] == [[-100, 6, 7], [-100, -100, 10, -100]]
    assert found.lengths.tolist() == [3, 4]
    assert found.supervised.tolist() == [2, 1]
    assert found.ends == {7: 1, 10: 1}


@pytest.mark.parametrize(
    ("ids", "mask", "complaint"),
    [
        ([[1, 2], [3, 4]], [[False, True], [False, False]], "'row 1' has no supervised token"),
        ([[1, 2], [3, 4]], [[True, True], [False, True]], "'row 0' has no prompt"),
        ([[1, 2], []], [[False, True], []], "'row 1' has no supervised token"),
        ([[1, 2, 3], [4, 5]], [[False, True], [False, True, True]], "do not fit their token ids"),
        ([[1, 2], None], [[False, True], None], "do not fit their token ids"),
        ([[1] * 7], [[False] * 6 + [True]], "longer than base.max_length"),
        ([[1, 100]], [[False, True]], "outside the base model's vocabulary"),
        ([[1, -1]], [[False, True]], "outside the base model's vocabulary"),
        ([], [], "holds no rows"),
    ],
)
def test_rows_that_would_train_wrongly_are_refused(tmp_path: Path, ids: list, mask: list, complaint: str) -> None:
    with pytest.raises(BadInput, match=complaint):
        prepare(tmp_path, ids, mask)


def test_the_row_at_fault_is_named_beyond_the_first_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rows, "_ROWS_AT_ONCE", 2)
    with pytest.raises(BadInput, match="row 3"):
        prepare(tmp_path, [[1, 2]] * 4, [[False, True]] * 3 + [[False, False]])


def test_a_turn_has_to_end_in_a_token_that_stops(tmp_path: Path) -> None:
    found = prepare(tmp_path, [[5, 2, 9], [5, 6, 7]], [[False, True, False], [False, True, True]])
    with pytest.raises(BadInput, match=r"7 \(1 rows\)"):
        rows.ends_of_turn(found, {2}, {0, 1, 2})
    assert rows.ends_of_turn(found, {2}, {7}) == [2, 7]


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=200),
    batch_size=st.integers(1, 17),
    epochs=st.floats(0.1, 3.5),
    seed=st.integers(0, 5),
)
def test_every_epoch_sees_every_row_once(lengths: list[int], batch_size: int, epochs: float, seed: int) -> None:
    sizes = np.array(lengths)
    found = rows.order(sizes, batch_size=batch_size, epochs=epochs, max_steps=None, seed=seed)
    counts = np.bincount(found, minlength=len(sizes))
    assert len(found) == int(np.ceil(len(sizes) * epochs - 1e-9))
    assert counts.max() - counts.min() <= 1
    assert -(-len(found) // batch_size) == rows.steps(len(sizes), batch_size=batch_size, epochs=epochs, max_steps=None)
    again = rows.order(sizes, batch_size=batch_size, epochs=epochs, max_steps=None, seed=seed)
    assert np.array_equal(found, again)


def test_max_steps_bounds_the_order() -> None:
    found = rows.order(np.full(100, 9), batch_size=8, epochs=1, max_steps=3, seed=0)
    assert len(found) == 24
    assert len(set(found.tolist())) == 24


@pytest.mark.parametrize(
    ("count", "epochs", "micro"), [(4000, 1, 8), (4000, 2.5, 4), (640, 1, 4), (200, 3, 2), (100_000, 1, 8)]
)
def test_at_least_92_percent_of_each_epochs_tokens_are_useful(count: int, epochs: float, micro: int) -> None:
    """Lengths as chats and traces have them, from 8 to 2048 tokens; batched as they come, half of it is padding."""
    lengths = np.random.default_rng(0).lognormal(5, 0.9, count).astype(int).clip(8, 2048)
    how = {"batch_size": 8, "micro_batch_size": micro, "packed": False}
    found = rows.order(lengths, batch_size=8, epochs=epochs, max_steps=None, seed=0)
    assert len(shares := rows.useful(lengths, found, **how)) == np.ceil(epochs)
    assert min(shares) >= 0.92
    assert rows.useful(lengths, np.arange(count), **how)[0] < 0.75
    assert rows.useful(lengths, found, **(how | {"packed": True})) == [1.0] * len(shares)


def test_where_no_order_is_that_good_rows_are_sorted_as_far_as_it_goes() -> None:
    lengths = np.array([10, 1000] * 4)
    found = rows.order(lengths, batch_size=8, epochs=1, max_steps=None, seed=0)
    assert sorted(found) == list(range(8))
    assert rows.useful(lengths, found, batch_size=8, micro_batch_size=8, packed=False)[0] == pytest.approx(0.505)


def test_a_batch_holds_no_row_twice_where_there_are_enough() -> None:
    lengths = np.random.default_rng(0).integers(8, 500, 100)
    found = rows.order(lengths, batch_size=10, epochs=5, max_steps=None, seed=0)
    assert all(len(set(batch)) == 10 for batch in found.reshape(-1, 10).tolist())


def test_batches_are_not_a_curriculum() -> None:
    lengths = np.arange(1, 4001)
    found = rows.order(lengths, batch_size=8, epochs=1, max_steps=None, seed=0)
    means = lengths[found].reshape(-1, 8).mean(axis=1)
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.15


def test_micro_batches_stay_within_their_batch() -> None:
    batches = rows.micro_batches(np.arange(11), batch_size=4, micro_batch_size=3)
    assert [b.tolist() for b in batches] == [[0, 1, 2], [3], [4, 5, 6], [7], [8, 9, 10]]
