"""How good the estimate of training's memory is. Not run by pytest.

    python tests/benchmarks/bench_training.py

Trains the demo's base for two steps, each time in a process of its own, with batches of different rows and lengths,
and prints what the estimate said beside the measured peak. On a CPU the peak is the process's largest resident size.
About four minutes on two cores.
"""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.fetch import fetch_base
from tasks.recipe import Base, Training
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.training import BACKENDS, TrainingResult, TrainingSpec, estimate, run, shape_of, weights_digest

STEPS = 2
CASES = (
    ("unsloth", "qlora", 2, 64),
    ("unsloth", "qlora", 4, 128),
    ("unsloth", "qlora", 8, 128),
    ("unsloth", "qlora", 4, 512),
    ("unsloth", "lora", 4, 128),
    ("transformers", "qlora", 4, 128),
    ("transformers", "qlora", 4, 512),
    ("transformers", "full", 4, 128),
    ("transformers", "full", 2, 512),
)


def write_rows(file: Path, rows: int, length: int) -> None:
    """Rows of drawn tokens, all of one length, the second half of each supervised."""
    draw = np.random.default_rng(0)
    ids = [[1, *draw.integers(5, 40_000, length - 2).tolist(), 2] for _ in range(rows)]
    mask = [[at >= length // 2 for at in range(length)]] * rows
    schema = {"input_ids": pl.List(pl.Int32), "loss_mask": pl.List(pl.Boolean)}
    pl.DataFrame({"input_ids": ids, "loss_mask": mask}, schema=schema).write_parquet(file)


def measured(base: BaseSnapshot, folder: Path, training: Training, length: int, work: Path) -> TrainingResult:
    work.mkdir()
    write_rows(work / "train.parquet", STEPS * training.batch_size, length)
    spec = TrainingSpec(
        work=work,
        base_folder=folder,
        base_uri=base.uri,
        base_revision=base.revision,
        base_weights=weights_digest(base),
        train=work / "train.parquet",
        validation=None,
        max_length=length,
        chat_template=None,
        training=training,
    )
    return run(spec, BACKENDS[training.backend], restarts=0)


def main() -> None:
    import torch

    gpu = torch.cuda.is_available()
    with tempfile.TemporaryDirectory() as place:
        os.environ.setdefault("NIGHTOWL_HOME", f"{place}/home")
        store = Store.open()
        base = fetch_base(Base(uri="sample://smollm2-135m-instruct"), store)
        folder = store.folder(base)
        worst = 0.0
        for number, (backend, method, rows, length) in enumerate(CASES):
            training = Training(backend=backend, method=method, batch_size=rows, warmup_steps=0)
            said = estimate(shape_of(folder, training), training, length=length, micro=rows, gpu=gpu).total
            found = measured(base, folder, training, length, Path(place) / str(number))
            off = said / found.peak_memory - 1
            worst = max(worst, abs(off))
            print(
                f"{backend:12} {method:5} {rows} rows of {length:4} tokens: estimate {said / 1e9:5.2f} GB, "
                f"peak {found.peak_memory / 1e9:5.2f} GB, {off:+4.0%}",
                flush=True,
            )
        print(f"the estimate is off by at most {worst:.0%}")


if __name__ == "__main__":
    main()
