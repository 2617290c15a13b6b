"""Training for real on a tiny random model, with each backend: the adapter, and what must not happen on the way."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from safetensors.torch import load_file

from tasks.errors import BadInput, Preempted, WorldFailed
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.train import adapter_inputs, calibration, train
from tasks.training import Adapter, Progress, require_base, rows

WEIGHTS = "adapter/adapter_model.safetensors"


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums in one order: what is compared here is compared bit for bit."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


@pytest.fixture(params=["unsloth", "transformers"])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


def kill_training() -> None:
    for child in psutil.Process().children():
        if any(part.endswith("_backend") for part in child.cmdline()):
            child.kill()


def test_an_adapter_survives_kills_and_a_preemption_unchanged(
    backend: str,
    recipe: Callable[..., Recipe],
    mixture: TokenisedMixture,
    base: BaseSnapshot,
    store: Store,
    tmp_path: Path,
    nightowl_home: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    mirrors = ["wandb", "swanlab"]
    night = recipe(backend=backend, dropout=0.1, micro_batch_size=2, trackers=mirrors)
    seen: list[Progress] = []
    adapter = train(night, mixture, base, store, seen.append)

    # An undisturbed night.
    assert adapter.address == Store.address(Adapter, adapter_inputs(night, mixture, base))
    assert [p.step for p in seen] == [1, 2, 3, 4, 5, 6]
    # Every step is on other rows, so a random model's losses need not fall; B begins at zero and is trained.
    trained = load_file(store.folder(adapter) / WEIGHTS)
    assert all(matrix.any() for name, matrix in trained.items() if "lora_B" in name)
    assert adapter.steps == 6
    assert adapter.resumed == 0
    assert adapter.tokens == mixture.splits["train"].tokens
    assert adapter.supervised_tokens == mixture.splits["train"].supervised_tokens
    assert adapter.validation_loss is not None
    assert 0 < adapter.validation_loss < 12
    assert adapter.peak_memory > 50e6
    assert adapter.environment["micro_batch_size"] == 2
    folder = store.folder(adapter)
    assert set(adapter.files) == {
        "progress.jsonl",
        *(
            f"adapter/{name}"
            for name in (
                "adapter_model.safetensors",
                "adapter_config.json",
                "chat_template.jinja",
                "generation_config.json",
                "nightowl.json",
                "tokenizer.json",
                "tokenizer_config.json",
            )
        ),
    }
    assert json.loads((folder / "adapter/generation_config.json").read_text())["eos_token_id"] == [2]
    require_base(folder / "adapter", base)
    assert not list(Path.cwd().iterdir()), "caches belong in the home, not where the command was given"

    # The same night again does not train.
    assert train(night, mixture, base, store, seen.append) == adapter
    assert len(seen) == 6

    # Killed while the checkpoint of step 2 is being written, killed at a step, then told to stop by the node.
    other = Store(tmp_path / "other")
    for manifest in (mixture, base):
        source = store.folder(manifest)
        target = other._path(type(manifest), manifest.address)
        target.parent.mkdir(parents=True)
        target.symlink_to(source)
    # A step is reported before its checkpoint is written, so the first kill falls into that.
    to_come = [(2, signal.SIGKILL), (3, signal.SIGKILL), (4, signal.SIGTERM)]

    def disturb(progress: Progress) -> None:
        if to_come and progress.step >= to_come[0][0]:
            _, number = to_come.pop(0)
            if number == signal.SIGKILL:
                kill_training()
            else:
                os.kill(os.getpid(), number)

    with pytest.raises(Preempted):
        train(night, mixture, base, other, disturb)
    assert not to_come
    resumed = train(night, mixture, base, other, disturb)
    assert resumed.resumed >= 4
    assert resumed.files[WEIGHTS] == adapter.files[WEIGHTS]
    assert resumed.loss == adapter.loss
    assert resumed.validation_loss == adapter.validation_loss
    steps = [json.loads(line)["step"] for line in (other.folder(resumed) / "progress.jsonl").open()]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert not list((tmp_path / "other" / "work").glob("adapter-*/")), "nothing is left of the attempts"
    for tracker in mirrors:
        assert len(list((nightowl_home / "trackers" / tracker).glob(f"**/*run-*-{adapter.address}"))) == 1
    assert "is not whole" not in caplog.text


def test_the_loss_is_that_of_the_supervised_tokens_however_the_batch_is_cut(
    recipe: Callable[..., Recipe],
    mixture: TokenisedMixture,
    base: BaseSnapshot,
    store: Store,
    train_here: Callable[..., Any],
) -> None:
    """The first step's loss, before anything is learned, equals one computed row by row without a trainer.

    With either backend, and however many rows a forward pass takes, the curves are one.
    """
    how = {"method": "lora", "max_steps": 3, "warmup_steps": 0}
    unsloth: list[float] = []
    train(recipe(micro_batch_size=1, **how), mixture, base, store, lambda progress: unsloth.append(progress.loss))
    expected = _loss_of_first_batch(mixture, base, store)
    for losses in (unsloth, train_here(micro_batch_size=1, **how).losses, train_here(**how).losses):
        assert losses[0] == pytest.approx(expected, rel=2e-3)
        assert losses == pytest.approx(unsloth, rel=1e-2)


def _loss_of_first_batch(mixture: TokenisedMixture, base: BaseSnapshot, store: Store) -> float:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(store.folder(base), dtype=torch.float32)
    split = pl.read_parquet(store.folder(mixture) / "train.parquet")
    lengths = split["input_ids"].list.len().to_numpy()
    first = rows.order(lengths, batch_size=4, epochs=1, max_steps=3, seed=0)[:4]
    total, count = 0.0, 0
    for ids, mask in split[first.tolist()].select("input_ids", "loss_mask").iter_rows():
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        learned = [at for at, supervised in enumerate(mask) if supervised]
        total -= sum(float(logits[at - 1, ids[at]]) for at in learned)
        count += len(learned)
    return total / count


def test_a_loss_that_is_not_finite_stops_the_night(
    backend: str,
    recipe: Callable[..., Recipe],
    mixture: TokenisedMixture,
    store: Store,
    tiny_base: Callable[[Path], None],
    make_base,
) -> None:
    def poisoned(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        tiny_base(folder)
        weights = load_file(folder / "model.safetensors")
        weights["model.layers.1.input_layernorm.weight"][3] = float("nan")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    base = make_base(poisoned, "poisoned")
    night = recipe(backend=backend)
    with pytest.raises(WorldFailed, match="the loss is nan"):
        train(night, mixture, base, store)
    assert store.find(Adapter, Store.address(Adapter, adapter_inputs(night, mixture, base))) is None


def test_qlora_is_never_silently_something_else(
    recipe: Callable[..., Recipe],
    mixture: TokenisedMixture,
    base: BaseSnapshot,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UNSLOTH_CPU_LOAD_IN_4BIT", "0")  # what a machine without bitsandbytes' kernels looks like
    with pytest.raises(BadInput, match=r"training\.method.*not quantised to 4 bits"):
        train(recipe(), mixture, base, store)


def test_a_base_that_is_quantised_already_is_trained_as_it_is(
    make_base: Callable[..., BaseSnapshot],
    tiny_base: Callable[[Path], None],
    base: BaseSnapshot,
    train_here: Callable[..., Any],
    tmp_path: Path,
) -> None:
    def quantised(folder: Path) -> None:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig

        (tmp_path / "whole").mkdir()
        tiny_base(tmp_path / "whole")
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
        model = AutoModelForCausalLM.from_pretrained(
            tmp_path / "whole", dtype=torch.bfloat16, quantization_config=config
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(tmp_path / "whole").save_pretrained(folder)

    how = {"max_steps": 2, "warmup_steps": 0}
    assert train_here(on=make_base(quantised, "tiny-bnb-4bit"), **how).losses == train_here(on=base, **how).losses


def test_a_changed_file_is_not_trained_on(
    recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot, store: Store
) -> None:
    weights = store.folder(base) / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(WorldFailed, match=r"model\.safetensors: is not the file that its manifest names"):
        train(recipe(), mixture, base, store)


def test_a_warm_up_longer_than_the_run_is_refused(
    recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot, store: Store
) -> None:
    with pytest.raises(BadInput, match=r"training\.warmup_steps"):
        train(recipe(warmup_steps=6), mixture, base, store)


def test_a_calibration_says_how_long_it_takes_and_leaves_nothing(
    recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot, store: Store, nightowl_home: Path
) -> None:
    before = sorted(nightowl_home.rglob("*"))
    found = calibration(recipe(backend="transformers"), mixture, base, store)
    assert found.steps == 5
    assert found.tokens_per_second > 0
    assert found.around_seconds > 0
    assert found.peak_memory > 50e6
    assert found.micro_batch_size == 4
    cache = nightowl_home / "cache"
    assert [path for path in sorted(nightowl_home.rglob("*")) if not path.is_relative_to(cache)] == before


def test_the_address_depends_on_what_changes_the_adapter(
    recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot
) -> None:
    def address(**training: object) -> str:
        return Store.address(Adapter, adapter_inputs(recipe(**training), mixture, base))

    assert address() == address(save_steps=1) == address(trackers=["wandb"])
    assert len({address(), address(seed=1), address(rank=8), address(method="lora"), address(epochs=2)}) == 5


def test_few_and_uneven_rows_are_trained_with_little_padding_too(
    train_here: Callable[..., Any], conversation: Callable[[str, str], Any]
) -> None:
    """Two long rows among short ones: no order fills a batch of eight, so fewer go through at a time."""
    uneven = [conversation("q" * (4 + n), "A" * 3) for n in range(6)] + [conversation("q" * 80, "A" * 30)] * 2
    found = train_here(rows=uneven, batch_size=8, max_steps=1, warmup_steps=0)
    assert found.result.environment["micro_batch_size"] in (2, 1)
    assert min(found.result.environment["useful_tokens"]) >= 0.92


def test_the_trial_batch_is_computed_in_the_precision_of_a_step(
    train_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With 32-bit weights and no autocast it would take twice the memory, and halve the rows of a pass for nothing."""
    import torch

    forward = torch.nn.Linear.forward
    made: list[str] = []

    def noted(self: Any, given: Any) -> Any:
        found = forward(self, given)
        if torch.is_grad_enabled():
            made.append(str(found.dtype))
        return found

    monkeypatch.setattr(torch.nn.Linear, "forward", noted)
    train_here(method="full", max_steps=1, warmup_steps=0)
    assert len(made) > 20
    assert set(made) == {"torch.bfloat16"}
