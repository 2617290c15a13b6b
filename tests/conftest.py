"""Every test runs on a home of its own; nothing reaches the user's files, a hub or a tracking service."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from xdist.scheduler import LoadFileScheduling

pytest_plugins = ("stack", "store_s3")  # tests/fixtures

WITH_STACK = (
    "tests/browser/test_ui.py",
    "tests/flows/test_approve.py",
    "tests/flows/test_automations.py",
    "tests/flows/test_hook.py",
    "tests/flows/test_placement.py",
    "tests/flows/test_secrets.py",
    "tests/flows/test_stack.py",
)
REPOSITORY = Path(__file__).resolve().parent.parent

# Before any library is imported: some read these at import.
os.environ.update(
    HF_HUB_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    DO_NOT_TRACK="1",
    MLFLOW_DISABLE_TELEMETRY="true",
    PREFECT_SERVER_ANALYTICS_ENABLED="false",
    TOKENIZERS_PARALLELISM="false",
    MPLBACKEND="Agg",
    OMP_WAIT_POLICY="PASSIVE",  # several processes share the cores
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slow files first: of two processes, neither should begin one when the other has nothing left."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


class BesideTheStack(LoadFileScheduling):
    """A file's tests stay in one process, and so do all files with a running stack: one is started, not one in each."""

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return "stack" if file in WITH_STACK else file


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> BesideTheStack:
    return BesideTheStack(config, log)


@pytest.fixture(autouse=True)
def nightowl_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A temporary NIGHTOWL_HOME, HOME and working directory; the environment is afterwards what it was."""
    home = tmp_path / "nightowl-home"
    for name in ("NIGHTOWL_STORE", "MLFLOW_TRACKING_URI", "PREFECT_API_URL", "HF_TOKEN", "MODELSCOPE_API_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NIGHTOWL_HOME", str(home))
    monkeypatch.setenv("HOME", str(tmp_path / "user"))
    (tmp_path / "user").mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    # Libraries write to the environment as well: MLflow's set_tracking_uri does.
    with patch.dict(os.environ):
        yield home


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets with their licences, beside the checkout; absent on most machines."""
    folder = Path(os.environ.get("NIGHTOWL_SHARED_DATA", REPOSITORY.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"the real data sets are not here ({folder}); set NIGHTOWL_SHARED_DATA to where they are")
    return folder


@pytest.fixture(scope="session")
def test_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a session puts what is slow to make or to fetch; NIGHTOWL_TEST_CACHE keeps it for the next session."""
    named = os.environ.get("NIGHTOWL_TEST_CACHE")
    folder = Path(named).absolute() if named else tmp_path_factory.mktemp("cache")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def demo_base(test_cache: Path) -> Path:
    """The folder of the demo's base model, converted once a session."""
    from tasks.fetch import fetch_base
    from tasks.recipe import Base
    from tasks.store import Store

    store = Store(test_cache / "store")
    return store.folder(fetch_base(Base(uri="sample://smollm2-135m-instruct"), store))


@pytest.fixture(scope="session")
def byte_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model as far as the data gate reads one: a tokenizer of bytes, able to write anything, with ChatML."""
    import numpy as np
    from safetensors.numpy import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("byte-model")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        chat_template=(REPOSITORY / "deployments" / "recipes" / "chatml-hybrid.jinja").read_text(),
    )
    tokenizer.save_pretrained(folder)
    (folder / "config.json").write_text('{"model_type": "llama"}')
    save_file({"weight": np.zeros(1)}, folder / "model.safetensors")
    return folder
