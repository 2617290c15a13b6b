"""How answers are drawn where a suite asks for samples: with what its model's card recommends, from a seed.

The numbers are those of the base's generation_config.json. A family that recommends others for one of its modes says so
on its card alone, and is listed here: Qwen3's hybrids think at a temperature of 0.6 and answer directly at 0.7.

Each answer has a stream of numbers of its own, from the suite's seed, the item and the sample's number. So an answer
depends neither on the batch that it is written in nor on what other items there are, and models that are compared meet
the same luck.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInput
from tasks.recipe import Mode, Suite

_HYBRIDS = ("qwen3", "qwen3_moe")
_THINKING = {"temperature": 0.6, "top_p": 0.95, "top_k": 20}
_DIRECT = {"temperature": 0.7, "top_p": 0.8, "top_k": 20}


class Sampling(BaseModel):
    """How tokens are drawn: `top_p` 1 and `top_k` 0 draw from all of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    temperature: float
    top_p: float = 1.0
    top_k: int = 0


def sampling_of(suite: Suite, base: Path) -> Sampling | None:
    """A suite's sampling on a base model's folder; None where it decodes greedily.

    Raises BadInput where neither the suite nor the model says at which temperature.
    """
    if suite.decoding == "greedy":
        return None
    given = {name: value for name in Sampling.model_fields if (value := getattr(suite, name)) is not None}
    wanted = recommended(base, suite.mode) | given
    if "temperature" not in wanted:
        raise BadInput(
            f"evaluation.suites.{suite.name}.temperature",
            None,
            "is not set, and the base model's generation_config.json recommends none",
            "Give a temperature, or decode greedily.",
        )
    return Sampling.model_validate(wanted)


def recommended(base: Path, mode: Mode) -> dict[str, Any]:
    """What a model recommends in a mode: temperature, top_p and top_k, as far as it does."""
    config, generation = (_json(base / name) for name in ("config.json", "generation_config.json"))
    found = {name: generation[name] for name in Sampling.model_fields if generation.get(name) is not None}
    # A model of the family that has one mode only says in its file what is right for that.
    if config.get("model_type") in _HYBRIDS and (not found or found == _THINKING):
        return dict(_THINKING if mode == "thinking" else _DIRECT)
    return found


def draws(seed: int, item_id: str, sample: int, tokens: int) -> NDArray[np.float64]:
    """The numbers from 0 to 1 by which an answer's tokens are drawn, one a token."""
    item = int(item_id[:15], 16)
    return np.random.default_rng([seed, item, sample]).random(tokens)


def _json(file: Path) -> dict[str, Any]:
    return dict(json.loads(file.read_bytes())) if file.is_file() else {}
