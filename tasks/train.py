"""Train a candidate: a tokenised mixture and a base model in, an adapter out.

The work is done by a process of its own (tasks/training), so that a crash, a leak or a kill there is
an attempt that failed and not the end of the night; what it had saved is where the next attempt begins.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.doctor import free_memory
from tasks.errors import BadInput, WorldFailed
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe, Training
from tasks.sources import BaseSnapshot
from tasks.store import Manifest, Store, code_digest, file_digest, home
from tasks.training import (
    BACKENDS,
    LOG,
    PROGRESS,
    Adapter,
    Progress,
    TrainingResult,
    TrainingSpec,
    figures,
    mirrored,
    require_installed,
    require_possible,
    run,
    steps,
    weights_digest,
)

_LIBRARIES = ("torch", "transformers", "trl", "peft", "unsloth", "unsloth-zoo", "bitsandbytes")

_CALIBRATION = 5  # steps

_WITHOUT_EFFECT = ("save_steps", "trackers")  # on the adapter

LONGEST = 1_048_576  # tokens: where the recipe keeps what is longer than its model's bound, nothing is too long


def adapter_inputs(recipe: Recipe, mixture: TokenisedMixture, base: BaseSnapshot) -> dict[str, Any]:
    """What an adapter depends on: `Store.address(Adapter, adapter_inputs(...))` is where it is, or will be.

    How often a checkpoint is written and who else is told of it changes nothing in the adapter, and so is left out.
    """
    return {
        "mixture": mixture.address,
        "base": base.address,
        "chat_template": recipe.base.chat_template,
        "training": recipe.training.model_dump(mode="json", exclude=set(_WITHOUT_EFFECT)),
        "code": code_digest("tasks/train.py", "tasks/training", libraries=_LIBRARIES),
    }


def log_file(recipe: Recipe, mixture: TokenisedMixture, base: BaseSnapshot, store: Store) -> Path:
    """Where what the training libraries print goes while an adapter is trained."""
    return store.work(Adapter, Store.address(Adapter, adapter_inputs(recipe, mixture, base))) / LOG


def train(
    recipe: Recipe,
    mixture: TokenisedMixture,
    base: BaseSnapshot,
    store: Store,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Adapter:
    """The adapter of this recipe on this mixture and base, trained unless it exists.

    `on_progress` is called after each optimiser step. A call that was killed goes on from its last whole
    checkpoint when it is made again. Raises BadInput for rows or settings that would train wrongly,
    WorldFailed when the training process fails (with the end of its log), Preempted on SIGTERM.
    """

    inputs = adapter_inputs(recipe, mixture, base)
    require_possible(recipe.training)
    require_installed(recipe.training.trackers)
    _require_full_rate(recipe.training, mixture.splits["train"].rows)

    def build(work: Path) -> Mapping[str, Any]:
        spec = training_spec(recipe, mixture, base, store, work)
        with mirrored(
            recipe.training.trackers,
            progress=work / PROGRESS,
            id=Store.address(Adapter, inputs),
            name=f"{recipe.name} {Store.address(Adapter, inputs)[:8]}",
            project="nightowl",
            config={"recipe": recipe.name, **inputs, "training": recipe.training.model_dump(mode="json")},
        ) as mirrors:

            def told(progress: Progress) -> None:
                for mirror in mirrors:
                    mirror.tell(progress.step, figures(progress))
                on_progress(progress)

            result = run(spec, BACKENDS[recipe.training.backend], told)
            for mirror in mirrors:
                mirror.tell(result.steps, _at_the_end(result))
        _keep_only(work, {"adapter", PROGRESS})
        return {
            "base": base.address,
            "mixture": mixture.address,
            "base_weights": spec.base_weights,
            **result.model_dump(),
        }

    adapter, _ = store.make(Adapter, inputs, build, resumable=True)
    return adapter


class Calibration(BaseModel):
    """What a few steps measured: speed after the first, seconds of a run that are no steps, peak memory in bytes."""

    model_config = ConfigDict(frozen=True)

    steps: int
    tokens_per_second: float
    around_seconds: float
    peak_memory: int
    micro_batch_size: int


def calibration(recipe: Recipe, mixture: TokenisedMixture, base: BaseSnapshot, store: Store) -> Calibration:
    """Train the first few steps of the recipe's run in a folder that is thrown away; raises as `train` does."""
    few = recipe.training.model_copy(update={"max_steps": _CALIBRATION, "warmup_steps": 0, "save_steps": 10**6})
    require_possible(few)
    seen: list[Progress] = []
    with TemporaryDirectory(dir=home()) as work:
        began = time.monotonic()
        spec = training_spec(recipe.model_copy(update={"training": few}), mixture, base, store, Path(work))
        found = run(spec, BACKENDS[few.backend], seen.append, restarts=0)
        whole = time.monotonic() - began
    # The first step pays for what is compiled and allocated once; where it is the only one, it has to do.
    counted = seen[1:] or seen
    tokens = sum(p.tokens_per_second * (p.seconds - before) for before, p in _since(seen) if p in counted)
    seconds = sum(p.seconds - before for before, p in _since(seen) if p in counted)
    return Calibration(
        steps=found.steps,
        tokens_per_second=tokens / seconds,
        around_seconds=max(0.0, whole - found.seconds),
        peak_memory=found.peak_memory,
        micro_batch_size=found.environment["micro_batch_size"],
    )


def _since(seen: Sequence[Progress]) -> list[tuple[float, Progress]]:
    """Each step with the seconds at which the one before it ended."""
    return list(zip([0.0, *(p.seconds for p in seen)], seen, strict=False))


def training_spec(
    recipe: Recipe, mixture: TokenisedMixture, base: BaseSnapshot, store: Store, work: Path
) -> TrainingSpec:
    """What the training process is told; its files are those of the manifests, or WorldFailed is raised."""
    rows, model = store.folder(mixture), store.folder(base)
    splits = [name for name in ("train", "validation") if mixture.splits[name].rows]
    _require_unchanged(mixture, rows, [f"{name}.parquet" for name in splits])
    _require_unchanged(base, model, list(base.files))
    return TrainingSpec(
        work=work,
        base_folder=model,
        base_uri=base.uri,
        base_revision=base.revision,
        base_weights=weights_digest(base),
        train=rows / "train.parquet",
        validation=rows / "validation.parquet" if "validation" in splits else None,
        max_length=recipe.base.max_length if recipe.quality.over_length != "keep" else LONGEST,
        chat_template=recipe.base.chat_template,
        training=recipe.training,
        memory=free_memory(),
    )


def _at_the_end(result: TrainingResult) -> dict[str, float]:
    """What a mirror is told of the whole run."""
    figures = result.model_dump(include={"validation_loss", "tokens", "supervised_tokens", "peak_memory"})
    return {name: figure for name, figure in figures.items() if figure is not None}


def _require_full_rate(training: Training, rows: int) -> None:
    """Raise BadInput when the warm-up takes the whole run: the recipe's rate would never be reached."""
    total = steps(rows, batch_size=training.batch_size, epochs=training.epochs, max_steps=training.max_steps)
    if rows and training.warmup_steps >= total:
        raise BadInput(
            "training.warmup_steps",
            training.warmup_steps,
            f"leaves none of the run's {total} steps at the full rate",
            "Lower it, or train longer.",
        )


def _require_unchanged(manifest: Manifest, folder: Path, names: list[str]) -> None:
    """Raise WorldFailed when a file is no longer the one in its manifest; GPU hours are too dear to train on it."""
    for name in names:
        if not (folder / name).is_file() or file_digest(folder / name) != manifest.files[name]:
            raise WorldFailed(
                str(folder / name),
                "is not the file that its manifest names",
                "Remove its folder; the night makes it again.",
            )


def _keep_only(work: Path, names: set[str]) -> None:
    for path in work.iterdir():
        if path.name not in names:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
