"""TRL's trainer over rows that are tokenised, masked and in order already, and what is asked of it beside training.

Imported by the training process alone, once its backend has been: Unsloth patches these libraries.
"""

from __future__ import annotations

import gc
import math
from typing import Any

import numpy as np
import torch  # noqa: TID253
from datasets import Dataset, concatenate_datasets  # noqa: TID253
from peft.optimizers import create_loraplus_optimizer  # noqa: TID253
from trl import SFTConfig, SFTTrainer  # noqa: TID253
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling  # noqa: TID253

from tasks.errors import WorldFailed
from tasks.training import method, rows, sharding
from tasks.training.child import Attempt
from tasks.training.spec import CHECKPOINTS
from tasks.training.watch import Watch

_OPTIMIZERS = {
    "adamw": "adamw_torch_fused",
    "adamw_8bit": "adamw_bnb_8bit",
    "paged_adamw": "paged_adamw_32bit",
    "paged_adamw_8bit": "paged_adamw_8bit",
}


class AdapterTrainer(SFTTrainer):
    """SFTTrainer without a model card, and with LoRA+'s learning rates where the recipe asks for them."""

    loraplus_ratio: float | None
    watch: Watch
    packed: bool
    sharded: bool
    trying = False  # a batch before training, when nothing has wrapped the model yet

    def autocast_smart_context_manager(self, *args: Any, **kwargs: Any) -> Any:
        # Accelerate puts autocast around a model as training begins. A trial batch takes the memory that a step will
        # take only in the same precision.
        return self.accelerator.autocast() if self.trying else super().autocast_smart_context_manager(*args, **kwargs)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None: what an adapter is gets recorded where it is registered."""

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        loss = super().training_step(*args, **kwargs)
        if self.sharded and self.accelerator.sync_gradients:
            sharding.average_gradients(self.model)
        return loss

    def create_optimizer(self, model: Any = None) -> Any:
        if self.optimizer is None and self.loraplus_ratio is not None:  # type: ignore[has-type]
            kind, options = self.get_optimizer_cls_and_kwargs(self.args, self.model)
            options["weight_decay"] = self.args.weight_decay
            self.optimizer = create_loraplus_optimizer(
                self.model, kind, loraplus_lr_ratio=self.loraplus_ratio, **options
            )
        optimizer = super().create_optimizer(model)
        self.watch.rates = [group["lr"] for group in optimizer.param_groups]
        return optimizer


def make(
    attempt: Attempt,
    kind: type[AdapterTrainer],
    model: Any,
    tokenizer: Any,
    training: rows.Rows,
    order: np.ndarray,
    micro: int,
    before: float,
) -> AdapterTrainer:
    """The trainer of one attempt.

    `order`: row numbers in the order of training; `micro`: rows of one forward pass; `before`: seconds
    that earlier attempts took.
    """
    spec, recipe = attempt.spec, attempt.spec.training
    watch = Watch(attempt, np.cumsum(training.lengths[order]), recipe.batch_size, before)
    trainer = kind(
        model=model,
        args=SFTConfig(
            output_dir=str(spec.work / CHECKPOINTS),
            per_device_train_batch_size=micro,
            per_device_eval_batch_size=micro,
            gradient_accumulation_steps=recipe.batch_size // (micro * attempt.processes),
            num_train_epochs=1,  # the order of the rows holds all epochs
            max_steps=math.ceil(len(order) / recipe.batch_size),
            learning_rate=recipe.learning_rate * spec.rate_scale,
            lr_scheduler_type="constant_with_warmup" if recipe.schedule == "constant" else recipe.schedule,
            warmup_steps=recipe.warmup_steps,
            weight_decay=recipe.weight_decay,
            optim=_OPTIMIZERS[recipe.optimizer],
            neftune_noise_alpha=recipe.neftune_alpha,
            max_length=None,
            packing=False,
            shuffle_dataset=False,
            dataset_kwargs={"skip_prepare_dataset": True},
            train_sampling_strategy="sequential",
            gradient_checkpointing=recomputes(model),
            use_cpu=model.device.type == "cpu",
            bf16=method.precision(model, recipe) == torch.bfloat16,
            fp16=method.precision(model, recipe) == torch.float16,
            seed=recipe.seed,
            data_seed=recipe.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_steps=recipe.save_steps,
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=_ordered(training, order, micro * attempt.processes if attempt.processes > 1 else 1),
        processing_class=tokenizer,
        # Its padding is masked by position, so a pad token that is also an end of turn stays trained.
        data_collator=DataCollatorForLanguageModeling(pad_token_id=_padding(tokenizer), padding_free=recipe.packing),
        callbacks=[watch],
    )
    if trainer.args.device.type == "cpu":
        # With several processes it says cpu:0, from where torch cannot read a checkpoint's state again.
        trainer.args.__dict__["_setup_devices"] = torch.device("cpu")
    trainer.watch, trainer.packed = watch, recipe.packing
    trainer.sharded = attempt.sharded
    if trainer.sharded:
        # As for evaluation: in the precision of training, and not in DistributedDataParallel.
        trainer.accelerator.prepare_model(model, evaluation_mode=True)
    trainer.loraplus_ratio = recipe.loraplus_ratio
    # The constructor casts a quantised model's adapter to bfloat16, and a checkpoint comes back in float32:
    # a resumed run would go on with another arithmetic.
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()
    return trainer


def _ordered(training: rows.Rows, order: np.ndarray, at_once: int) -> Dataset:
    """The rows in their order; several processes take `at_once` rows together, so blank ones fill up the end.

    Else rows of the beginning would, and count twice. A blank row holds nothing that is learned.
    """
    data = Dataset.from_file(str(training.file))
    blanks = -len(order) % at_once
    ordered = data.select(order, keep_in_memory=True)
    if not blanks:
        return ordered
    blank = {"input_ids": [[0, 0]] * blanks, "labels": [[rows.IGNORED] * 2] * blanks}
    return concatenate_datasets([ordered, Dataset.from_dict(blank, features=data.features)])


def recomputes(model: Any) -> bool:
    """Recompute activations on a GPU, whose memory is the limit; a CPU pays a third more time for it."""
    return model.device.type == "cuda"


def longest_batch_fits(
    trainer: AdapterTrainer, training: rows.Rows, order: np.ndarray, batch_size: int, micro: int
) -> bool:
    """Forward and backward on the largest batch of the run, keeping nothing; False when memory ran out.

    So a run that cannot end shows it in its first minute. Raises WorldFailed when this loss is not finite.
    """
    batches = rows.micro_batches(order, batch_size=batch_size, micro_batch_size=micro)
    largest = int(rows.tokens_of(training.lengths, batches, trainer.packed).argmax())
    first = sum(len(batch) for batch in batches[:largest])
    inputs = trainer.data_collator([trainer.train_dataset[first + i] for i in range(len(batches[largest]))])
    learned = int((inputs["labels"] != rows.IGNORED).sum())
    if learned != training.supervised[batches[largest]].sum():
        raise WorldFailed("training", "the collator changed which tokens are supervised", "Report this.")
    state = torch.random.get_rng_state()
    trainer.trying = True
    try:
        loss = trainer.training_step(trainer.model, inputs, torch.tensor(learned, device=trainer.args.device))
        if not math.isfinite(float(loss)):
            raise WorldFailed(
                "training",
                f"the loss is {float(loss):g} on the longest batch, before any step",
                "The base weights or a row are damaged; fetch the base again and look at the data.",
            )
    except (RuntimeError, MemoryError) as error:
        if not out_of_memory(error):
            raise
        return False
    finally:
        trainer.trying = False
        trainer.model.zero_grad(set_to_none=True)
        torch.random.set_rng_state(state)
        trainer._metrics["train"].clear()
        trainer._total_train_tokens = 0
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return True


def out_of_memory(error: BaseException) -> bool:
    """Whether a device, or the CPU's allocator under a limit, had no more to give."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def validation_loss(trainer: AdapterTrainer, validation: rows.Rows, micro: int) -> float:
    """Mean loss in nats per supervised token, each token counted once whatever batch it is in."""
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
    # With several processes the loss is scaled for a mean over them.
    return total / int(validation.supervised.sum()) / trainer.accelerator.num_processes


def _padding(tokenizer: Any) -> int:
    return next(t for t in (tokenizer.pad_token_id, tokenizer.eos_token_id, 0) if t is not None)
