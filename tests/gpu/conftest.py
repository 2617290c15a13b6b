"""What needs a CUDA device: true shapes of models with random weights, made from their configs, and nothing fetched.

Skipped without one. Run with `pytest tests/gpu -s`: the tests print what they measured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from tasks.recipe import Training
from tasks.training import BACKENDS, TrainingResult, TrainingSpec, run

HERE = Path(__file__).parent
QWEN3 = {
    # hidden, intermediate, layers, heads, tied embeddings
    "0.6B": (1024, 3072, 28, 16, True),
    "4B": (2560, 9728, 36, 32, True),
    "8B": (4096, 12288, 36, 32, False),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    import torch

    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.gpu)
            item.add_marker(pytest.mark.timeout(3600))
            if not torch.cuda.is_available():
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def qwen3(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a folder with Qwen3's shape of a size, random weights in bfloat16 and a tokenizer of bytes."""
    made: dict[str, Path] = {}

    def make(size: str) -> Path:
        if size in made:
            return made[size]
        import torch
        from transformers import AutoTokenizer, Qwen3Config, Qwen3ForCausalLM

        hidden, intermediate, layers, heads, tied = QWEN3[size]
        config = Qwen3Config(
            vocab_size=151936,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=8,
            head_dim=128,
            max_position_embeddings=40960,
            rope_theta=1_000_000.0,
            tie_word_embeddings=tied,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            dtype="bfloat16",
        )
        folder = tmp_path_factory.mktemp("qwen3") / size
        torch.manual_seed(0)
        with torch.device("cuda"):
            torch.set_default_dtype(torch.bfloat16)
            model = Qwen3ForCausalLM(config)
            torch.set_default_dtype(torch.float32)
        model.save_pretrained(folder, max_shard_size="4GB")
        del model
        torch.cuda.empty_cache()  # the child that trains wants all of it
        AutoTokenizer.from_pretrained(tiny_base).save_pretrained(folder)
        made[size] = folder
        return folder

    return make


def draw_rows(lengths: list[int]) -> tuple[list[list[int]], list[list[bool]]]:
    """Rows of drawn tokens of these lengths, the second half of each supervised, ending in an end of turn."""
    draw = np.random.default_rng(0)
    ids = [[1, *draw.integers(5, 250, length - 2).tolist(), 2] for length in lengths]
    return ids, [[at >= length // 2 for at in range(length)] for length in lengths]


def train(base: Path, training: Training, lengths: list[int], work: Path) -> TrainingResult:
    """Train rows of these lengths as a night does, in a process of its own."""
    work.mkdir()
    ids, mask = draw_rows(lengths)
    schema = {"input_ids": pl.List(pl.Int32), "loss_mask": pl.List(pl.Boolean)}
    pl.DataFrame({"input_ids": ids, "loss_mask": mask}, schema=schema).write_parquet(work / "train.parquet")
    spec = TrainingSpec(
        work=work,
        base_folder=base,
        base_uri="file://qwen3",
        base_revision="0",
        base_weights="random",
        train=work / "train.parquet",
        validation=None,
        max_length=max(lengths),
        chat_template=None,
        training=training,
    )
    return run(spec, BACKENDS[training.backend], restarts=0)


@pytest.fixture
def train_on() -> Callable[[Path, Training, list[int], Path], TrainingResult]:
    return train


@pytest.fixture
def rows() -> Callable[[list[int]], tuple[list[list[int]], list[list[bool]]]]:
    return draw_rows
