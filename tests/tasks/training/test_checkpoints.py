"""Only a sealed, undamaged checkpoint is gone on from."""

from __future__ import annotations

from pathlib import Path

import pytest

from tasks.training import checkpoints


def write(folder: Path, step: int) -> Path:
    checkpoint = folder / f"checkpoint-{step}"
    checkpoint.mkdir(parents=True)
    (checkpoint / "adapter_model.safetensors").write_bytes(b"weights %d" % step)
    (checkpoint / "optimizer.pt").write_bytes(b"moments")
    return checkpoint


def test_the_latest_by_step_counts_not_by_name(tmp_path: Path) -> None:
    for step in (8, 10, 9):
        checkpoints.seal(write(tmp_path, step))
    found = checkpoints.newest(tmp_path)
    assert found
    assert checkpoints.step_of(found) == 10


def test_none_where_nothing_was_saved(tmp_path: Path) -> None:
    assert checkpoints.newest(tmp_path / "absent") is None


def damage_nothing_but_leave_unsealed(checkpoint: Path) -> None:
    (checkpoint / checkpoints.SEAL).unlink()


def flip_a_byte(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").write_bytes(b"momentz")


def lose_a_file(checkpoint: Path) -> None:
    (checkpoint / "optimizer.pt").unlink()


def add_a_file(checkpoint: Path) -> None:
    (checkpoint / "scheduler.pt").write_bytes(b"planted")


def cut_the_seal(checkpoint: Path) -> None:
    seal = checkpoint / checkpoints.SEAL
    seal.write_bytes(seal.read_bytes()[:20])


@pytest.mark.parametrize(
    "damage", [damage_nothing_but_leave_unsealed, flip_a_byte, lose_a_file, add_a_file, cut_the_seal]
)
def test_a_damaged_checkpoint_is_removed_and_the_one_before_serves(tmp_path: Path, damage) -> None:
    for step in (2, 4):
        checkpoints.seal(write(tmp_path, step))
    damage(tmp_path / "checkpoint-4")
    assert checkpoints.newest(tmp_path) == tmp_path / "checkpoint-2"
    assert not (tmp_path / "checkpoint-4").exists()


def test_two_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6, 10):
        checkpoints.seal(write(tmp_path, step))
    checkpoints.prune(tmp_path)
    assert sorted(p.name for p in tmp_path.glob("checkpoint-*")) == ["checkpoint-10", "checkpoint-6"]
