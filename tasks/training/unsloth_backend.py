"""The default backend: QLoRA and LoRA with Unsloth, on one CUDA device or on the CPU, by the same calls.

Runs as a process of its own (see process.py). Everything that could differ between two attempts is
fixed before the first step: the order of the rows, the seeds, the precision of the adapter. So an
attempt that goes on from a checkpoint makes the adapter that an undisturbed one makes.
"""

from __future__ import annotations

import gc
import math
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np

from tasks.errors import BadInput, WorldFailed
from tasks.training import adapter_folder, checkpoints, rows
from tasks.training.child import Attempt, NotFinite, Stopped, serve
from tasks.training.environment import describe, peak_memory
from tasks.training.schema import Progress
from tasks.training.spec import ADAPTER, CHECKPOINTS, TrainingResult, TrainingSpec

_PARITY_ROWS = 4
_PARITY_TOKENS = 256
# Of the logits' spread, in the mean square. In bfloat16, changing the adapter by 1e-7 of itself moves the logits of the
# demo's base by 0.03 of their spread, and losing one of its layers by 0.08 to 0.10.
_PARITY_TOLERANCE = 0.05


def train(attempt: Attempt) -> TrainingResult:
    """Train one adapter and leave it in the work folder.

    Raises BadInput for rows or settings that would train wrongly, NotFinite for a loss that is not
    finite, WorldFailed for a device or disk that gives out and for an adapter that answers differently
    after it is loaded again; Stopped once the state is saved.
    """
    import unsloth  # before the libraries that it patches
    from transformers import AutoTokenizer, set_seed

    spec, work, recipe = attempt.spec, attempt.spec.work, attempt.spec.training
    tokenizer = AutoTokenizer.from_pretrained(spec.base_folder, local_files_only=True)
    stops = set(adapter_folder.stop_tokens(spec.base_folder))
    training = rows.prepare(spec.train, work / "train.arrow", max_length=spec.max_length, vocabulary=len(tokenizer))
    ends = rows.ends_of_turn(training, stops, set(tokenizer.added_tokens_decoder))
    validation = spec.validation and rows.prepare(
        spec.validation, work / "validation.arrow", max_length=spec.max_length, vocabulary=len(tokenizer)
    )
    order = rows.order(
        training.lengths,
        batch_size=recipe.batch_size,
        epochs=recipe.epochs,
        max_steps=recipe.max_steps,
        seed=recipe.seed,
    )
    steps = math.ceil(len(order) / recipe.batch_size)
    checkpoint = checkpoints.newest(work / CHECKPOINTS)
    resumed = checkpoints.step_of(checkpoint) if checkpoint else 0
    earlier = attempt.reported(until=resumed)

    set_seed(recipe.seed)
    model = _load(unsloth, spec, longest=int(training.lengths.max()))
    model = unsloth.FastLanguageModel.get_peft_model(
        model,
        r=recipe.rank,
        lora_alpha=recipe.alpha,
        lora_dropout=recipe.dropout,
        target_modules=recipe.target_modules if isinstance(recipe.target_modules, str) else list(recipe.target_modules),
        random_state=recipe.seed,
        use_gradient_checkpointing=_checkpointing(model),
    )
    micro = recipe.micro_batch_size or recipe.batch_size
    while True:
        set_seed(recipe.seed)
        trainer = _trainer(attempt, model, tokenizer, training, order, micro, earlier)
        if _longest_batch_fits(trainer, training, order, recipe.batch_size, micro):
            break
        if micro == 1:
            raise WorldFailed(
                "GPU memory",
                f"is too small for one row of {training.lengths.max()} tokens",
                "Lower base.max_length or use a smaller base.",
            )
        micro = next(m for m in range(micro // 2, 0, -1) if recipe.batch_size % m == 0)

    attempt.training_begins()
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if trainer.state.global_step < steps:
        raise Stopped
    losses = [progress.loss for progress in attempt.reported(until=steps)]
    last = losses[-max(1, len(losses) // 10) :]
    seconds = trainer.seconds()
    validation_loss = _validation_loss(trainer, validation, micro) if validation else None
    memory = peak_memory()
    device = str(trainer.args.device)
    environment = describe() | {
        "micro_batch_size": micro,
        "learning_rate": recipe.learning_rate * spec.rate_scale,
        "useful_tokens": round(_useful(training, order, recipe.batch_size, micro), 4),
        "dtype": str(model.dtype).removeprefix("torch."),
    }

    folder = work / ADAPTER
    shutil.rmtree(folder, ignore_errors=True)
    prompts = _parity_prompts(training)
    answers = _logits(model, prompts)
    _require_trained(model)
    model.save_pretrained(folder)
    adapter_folder.complete(folder, spec, ends)
    del model, trainer
    gc.collect()
    _require_parity(unsloth, spec, folder, prompts, answers)
    return TrainingResult(
        steps=steps,
        loss=sum(last) / len(last),
        validation_loss=validation_loss,
        tokens=int(training.lengths[order].sum()),
        supervised_tokens=int(training.supervised[order].sum()),
        seconds=seconds,
        peak_memory=memory,
        device=device,
        resumed=resumed,
        environment=environment,
    )


def _load(unsloth: Any, spec: TrainingSpec, longest: int) -> Any:
    """The base, frozen; in NF4 with double quantisation where the method says so, and never silently not."""
    quantised = spec.training.method == "qlora"
    model, _ = unsloth.FastLanguageModel.from_pretrained(
        str(spec.base_folder),
        max_seq_length=max(longest, 64),
        load_in_4bit=quantised,
        load_in_16bit=not quantised,
        use_gradient_checkpointing=False,
        local_files_only=True,
    )
    four_bit = [m for m in model.modules() if type(m).__name__ == "Linear4bit"]
    if quantised != bool(four_bit):
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


def _checkpointing(model: Any) -> str | bool:
    """Recompute activations on a GPU, whose memory is the limit; a CPU pays a third more time for it."""
    return "unsloth" if model.device.type == "cuda" else False


def _trainer(
    attempt: Attempt,
    model: Any,
    tokenizer: Any,
    training: rows.Rows,
    order: np.ndarray,
    micro: int,
    earlier: list[Progress],
) -> Any:
    """TRL's SFTTrainer over rows that are tokenised, masked and in order already."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    spec, recipe = attempt.spec, attempt.spec.training
    steps = math.ceil(len(order) / recipe.batch_size)
    before = earlier[-1].seconds if earlier else 0.0
    tokens = np.cumsum(training.lengths[order])

    class Watch(TrainerCallback):
        """Reports each step, seals checkpoints, and stops for what must not go on."""

        def __init__(self) -> None:
            self.started = self.last = time.perf_counter()

        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.started = self.last = time.perf_counter()
            self.optimizer, self.schedule = kwargs["optimizer"], kwargs["lr_scheduler"]
            # A checkpoint brings the rate it was saved with; after a halving the spec's is the one that counts.
            self.schedule.base_lrs = [args.learning_rate] * len(self.schedule.base_lrs)

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if attempt.stop.is_set():
                control.should_save = control.should_training_stop = True
            if control.should_save or state.global_step % args.save_steps == 0:
                _require_disk(spec.work, model)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if not logs or "loss" not in logs:
                return
            loss, gradient = float(logs["loss"]), float(logs["grad_norm"])
            if not (math.isfinite(loss) and math.isfinite(gradient)):
                raise NotFinite(
                    "training",
                    f"the loss is {loss:g} and its gradient {gradient:g} at step {state.global_step} of {steps}",
                    "Lower training.learning_rate, or look for damaged rows or base weights.",
                )
            now, step = time.perf_counter(), state.global_step
            done = tokens[min(step * recipe.batch_size, len(tokens)) - 1]
            since = tokens[(step - 1) * recipe.batch_size - 1] if step > 1 else 0
            attempt.report(
                Progress(
                    step=step,
                    steps=steps,
                    loss=loss,
                    learning_rate=float(logs["learning_rate"]),
                    tokens_per_second=float(done - since) / max(now - self.last, 1e-9),
                    seconds=before + now - self.started,
                )
            )
            self.last = now

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            folder = Path(args.output_dir)
            checkpoints.seal(folder / f"checkpoint-{state.global_step}")
            checkpoints.prune(folder)

    watch = Watch()

    class Trainer(SFTTrainer):
        def create_model_card(self, *args: Any, **kwargs: Any) -> None:
            """None: what an adapter is gets recorded where it is registered."""

        def seconds(self) -> float:
            return before + time.perf_counter() - watch.started

    trainer = Trainer(
        model=model,
        args=SFTConfig(
            output_dir=str(spec.work / CHECKPOINTS),
            per_device_train_batch_size=micro,
            per_device_eval_batch_size=micro,
            gradient_accumulation_steps=recipe.batch_size // micro,
            num_train_epochs=1,  # the order of the rows holds all epochs
            max_steps=steps,
            learning_rate=recipe.learning_rate * spec.rate_scale,
            lr_scheduler_type="constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            optim="adamw_torch_fused",
            max_length=None,
            packing=False,
            shuffle_dataset=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="sequential",
            gradient_checkpointing=bool(_checkpointing(model)),
            bf16=model.dtype == torch.bfloat16,
            fp16=model.dtype == torch.float16,
            seed=recipe.seed,
            data_seed=recipe.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_steps=recipe.save_steps,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_file(str(training.file)).select(order, keep_in_memory=True),
        processing_class=tokenizer,
        # Its padding is masked by position, so a pad token that is also an end of turn stays trained.
        data_collator=DataCollatorForLanguageModeling(pad_token_id=_padding(tokenizer)),
        callbacks=[watch],
    )
    # The constructor casts a quantised model's adapter to bfloat16, and a checkpoint comes back in float32:
    # a resumed run would go on with another arithmetic.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _padding(tokenizer: Any) -> int:
    return next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)


def _longest_batch_fits(trainer: Any, training: rows.Rows, order: np.ndarray, batch_size: int, micro: int) -> bool:
    """Forward and backward on the largest batch of the run, keeping nothing; False when memory ran out.

    So a run that cannot end shows it in its first minute. Raises WorldFailed when this loss is not finite.
    """
    import torch

    batches = rows.micro_batches(order, batch_size=batch_size, micro_batch_size=micro)
    largest = int(rows.padded(training.lengths, batches).argmax())
    first = sum(len(batch) for batch in batches[:largest])
    inputs = trainer.data_collator([trainer.train_dataset[first + i] for i in range(len(batches[largest]))])
    learned = int((inputs["labels"] != rows.IGNORED).sum())
    if learned != training.supervised[batches[largest]].sum():
        raise WorldFailed("training", "the collator changed which tokens are supervised", "Report this.")
    state = torch.random.get_rng_state()
    try:
        loss = trainer.training_step(trainer.model, inputs, torch.tensor(learned, device=trainer.args.device))
        if not math.isfinite(float(loss)):
            raise WorldFailed(
                "training",
                f"the loss is {float(loss):g} on the longest batch, before any step",
                "The base weights or a row are damaged; fetch the base again and look at the data.",
            )
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        trainer.model.zero_grad(set_to_none=True)
        torch.random.set_rng_state(state)
        trainer._metrics["train"].clear()
        trainer._total_train_tokens = 0
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def _require_disk(work: Path, model: Any) -> None:
    """Raise WorldFailed when a checkpoint (weights and two moments, in float32) might not fit."""
    size = 4 * 3 * sum(p.numel() for p in model.parameters() if p.requires_grad)
    free = shutil.disk_usage(work).free
    if free < 2 * size + 64 * 2**20:
        raise WorldFailed(
            str(work),
            f"has {free / 2**20:.0f} MB free, too little for a checkpoint of {size / 2**20:.0f} MB",
            "Free disk space; what was saved so far is kept.",
        )


def _useful(training: rows.Rows, order: np.ndarray, batch_size: int, micro: int) -> float:
    batches = rows.micro_batches(order, batch_size=batch_size, micro_batch_size=micro)
    return float(training.lengths[order].sum() / rows.padded(training.lengths, batches).sum())


def _validation_loss(trainer: Any, validation: rows.Rows, micro: int) -> float:
    """Mean loss in nats per supervised token, each token counted once whatever batch it is in."""
    import torch
    from datasets import Dataset

    data = Dataset.from_file(str(validation.file))
    by_length = np.argsort(validation.lengths, kind="stable")
    total = 0.0
    trainer.model.eval()
    with torch.no_grad(), trainer.compute_loss_context_manager():
        for start in range(0, len(by_length), micro):
            inputs = trainer.data_collator([data[int(i)] for i in by_length[start : start + micro]])
            inputs = trainer._prepare_inputs(inputs)
            learned = (inputs["labels"] != rows.IGNORED).sum()
            total += float(trainer.compute_loss(trainer.model, inputs, num_items_in_batch=learned)) * int(learned)
    return total / int(validation.supervised.sum())


def _parity_prompts(training: rows.Rows) -> list[list[int]]:
    from datasets import Dataset

    data = Dataset.from_file(str(training.file))
    chosen = np.unique(np.linspace(0, len(data) - 1, _PARITY_ROWS).astype(int))
    return [data[int(i)]["input_ids"][:_PARITY_TOKENS] for i in chosen]


def _logits(model: Any, prompts: list[list[int]]) -> list[Any]:
    import torch

    model.eval()
    with torch.no_grad():
        return [model(input_ids=torch.tensor([ids], device=model.device)).logits[0].float().cpu() for ids in prompts]


def _require_trained(model: Any) -> None:
    """Every adapter matrix is finite, and training moved it away from doing nothing."""
    import torch

    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if wrong := [name for name, p in trained.items() if not torch.isfinite(p).all()]:
        raise NotFinite("training", f"{wrong[0]} is not finite after the last step", "Lower training.learning_rate.")
    if not any(p.abs().max() > 0 for name, p in trained.items() if "lora_B" in name):
        raise WorldFailed("training", "the adapter does nothing after the last step", "Raise training.learning_rate.")


def _require_parity(
    unsloth: Any, spec: TrainingSpec, folder: Path, prompts: list[list[int]], answers: list[Any]
) -> None:
    """Load base and adapter from disk again: the same prompts must give the logits that the trained model gave."""
    import torch
    from peft import PeftModel

    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    base = _load(unsloth, spec, longest=max(map(len, prompts)))
    model = PeftModel.from_pretrained(base, folder)
    for expected, found in zip(answers, _logits(model, prompts), strict=True):
        difference, scale = float((expected - found).square().mean().sqrt()), float(expected.std())
        if not difference <= _PARITY_TOLERANCE * scale:
            raise WorldFailed(
                "training",
                f"the saved adapter answers differently from the trained one (logits differ by {difference:.3g} in the "
                f"root mean square, where they spread by {scale:.3g})",
                "Report this with the log; nothing was released.",
            )


if __name__ == "__main__":
    serve(train)
