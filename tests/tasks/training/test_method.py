"""Every way to train an adapter trains one that can be loaded again, or is refused with the reason."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks.errors import BadInput, WorldFailed
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe, Training
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.train import train, training_spec
from tasks.training import require_possible

LORA = {"method": "lora"}
TRAINED = {
    "qlora": {},
    "lora": LORA,
    "rslora": {"rslora": True},
    "dora": LORA | {"dora": True},
    "dora in 4 bits": {"dora": True},
    "pissa": LORA | {"pissa": True},
    "lora+": {"loraplus_ratio": 16.0},
    "neftune": {"neftune_alpha": 5.0},
    "8-bit moments": {"optimizer": "adamw_8bit"},
    "named modules": {"target_modules": ["q_proj", "v_proj"]},
    "dropout": {"dropout": 0.1},
}
REFUSED = {
    "pissa in 4 bits": ({"pissa": True}, r"training\.pissa: True .* 4-bit weights hide"),
    "pissa with rslora": (LORA | {"pissa": True, "rslora": True}, "plain LoRA with rslora"),
    "pissa with dora": (LORA | {"pissa": True, "dora": True}, "plain LoRA with dora"),
}


@pytest.mark.parametrize("name", TRAINED)
def test_transformers_trains_it(name: str, train_here: Callable[..., Any]) -> None:
    """The loop itself asks that the adapter is not idle and answers the same once it is loaded again."""
    found = train_here(max_steps=2, warmup_steps=0, **TRAINED[name])
    assert found.result.steps == 2
    config = json.loads((found.adapter / "adapter_config.json").read_text())
    assert config["use_rslora"] == (name == "rslora")
    assert config["use_dora"] == ("dora" in name)
    assert config["r"] == (8 if name == "pissa" else 4)


def test_all_linear_layers_get_an_adapter(train_here: Callable[..., Any]) -> None:
    found = train_here(max_steps=2, warmup_steps=0)
    targets = json.loads((found.adapter / "adapter_config.json").read_text())["target_modules"]
    kinds = {name.rpartition(".")[2] for name in targets}
    assert kinds == {"down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"}


def test_lora_plus_gives_b_its_own_rate(train_here: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    from tasks.training import watch

    rates: list[list[float]] = []
    begin = watch.Watch.on_train_begin

    def keep(self, args, state, control, **kwargs) -> None:
        begin(self, args, state, control, **kwargs)
        rates.append(kwargs["lr_scheduler"].base_lrs)

    monkeypatch.setattr(watch.Watch, "on_train_begin", keep)
    train_here(max_steps=2, warmup_steps=0, learning_rate=0.001, loraplus_ratio=16.0)
    assert set(rates[0]) == {0.001, 0.016, 1e-6}


@pytest.mark.parametrize("backend", ["unsloth", "transformers"])
@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_go_together_is_refused_before_anything_starts(
    name: str,
    backend: str,
    recipe: Callable[..., Recipe],
    mixture: TokenisedMixture,
    base: BaseSnapshot,
    store: Store,
) -> None:
    options, reason = REFUSED[name]
    with pytest.raises(BadInput, match=reason):
        train(recipe(backend=backend, **options), mixture, base, store)
    assert not list((store.root / "work").glob("adapter-*/training.log"))


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"backend": "unsloth"}, r"training\.method: 'full' is not done with Unsloth here\. Set training.backend"),
        ({"sharding": "base", "processes": 2}, r"training\.sharding: 'base' splits a frozen base"),
        ({"dora": True}, r"training\.dora: True is of LoRA, and method full trains the weights themselves"),
        ({"dropout": 0.1}, r"training\.dropout: 0\.1 is of LoRA"),
        ({"loraplus_ratio": 16.0}, r"training\.loraplus_ratio: 16\.0 is of LoRA"),
        ({"target_modules": ["q_proj"]}, r"training\.target_modules: \('q_proj',\) is of LoRA"),
    ],
)
def test_what_full_cannot_do_is_refused(options: dict[str, object], reason: str) -> None:
    with pytest.raises(BadInput, match=reason):
        require_possible(Training.model_validate({"backend": "transformers", "method": "full", **options}))


@pytest.mark.parametrize("options", [{}, {"neftune_alpha": 5.0, "optimizer": "adamw_8bit", "packing": True}])
def test_full_trains_all_weights_and_leaves_a_model_that_needs_no_base(
    options: dict[str, Any], train_here: Callable[..., Any], base: BaseSnapshot, store: Store
) -> None:
    from transformers import AutoModelForCausalLM

    found = train_here(max_steps=2, warmup_steps=0, method="full", **options)
    assert found.result.environment["dtype"] == "bfloat16"
    before = AutoModelForCausalLM.from_pretrained(store.folder(base), dtype="bfloat16")
    after = AutoModelForCausalLM.from_pretrained(found.adapter)
    assert str(after.dtype) == "torch.bfloat16"
    assert after.config.use_cache
    old, new = dict(before.named_parameters()), dict(after.named_parameters())
    assert {name for name in new if "lora" in name} == set()
    assert {name for name in old if (old[name] == new[name]).all()} == set()
    assert str(store.folder(base)) not in "".join(path.read_text() for path in found.adapter.glob("*.json"))


def test_full_takes_a_base_whose_generation_config_could_not_be_saved(
    train_here: Callable[..., Any], make_base: Callable[..., BaseSnapshot], tiny_base: Callable[[Path], None]
) -> None:
    def write(folder: Path) -> None:
        tiny_base(folder)
        (folder / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))  # and no do_sample

    found = train_here(method="full", max_steps=2, warmup_steps=0, save_steps=1, on=make_base(write, "sampling"))
    assert json.loads((found.adapter / "generation_config.json").read_text())["temperature"] == 0.6


def test_full_goes_on_where_it_was_killed_as_if_it_had_not_been(
    train_here: Callable[..., Any], one_thread: None, tmp_path: Path
) -> None:
    """The weights are kept in 32 bits between the attempts."""
    whole = train_here(method="full")
    work = tmp_path / "killed"

    def stop_after_the_first_checkpoint(attempt: Any) -> None:
        report = attempt.report

        def told(progress: Any) -> None:
            report(progress)
            if progress.step == 3:
                raise RuntimeError("killed")

        attempt.report = told

    with pytest.raises(RuntimeError, match="killed"):
        train_here(method="full", work=work, arrange=stop_after_the_first_checkpoint)
    again = train_here(method="full", work=work)
    assert again.result.resumed == 2
    assert again.losses == whole.losses
    assert (again.adapter / "model.safetensors").read_bytes() == (whole.adapter / "model.safetensors").read_bytes()


def test_full_that_trains_nothing_says_so(train_here: Callable[..., Any]) -> None:
    with pytest.raises(WorldFailed, match=r"did nothing: all weights are what they were. Raise training.learning_rate"):
        train_here(method="full", max_steps=2, warmup_steps=0, learning_rate=1e-50)  # zero in 32 bits


@pytest.mark.parametrize("optimizer", ["paged_adamw", "paged_adamw_8bit"])
def test_paged_moments_need_a_gpu(optimizer: str, train_here: Callable[..., Any]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(BadInput, match=r"training\.optimizer: .* CUDA device"):
        train_here(optimizer=optimizer)


@pytest.mark.parametrize("name", ["q_projection", "lm_head"])
def test_what_cannot_be_adapted_is_no_target(name: str, train_here: Callable[..., Any]) -> None:
    refused = rf"target_modules: '{name}' is no linear layer .* It has down_proj, gate_proj, k_proj"
    with pytest.raises(BadInput, match=refused):
        train_here(target_modules=["v_proj", name])


MANY = """
import os, sys
from pathlib import Path
from tasks.training.child import Attempt
from tasks.training.spec import TrainingSpec
from tasks.training.unsloth_backend import train
for file in sys.argv[1:]:
    result = train(Attempt(TrainingSpec.model_validate_json(Path(file).read_bytes()), os.open(os.devnull, os.O_WRONLY)))
    print("trained", result.steps, flush=True)
"""


def test_unsloth_trains_it_all(
    recipe: Callable[..., Recipe], mixture: TokenisedMixture, base: BaseSnapshot, store: Store, tmp_path: Path
) -> None:
    """In one process, since importing Unsloth takes longer than all of it."""
    from tasks.training import process

    files = []
    for number, options in enumerate(TRAINED.values()):
        work = tmp_path / str(number)
        work.mkdir()
        spec = training_spec(recipe(max_steps=2, warmup_steps=0, **options), mixture, base, store, work)
        files.append(work / "spec.json")
        files[-1].write_text(spec.model_dump_json())
    command = [sys.executable, "-c", MANY, *map(str, files)]
    environment = process.environment() | {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    found = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=500, check=False)
    assert found.stdout.count("trained 2") == len(TRAINED), found.stderr[-3000:]
    for number, name in enumerate(TRAINED):
        config = json.loads((tmp_path / str(number) / "adapter" / "adapter_config.json").read_text())
        assert config["use_rslora"] == (name == "rslora")
        assert config["use_dora"] == ("dora" in name)
