"""Checkpoints that can be trusted after a kill at any moment.

The trainer writes its files; then they are hashed and a manifest is written, last. A folder without a
manifest, or whose files are not the ones in it, is no checkpoint: it is removed, and the one before it
serves. The trainer's pickled state is read only from here, after the digests match.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

from tasks.store import file_digest, write_whole

SEAL = "sealed.json"


def seal(checkpoint: Path) -> None:
    """Make a written checkpoint count: its files are on disk and their sha256 beside them."""
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != SEAL)
    for path in files:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
    write_whole(
        checkpoint / SEAL,
        json.dumps({"files": {str(path.relative_to(checkpoint)): file_digest(path) for path in files}}, indent=2),
    )


def newest(folder: Path) -> Path | None:
    """The latest whole checkpoint; whatever is later and not whole is removed."""
    for checkpoint in _by_step(folder):
        if _is_whole(checkpoint):
            return checkpoint
        shutil.rmtree(checkpoint)
    return None


def prune(folder: Path, keep: int = 2) -> None:
    """Remove all but the latest checkpoints; two are kept, lest the last one turn out damaged."""
    for checkpoint in _by_step(folder)[keep:]:
        shutil.rmtree(checkpoint)


def step_of(checkpoint: Path) -> int:
    """The optimiser step after which a checkpoint was written."""
    return int(checkpoint.name.rpartition("-")[2])


def _by_step(folder: Path) -> list[Path]:
    return sorted(folder.glob("checkpoint-*"), key=step_of, reverse=True)


def _is_whole(checkpoint: Path) -> bool:
    try:
        expected = json.loads((checkpoint / SEAL).read_text(encoding="utf-8"))["files"]
        found = {str(p.relative_to(checkpoint)) for p in checkpoint.rglob("*") if p.is_file() and p.name != SEAL}
        return found == set(expected) and all(file_digest(checkpoint / n) == s for n, s in expected.items())
    except (OSError, ValueError, KeyError):
        return False
