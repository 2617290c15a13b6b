"""How an adapter comes about, from spec to folder, whatever backend loads the base and adds the adapter.

Everything that could differ between two attempts is fixed before the first step: the order of the rows,
the seeds, the precision of the adapter, the rows of a forward pass. So an attempt that goes on from a
checkpoint makes the adapter that an undisturbed one makes.
"""

from __future__ import annotations

import gc
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tasks.errors import BadInput, WorldFailed
from tasks.store import write_whole
from tasks.training import adapter_folder, checkpoints, memory, method, packing, parity, rows, sharding
from tasks.training.child import Attempt, Stopped
from tasks.training.environment import describe, peak_memory
from tasks.training.spec import ADAPTER, CHECKPOINTS, MICRO_BATCH, TrainingResult, TrainingSpec


@dataclass(frozen=True)
class Backend:
    """What a training library does its own way.

    `load(spec, longest)`: the base, frozen, in the method's precision, for rows of up to `longest` tokens;
    `adapt(model, spec)`: the same with a new adapter in it;
    `trainer()`: the kind of trainer, an AdapterTrainer.
    """

    load: Callable[[TrainingSpec, int], Any]
    adapt: Callable[[Any, TrainingSpec], Any]
    trainer: Callable[[], Any]


@dataclass(frozen=True)
class _Data:
    """What is trained on: rows, their order, and the tokens that end a turn."""

    training: rows.Rows
    validation: rows.Rows | None
    order: np.ndarray
    ends: list[int]


def train(attempt: Attempt, backend: Backend) -> TrainingResult | None:
    """Train one adapter and leave it in the work folder; None in all processes of an attempt but the first.

    Raises BadInput for rows or settings that would train wrongly, NotFinite for a loss that is not
    finite, WorldFailed for a device or disk that gives out and for an adapter that answers differently
    after it is loaded again; Stopped once the state is saved.
    """
    from transformers import AutoTokenizer, set_seed

    from tasks.training.trainer import out_of_memory
    from tasks.training.watch import require_trained

    spec, work, recipe = attempt.spec, attempt.spec.work, attempt.spec.training
    method.require_device(recipe)
    tokenizer = AutoTokenizer.from_pretrained(spec.base_folder, local_files_only=True)
    data = _data(attempt, tokenizer)
    steps = math.ceil(len(data.order) / recipe.batch_size)
    checkpoint = attempt.from_first(lambda: checkpoints.newest(work / CHECKPOINTS))
    resumed = checkpoints.step_of(checkpoint) if checkpoint else 0
    earlier = attempt.from_first(lambda: attempt.reported(until=resumed))

    set_seed(recipe.seed)
    model = _loaded(backend, spec, int(data.training.lengths.max()))
    method.require_targets(model, recipe)
    model = backend.adapt(model, spec)
    method.begin(model, spec)
    untrained = parity.matrices(model)
    if attempt.sharded:
        sharding.shard(model)
    if recipe.packing:
        model.config.use_cache = False  # with a cache, packed rows would see each other
        packing.require_apart(model, parity.prompts(data.training))
    trainer, micro = _trial(attempt, backend, model, tokenizer, data, earlier[-1].seconds if earlier else 0.0)

    attempt.training_begins()
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error) or micro == 1:
            raise
        # The trial went through and memory has come apart since: the next attempt goes on with fewer rows a pass.
        _note(attempt, _fewer(attempt, micro))
        raise Stopped from error
    if trainer.state.global_step < steps:
        raise Stopped
    if not (attempt.first or attempt.sharded):
        return None
    from tasks.training.trainer import validation_loss

    # Where the base is split, what follows is done by all together; the first process alone writes and answers.
    method.settle(model, recipe)
    validated = validation_loss(trainer, data.validation, micro) if data.validation else None
    measured = _measured(attempt, trainer, data, micro, steps, resumed, validated) if attempt.first else None
    asked = parity.prompts(data.training)
    answers, matrices = parity.logits(model, asked), parity.matrices(model)
    require_trained(model)
    if matrices == untrained:
        raise WorldFailed("training", "did nothing: all weights are what they were", "Raise training.learning_rate.")
    folder = work / ADAPTER
    if attempt.first:
        shutil.rmtree(folder, ignore_errors=True)
        method.save(model, spec, folder)
        adapter_folder.complete(folder, spec, data.ends)
    if attempt.sharded:
        attempt.wait_for_all()
    del model, trainer
    _free()
    loaded = _reloaded(backend, spec, asked)
    parity.require_same(matrices, loaded)
    if attempt.sharded:
        sharding.shard(loaded)
    parity.require(answers, parity.logits(loaded, asked))
    return measured


def _measured(
    attempt: Attempt, trainer: Any, data: _Data, micro: int, steps: int, resumed: int, validated: float | None
) -> TrainingResult:
    """The result of a run that has come to its last step; `validated`: its loss on the validation split."""
    spec, recipe = attempt.spec, attempt.spec.training
    losses = [progress.loss for progress in attempt.reported(until=steps)]
    last = losses[-max(1, len(losses) // 10) :]
    return TrainingResult(
        steps=steps,
        loss=sum(last) / len(last),
        validation_loss=validated,
        tokens=int(data.training.lengths[data.order].sum()),
        supervised_tokens=int(data.training.supervised[data.order].sum()),
        seconds=trainer.watch.seconds(),
        peak_memory=peak_memory(),
        device=str(trainer.args.device),
        resumed=resumed,
        environment=describe()
        | {
            "processes": attempt.processes,
            "micro_batch_size": micro,
            "learning_rate": recipe.learning_rate * spec.rate_scale,
            "useful_tokens": [round(share, 4) for share in _useful(attempt, data, micro)],
            "dtype": str(method.precision(trainer.model, recipe)).removeprefix("torch."),
        },
    )


def _data(attempt: Attempt, tokenizer: Any) -> _Data:
    """The splits, checked, and the order they are trained in."""
    spec, recipe = attempt.spec, attempt.spec.training
    stops = set(adapter_folder.stop_tokens(spec.base_folder))
    # Each process reads a file of its own, so that none waits for another's.
    bounds = {"max_length": spec.max_length, "vocabulary": len(tokenizer)}
    training = rows.prepare(spec.train, spec.work / f"train.{attempt.process}.arrow", **bounds)
    ends = rows.ends_of_turn(training, stops, set(tokenizer.added_tokens_decoder))
    validation = None
    if spec.validation and (attempt.first or attempt.sharded):
        validation = rows.prepare(spec.validation, spec.work / f"validation.{attempt.process}.arrow", **bounds)
    order = rows.order(
        training.lengths,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        seed=recipe.seed,
    )
    return _Data(training, validation, order, ends)


def _loaded(backend: Backend, spec: TrainingSpec, longest: int) -> Any:
    """The base; in NF4 with double quantisation where the method says so, and never silently not."""
    model = backend.load(spec, longest)
    quantised = spec.training.method == "qlora"
    if quantised != any(type(module).__name__ == "Linear4bit" for module in model.modules()):
        found = "is not" if quantised else "is"
        raise BadInput(
            "training.method",
            spec.training.method,
            f"does not go with this base here: after loading it {found} quantised to 4 bits",
            "bitsandbytes may not support this device or these layer widths; choose the other method."
            if quantised
            else "Name the 16-bit version of the base.",
        )
    return model


def _trial(
    attempt: Attempt, backend: Backend, model: Any, tokenizer: Any, data: _Data, before: float
) -> tuple[Any, int]:
    """A trainer that the run's largest batch has been through, and the rows of its forward pass.

    Where memory runs out they are halved, and the passes of a step doubled, so that the global batch stays
    the recipe's; what was found is kept for the attempts to come. Raises WorldFailed where one row is too much.
    """
    from transformers import set_seed

    from tasks.training import trainer as trainers

    recipe = attempt.spec.training
    note = attempt.spec.work / MICRO_BATCH
    share = recipe.batch_size // attempt.processes
    micro = int(note.read_text()) if note.is_file() else _first_try(attempt, share, data)
    while True:
        set_seed(recipe.seed)
        trainer = trainers.make(attempt, backend.trainer(), model, tokenizer, data.training, data.order, micro, before)
        fits = trainers.longest_batch_fits(trainer, data.training, data.order, recipe.batch_size, micro)
        # With a split base, a process that ran out of memory has left the others inside of a pass: they cannot agree.
        if (fits or not attempt.sharded) and not attempt.agreed(not fits):
            break
        if micro == 1:
            raise WorldFailed(
                "GPU memory",
                f"is too small for one row of {data.training.lengths.max()} tokens",
                "Lower base.max_length or use a smaller base.",
            )
        micro = _fewer(attempt, micro)
        if attempt.sharded:
            _note(attempt, micro)
            raise Stopped
    if attempt.first:
        _note(attempt, micro)
    return trainer, micro


def _fewer(attempt: Attempt, micro: int) -> int:
    """Half of the rows of a pass, or the next less that divides what this process takes of a step."""
    share = attempt.spec.training.batch_size // attempt.processes
    return next(m for m in range(micro // 2, 0, -1) if share % m == 0)


def _note(attempt: Attempt, micro: int) -> None:
    """For the attempts to come."""
    write_whole(attempt.spec.work / MICRO_BATCH, str(micro))


def _first_try(attempt: Attempt, share: int, data: _Data) -> int:
    """Rows of a forward pass to begin with: the recipe's, or as many of a step as memory should take with little enough
    padding. In a small or uneven split not even sorted rows fill a whole batch (rows.USEFUL); fewer at a time do."""
    recipe = attempt.spec.training
    if recipe.micro_batch_size:
        return recipe.micro_batch_size
    micro = _with_room(attempt.spec, share, data)
    while micro > 1 and min(_useful(attempt, data, micro)) < rows.USEFUL:
        micro = _fewer(attempt, micro)
    return micro


def _useful(attempt: Attempt, data: _Data, micro: int) -> list[float]:
    """Share of each epoch's tokens that are no padding, with so many rows a pass."""
    recipe = attempt.spec.training
    return rows.useful(
        data.training.lengths,
        data.order,
        batch_size=recipe.batch_size,
        micro_batch_size=micro,
        packed=recipe.packing,
    )


def _with_room(spec: TrainingSpec, share: int, data: _Data) -> int:
    """Rows of a forward pass that the device should have memory for.

    A GPU says when its memory runs out, so all are tried there; a CPU's process is killed without a word, and with a
    split base each try is an attempt, so there the estimate counts. Where the base's config does not tell its shape,
    all are tried as well.
    """
    import torch

    gpu = torch.cuda.is_available()
    if spec.training.sharding == "none" if gpu else spec.memory is None:
        return share
    try:
        shape = memory.shape_of(spec.base_folder, spec.training)
    except (OSError, ValueError, AttributeError):
        return share
    longest = int(data.training.lengths.max())
    # Of a GPU all of it, as the estimate counts what is there already; else a process's part of what is free.
    room = torch.cuda.mem_get_info()[1] if gpu else (spec.memory or 0) // spec.training.processes
    return memory.fitting(shape, spec.training, length=longest, memory=room, gpu=gpu) or 1


def _reloaded(backend: Backend, spec: TrainingSpec, asked: list[list[int]]) -> Any:
    """Base and adapter, or the whole model, as anyone will load them, from disk."""
    from peft import PeftModel

    if spec.training.method == "full":
        return backend.load(spec.model_copy(update={"base_folder": spec.work / ADAPTER}), max(map(len, asked)))
    return PeftModel.from_pretrained(_loaded(backend, spec, max(map(len, asked))), spec.work / ADAPTER)


def _free() -> None:
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
