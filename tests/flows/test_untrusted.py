"""What a base from a hub may hold to run code here: a pickle, a GGUF, code of its own, a template. None of it runs."""

from __future__ import annotations

import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

import pytest

from tasks.conversations import Renderer
from tasks.errors import BadInput
from tasks.fetch import fetch_base
from tasks.recipe import PRESETS, Base
from tasks.sources import BaseSnapshot
from tasks.store import Store

TEMPLATE = (PRESETS / "chatml-hybrid.jinja").read_text(encoding="utf-8")
ATTACKS = (
    "{{ cycler.__init__.__globals__.os.system(%r) }}",
    "{{ messages.__class__.__mro__[1].__subclasses__() }}{{ joiner.__init__.__globals__['os'].popen(%r) }}",
    "{%% for c in ().__class__.__base__.__subclasses__() %%}{%% if c.__name__ == 'Popen' %%}"
    "{{ c(%r, shell=True) }}{%% endif %%}{%% endfor %%}",
)


class Payload:
    """Unpickled, it leaves a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that any of the attacks would leave."""
    return tmp_path / "was-here"


@pytest.fixture
def folder(tiny_base: Path, tmp_path: Path) -> Path:
    """A base of one's own to poison."""
    return Path(shutil.copytree(tiny_base, tmp_path / "base"))


def fetched(folder: Path, store: Store, **how: Any) -> BaseSnapshot:
    return fetch_base(Base(uri=f"file://{folder}", max_length=1024, **how), store)


def test_a_pickle_beside_the_weights_stays_outside(folder: Path, store: Store, mark: Path) -> None:
    payload = pickle.dumps(Payload(mark))
    pickle.loads(payload)
    assert mark.exists(), "the payload is none"
    mark.unlink()
    for name in ("pytorch_model.bin", "training_args.bin", "model.pt", "tokenizer.pkl"):
        (folder / name).write_bytes(payload)
    base = fetched(folder, store)
    assert {Path(name).suffix for name in base.files} <= {".json", ".safetensors", ".jinja", ".txt", ".model"}
    Renderer.open(store.folder(base), TEMPLATE)
    (folder / "model.safetensors").unlink()
    with pytest.raises(BadInput, match="pickled weights only"):
        fetched(folder, store)
    assert not mark.exists()


def test_a_gguf_is_not_opened(folder: Path, store: Store) -> None:
    (folder / "model.safetensors").unlink()
    # Its header claims more tensors than there are atoms: whoever opens it is busy for good.
    (folder / "model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 2**63, 2**63))
    with pytest.raises(BadInput, match=r"base\.uri: .*holds no weights.*safetensors files alone"):
        fetched(folder, store)


def test_code_of_a_model_is_not_fetched_and_not_run(folder: Path, store: Store, mark: Path) -> None:
    (folder / "modeling_own.py").write_text(f"import pathlib; pathlib.Path({str(mark)!r}).touch()")
    for name in ("config.json", "tokenizer_config.json"):
        config = json.loads((folder / name).read_text())
        config["auto_map"] = dict.fromkeys(("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer"), "modeling_own.Own")
        (folder / name).write_text(json.dumps(config))
    base = fetched(folder, store)
    assert not [name for name in base.files if name.endswith(".py")]
    Renderer.open(store.folder(base), TEMPLATE)
    assert not mark.exists()


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("place", ["tokenizer_config.json", "chat_template.jinja"])
def test_a_template_reaches_nothing(attack: str, place: str, folder: Path, store: Store, mark: Path) -> None:
    template = attack % f"touch {mark}" + TEMPLATE
    if place.endswith(".jinja"):
        (folder / place).write_text(template)
    else:
        config = json.loads((folder / place).read_text())
        (folder / place).write_text(json.dumps({**config, "chat_template": template}))
    base = fetched(folder, store)
    with pytest.raises(BadInput, match=r"base\.chat_template.*does not render"):
        Renderer.open(store.folder(base))
    assert not mark.exists()
