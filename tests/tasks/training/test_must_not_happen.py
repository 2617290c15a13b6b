"""Mistakes that train on without a complaint and show only in what the adapter says; each of them shown not to happen.

In this process and with the transformers backend, whose loop and trainer are Unsloth's as well. Elsewhere: masks that
are all zero or all one and turns that don't end (test_rows), loss on prompts or padding and losses that are not
finite, with both backends (test_loop), adapters on another base (test_adapter_folder).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.errors import WorldFailed
from tasks.mixture import TokenisedMixture
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.training import rows
from tasks.training.child import Attempt, Stopped

END = 2
OTHER_END = 0

pytestmark = pytest.mark.usefixtures("one_thread")


def stop_at(step: int) -> Callable[[Attempt], None]:
    """Tells an attempt to stop when it reports a step, as a SIGTERM would; it saves at the end of the next."""

    def arrange(attempt: Attempt) -> None:
        report = attempt.report

        def report_and_stop(progress: Any) -> None:
            report(progress)
            if progress.step == step:
                attempt.stop.set()

        attempt.report = report_and_stop  # type: ignore[method-assign]

    return arrange


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The rows that the model was trained on, without padding, in order; the trial batch is left out."""
    from tasks.training import trainer

    found: list[list[int]] = []
    step, trial = trainer.AdapterTrainer.training_step, trainer.longest_batch_fits

    def keep(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        real = inputs["attention_mask"].bool()
        found.extend(ids[mask].tolist() for ids, mask in zip(inputs["input_ids"], real, strict=True))
        return step(self, model, inputs, *more)

    def forget(*given: Any) -> bool:
        before = len(found)
        fits = trial(*given)
        del found[before:]
        return fits

    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", keep)
    monkeypatch.setattr(trainer, "longest_batch_fits", forget)
    return found


def test_a_resumed_run_goes_on_with_the_very_next_row_and_the_ids_are_the_splits_own(
    train_here: Callable[..., Any], seen: list[list[int]], mixture: TokenisedMixture, store: Store, tmp_path: Path
) -> None:
    """Nothing is tokenised again, left out or repeated, and the adapter is the undisturbed one's bit for bit."""
    whole = train_here()
    split = pl.read_parquet(store.folder(mixture) / "train.parquet")["input_ids"].to_list()
    lengths = pl.Series([len(ids) for ids in split]).to_numpy()
    order = rows.order(lengths, batch_size=4, epochs=1, max_steps=None, seed=0)
    assert seen == [split[row] for row in order]

    seen.clear()
    work = tmp_path / "disturbed"
    for step in (1, 3):
        with pytest.raises(Stopped):
            train_here(work=work, arrange=stop_at(step))
    resumed = train_here(work=work)
    assert resumed.result.resumed == 4
    assert seen == [split[row] for row in order]
    name = "adapter_model.safetensors"
    assert (resumed.adapter / name).read_bytes() == (whole.adapter / name).read_bytes()
    assert resumed.losses == whole.losses


def test_short_rows_count_by_their_tokens_however_a_batch_is_cut(
    train_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The gradient of four rows of 2 to 41 supervised tokens, one by one, is that of the four at once."""
    import torch

    from tasks.training import watch

    gradients: list[torch.Tensor] = []

    def keep(self: Any, args: Any, state: Any, control: Any, model: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            gradients.append(torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]))

    monkeypatch.setattr(watch.Watch, "on_pre_optimizer_step", keep, raising=False)
    given = [([1, 5 + n, 6, *range(7, 7 + n), END], [False] * 3 + [True] * (n + 1)) for n in (1, 2, 3, 40)]
    for micro in (1, 4):
        train_here(given, method="lora", micro_batch_size=micro, warmup_steps=0, epochs=2)
    apart = float((gradients[0] - gradients[1]).norm() / gradients[1].norm())
    assert apart < 0.03  # bfloat16; a mean of the rows' means is off by more than half


def test_the_end_of_a_turn_is_learned_though_it_is_the_padding_and_generation_stops_on_it(
    train_here: Callable[..., Any],
    tiny_base: Callable[[Path], None],
    make_base: Callable[..., BaseSnapshot],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a base that stops on another token of its own, as base models do before they are tuned to ChatML."""
    from transformers import GenerationConfig

    from tasks.training import trainer

    def other_end(folder: Path) -> None:
        tiny_base(folder)
        GenerationConfig(eos_token_id=OTHER_END, pad_token_id=END).save_pretrained(folder)

    step = trainer.AdapterTrainer.training_step
    learned: list[list[int]] = []

    def keep(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        real = inputs["attention_mask"].bool()
        assert (inputs["input_ids"][~real] == END).all()
        assert (inputs["labels"][~real] == rows.IGNORED).all()
        learned.extend(row[row != rows.IGNORED].tolist() for row in inputs["labels"])
        return step(self, model, inputs, *more)

    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", keep)
    given = [([1, 5 + n, 1, *range(20, 21 + n), END], [False] * 3 + [True] * (n + 2)) for n in range(4)]
    found = train_here(given, on=make_base(other_end, "other end"), warmup_steps=0, epochs=2)
    assert sorted(learned[4:8]) == [[*range(20, 21 + n), END] for n in range(4)]
    assert GenerationConfig.from_pretrained(found.adapter).eos_token_id == [END, OTHER_END]


def test_simulated_where_the_longest_batch_is_too_much_it_is_cut_before_the_first_step(
    train_here: Callable[..., Any],
    mixture: TokenisedMixture,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """Memory runs out from two rows on: four become one, the global batch and its curve stay, later attempts know."""
    import torch

    from tasks.training import trainer

    step = trainer.AdapterTrainer.training_step
    tried: list[int] = []
    tokens: list[int] = []

    def small(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        tried.append(len(inputs["input_ids"]))
        tokens.append(inputs["input_ids"].numel())
        if tried[-1] > 1:
            raise torch.OutOfMemoryError("out of memory")
        return step(self, model, inputs, *more)

    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", small)
    work = tmp_path / "job"
    with pytest.raises(Stopped):
        train_here(work=work, arrange=stop_at(1))
    assert tried == [4, 2, 1, *[1] * 8]
    lengths = pl.read_parquet(store.folder(mixture) / "train.parquet")["input_ids"].list.len()
    assert tokens[2] == lengths.max()  # the longest row of all, before any other
    tried.clear()
    cut = train_here(work=work)
    assert set(tried) == {1}
    assert cut.result.environment["micro_batch_size"] == 1
    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", step)
    assert cut.losses == pytest.approx(train_here().losses, rel=0.01)


@pytest.mark.parametrize(("free", "micro"), [(64 * 10**9, 4), (10**8, 1)])
def test_where_memory_runs_short_a_cpu_begins_with_fewer_rows_a_pass(
    free: int, micro: int, train_here: Callable[..., Any]
) -> None:
    """A CPU's process is killed without a word, so what was estimated counts; the global batch stays."""

    def with_memory(attempt: Attempt) -> None:
        attempt.spec = attempt.spec.model_copy(update={"memory": free})

    found = train_here(max_steps=2, warmup_steps=0, arrange=with_memory).result
    assert found.environment["micro_batch_size"] == micro
    assert found.steps == 2


def test_a_checkpoint_that_would_run_code_is_not_loaded(
    train_here: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the trainer's own state files, sealed as if it were whole, with a pickle in it that writes a file."""
    import pickle

    import torch

    from tasks.training import checkpoints

    class Planted:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.write_text, (tmp_path / "planted", "ran")

    work = tmp_path / "job"
    with pytest.raises(Stopped):
        train_here(work=work, arrange=stop_at(1))
    (checkpoint,) = (work / "checkpoints").iterdir()
    states = sorted(path.name for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin"))
    assert {"optimizer.pt", "scheduler.pt", "rng_state.pth"} <= set(states)
    for name in states:
        whole = (checkpoint / name).read_bytes()
        torch.save({"state": Planted()}, checkpoint / name)
        checkpoints.seal(checkpoint)
        if name == "training_args.bin":  # written, and never read
            train_here(work=shutil.copytree(work, tmp_path / "other"))
        else:
            with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights"):
                train_here(work=work)
        assert not (tmp_path / "planted").exists()
        (checkpoint / name).write_bytes(whole)


@pytest.mark.parametrize(
    "error", ["OutOfMemoryError('CUDA out of memory')", 'RuntimeError("can\'t allocate memory: you tried")']
)
def test_simulated_memory_that_runs_out_later_is_gone_on_from_with_fewer_rows(
    error: str, train_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """After the trial, as when a GPU's memory comes apart: from the last checkpoint, at the same global batch."""
    import torch

    from tasks.training import trainer

    step = trainer.AdapterTrainer.training_step
    passes = [0]

    def runs_out(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        passes[0] += 1
        if passes[0] == 5:
            raise eval(error, vars(torch) | {"RuntimeError": RuntimeError})
        return step(self, model, inputs, *more)

    work = tmp_path / "job"
    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", runs_out)
    with pytest.raises(Stopped):  # the parent makes another attempt
        train_here(work=work)
    found = train_here(work=work)
    assert found.result.resumed == 2
    assert found.result.environment["micro_batch_size"] == 2
    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", step)
    assert found.losses == pytest.approx(train_here().losses, rel=0.01)


def test_simulated_a_row_that_is_too_much_by_itself_is_said_before_training(
    train_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from tasks.training import trainer

    def never(*given: Any) -> Any:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", never)
    with pytest.raises(WorldFailed, match=r"too small for one row of \d+ tokens"):
        train_here()


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda weights: {n: m * 0 for n, m in weights.items() if n == sorted(weights)[1]}, "1 of 28 matrices differ"),
        (lambda weights: {sorted(weights)[0]: weights[sorted(weights)[0]] * 1.001}, "1 of 28 matrices differ"),
        (lambda weights: {sorted(weights)[-1]: None}, "1 of 28 matrices differ"),
    ],
    ids=["a matrix of zeros", "a matrix a little off", "a matrix left out"],
)
def test_an_adapter_that_was_saved_wrongly_is_not_let_out(
    train_here: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[dict[str, Any]], dict[str, Any]],
    complaint: str,
) -> None:
    from safetensors.torch import load_file, save_file

    from tasks.training import method

    save = method.save

    def damaged(model: Any, spec: Any, folder: Path) -> None:
        save(model, spec, folder)
        weights = load_file(folder / "adapter_model.safetensors")
        changed = weights | damage(weights)
        save_file({n: m for n, m in changed.items() if m is not None}, folder / "adapter_model.safetensors")

    monkeypatch.setattr(method, "save", damaged)
    with pytest.raises(WorldFailed, match=complaint):
        train_here()


def test_an_adapter_whose_scale_was_lost_is_not_let_out(
    train_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.training import method

    save = method.save

    def rescaled(model: Any, spec: Any, folder: Path) -> None:
        save(model, spec, folder)
        config = folder / "adapter_config.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"lora_alpha": 8}))

    monkeypatch.setattr(method, "save", rescaled)
    with pytest.raises(WorldFailed, match="28 of 28 matrices differ"):
        train_here()


def test_the_right_adapter_on_another_base_answers_differently(
    train_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tasks.training import transformers_backend

    load = transformers_backend._load
    times = [0]

    def other_the_second_time(spec: Any, longest: int) -> Any:
        model = load(spec, longest)
        times[0] += 1
        if times[0] == 2:
            model.get_input_embeddings().weight.data *= 2
        return model

    monkeypatch.setattr(transformers_backend, "_load", other_the_second_time)
    with pytest.raises(WorldFailed, match="answers differently from the trained one"):
        train_here()


def test_after_a_loss_that_is_not_finite_the_last_checkpoint_goes_on_at_half_the_rate(
    train_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from tasks.training import trainer, watch
    from tasks.training.child import NotFinite

    step = trainer.AdapterTrainer.training_step
    passes = [0]

    def diverges(self: Any, model: Any, inputs: Any, *more: Any) -> Any:
        passes[0] += 1
        return step(self, model, inputs, *more) * (float("nan") if passes[0] > 4 else 1)

    def halve(attempt: Attempt) -> None:
        attempt.spec = attempt.spec.model_copy(update={"rate_scale": 0.5})

    rates: list[float] = []

    def keep(self: Any, args: Any, state: Any, control: Any, optimizer: Any, **kwargs: Any) -> None:
        rates.extend({group["lr"] for group in optimizer.param_groups})

    work = tmp_path / "job"
    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", diverges)
    with pytest.raises(NotFinite, match=r"the loss is nan .* at step 4 of 6"):
        train_here(work=work, schedule="constant")
    monkeypatch.setattr(trainer.AdapterTrainer, "training_step", step)
    monkeypatch.setattr(watch.Watch, "on_pre_optimizer_step", keep, raising=False)
    found = train_here(work=work, schedule="constant", arrange=halve)
    assert found.result.resumed == 2
    assert rates == [0.005] * 4  # as the optimizer takes them, from the first step on
    reported = [json.loads(line)["learning_rate"] for line in (work / "progress.jsonl").open()]
    assert reported[-4:] == [0.005] * 4


def test_simulated_a_full_disk_is_seen_before_a_checkpoint_is_written(
    train_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    free = type("usage", (), {"free": 60 * 2**20})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: free)
    work = tmp_path / "job"
    with pytest.raises(WorldFailed, match="60 MB free, too little for a checkpoint"):
        train_here(work=work)
    assert not list(work.glob("checkpoints/checkpoint-*"))
