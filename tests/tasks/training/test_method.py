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

from tasks.errors import BadInput
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.train import train, training_spec

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
    "full": ({"method": "full"}, r"training\.method: 'full' makes a new base model and no adapter"),
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
