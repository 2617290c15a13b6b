"""Handing a version on: whole folders, the same answers after merging, and clear refusals."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tasks import export as exporting
from tasks.errors import BadInput, WorldFailed
from tasks.export import PARITY_TOLERANCE, export, merge, serve_script
from tasks.registry import Version, make_record

Enter = Callable[[Any], Version]
pytestmark = pytest.mark.usefixtures("embedded")

TEMPLATES = Path(__file__).resolve().parents[1] / "conversations" / "templates"
CONVERTER = """
import sys
from pathlib import Path
from gguf import GGUFWriter
from safetensors.numpy import load_file

source, outfile = sys.argv[1], sys.argv[sys.argv.index("--outfile") + 1]
if "broken" in Path(__file__).parent.name:
    sys.exit("no such architecture")
writer = GGUFWriter(outfile, "llama")
writer.add_string("source", source)
writer.write_header_to_file()
writer.write_kv_data_to_file()
writer.close()
"""


def script(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_vllm_is_given_the_adapter_and_its_command(world: Any, enter: Enter, tmp_path: Path) -> None:
    version = enter(world)
    out = tmp_path / "out"
    made = export(version, "vllm", out, world.store)
    assert set(made.files) >= {
        "adapter/adapter_model.safetensors",
        "adapter/chat_template.jinja",
        "serve.sh",
        "README.md",
    }
    assert "arithmetic (non-commercial)" in (out / "CARD.md").read_text(encoding="utf-8")
    script(tmp_path / "bin" / "vllm", '#!/bin/sh\npwd\nfor argument; do echo "$argument"; done\n')
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    command = ["sh", str(out / "serve.sh"), "--port", "9"]
    told = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout.splitlines()
    folder, *arguments = told
    assert folder == str(out)
    assert arguments[:2] == ["serve", str(world.store.folder(world.base))]
    options = dict(itertools.pairwise(arguments))
    assert options["--max-lora-rank"] == "8", "the least that holds the adapter's own rank of 4"
    assert options["--lora-modules"] == "nightowl-demo=adapter"
    assert json.loads(options["--override-generation-config"]) == {"temperature": 0.0}
    assert options["--tool-call-parser"] == "hermes"
    assert arguments[-2:] == ["--port", "9"]
    for named in ("--chat-template", "--generation-config"):
        assert (out / options[named]).exists()

    with pytest.raises(BadInput, match="is there and not empty"):
        export(version, "vllm", out, world.store)


@pytest.mark.parametrize(
    ("template", "parser"),
    [("mistral_v3", "mistral"), ("llama3_1_tools", "llama3_json"), ("deepseek_v3_tools", None)],
)
def test_vllm_reads_calls_as_the_template_writes_them(
    template: str, parser: str | None, world: Any, tiny: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    shutil.copytree(tiny / "adapter-0", adapter)
    text = (TEMPLATES / f"{template}.jinja").read_text(encoding="utf-8")
    for ending in ("<|eot_id|>", "<｜end▁of▁sentence｜>"):  # the tiny tokenizer has one token that ends a turn
        text = text.replace(ending, "<|im_end|>")
    (adapter / "chat_template.jinja").write_text(text, encoding="utf-8")
    version = Version(model="m", version=1, adapter="a", run_id="r", model_id="m-1")
    made_of = (world.recipe, world.base, world.snapshots, world.conversations, world.mixture, world.adapter)
    script = serve_script(version, make_record(*made_of), world.store, adapter)
    if parser:
        assert f"--tool-call-parser {parser}" in script
    else:
        assert "--tool-call-parser" not in script
        assert "they come as text" in script


def test_a_merged_model_answers_as_base_and_adapter_do(
    world: Any, enter: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = enter(world)
    (tmp_path / "out").mkdir()  # an empty one will do
    made = export(version, "merged", tmp_path / "out", world.store)
    assert {"model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"} <= set(made.files)
    assert "adapter_config.json" not in made.files
    assert made.parity is not None
    assert 0 < made.parity < PARITY_TOLERANCE

    from safetensors import safe_open

    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as weights:
        assert {str(weights.get_tensor(name).dtype) for name in weights.keys()} == {"torch.bfloat16"}  # noqa: SIM118

    monkeypatch.setattr(exporting, "PARITY_TOLERANCE", made.parity / 2)
    with pytest.raises(WorldFailed, match="away from the adapter's"):
        export(version, "merged", tmp_path / "other", world.store)
    (world.store.folder(world.base) / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WorldFailed, match="no longer what the adapter was trained on"):
        export(version, "merged", tmp_path / "other", world.store)
    assert [path.name for path in tmp_path.iterdir() if "other" in path.name] == []


def test_a_base_whose_generation_config_could_not_be_saved_is_merged(tiny: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    shutil.copytree(tiny / "base", base)
    (base / "generation_config.json").write_text(json.dumps({"temperature": 0.6}))  # and no do_sample
    assert merge(base, tiny / "adapter-0", tmp_path / "merged") < PARITY_TOLERANCE


def test_a_whole_model_is_exported_as_it_is(
    make: Callable[..., Any], enter: Enter, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make(whole=True)
    version = enter(world)
    (world.store.folder(world.base) / "model.safetensors").unlink()  # nobody asks for it
    made = export(version, "merged", tmp_path / "merged", world.store)
    assert made.parity is None
    assert (tmp_path / "merged/model.safetensors").read_bytes() == (tiny / "whole/model.safetensors").read_bytes()
    assert {"config.json", "tokenizer.json", "generation_config.json", "CARD.md"} <= set(made.files)
    script(tmp_path / "llama.cpp" / "convert_hf_to_gguf.py", CONVERTER)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))
    assert "nightowl-demo-1.gguf" in export(version, "gguf", tmp_path / "gguf", world.store).files
    assert "the trained model itself" in (tmp_path / "gguf" / "README.md").read_text()

    export(version, "vllm", tmp_path / "vllm", world.store)
    script(tmp_path / "bin" / "vllm", '#!/bin/sh\nfor argument; do echo "$argument"; done\n')
    monkeypatch.setenv("PATH", f"{tmp_path}/bin", prepend=":")
    served = subprocess.run(["sh", tmp_path / "vllm/serve.sh"], capture_output=True, text=True, check=True).stdout
    assert served.splitlines()[:4] == ["serve", "adapter", "--served-model-name", "nightowl-demo"]
    assert "lora" not in served


def test_the_sample_base_merges_within_the_tolerance(demo_base: Path, tmp_path: Path) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_pretrained(demo_base, dtype=torch.bfloat16)
    peft = get_peft_model(model, LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", init_lora_weights=False))
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.mul_(0.2)  # about as far as a night's training moves it
    adapter = tmp_path / "adapter"
    peft.save_pretrained(adapter)
    AutoTokenizer.from_pretrained(demo_base).save_pretrained(adapter)
    del model, peft
    parity = merge(demo_base, adapter, tmp_path / "merged")
    assert 0 < parity < PARITY_TOLERANCE
    assert (tmp_path / "merged" / "model.safetensors").stat().st_size < 300e6  # 16 bits a weight


def test_gguf_is_written_by_the_converter_that_is_at_hand(
    world: Any, enter: Enter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = enter(world)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match=r"needs llama\.cpp's convert_hf_to_gguf\.py.*LLAMA_CPP"):
        export(version, "gguf", tmp_path / "out", world.store)
    script(tmp_path / "llama.cpp" / "convert_hf_to_gguf.py", CONVERTER)
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "llama.cpp"))
    made = export(version, "gguf", tmp_path / "out", world.store)
    assert set(made.files) == {"nightowl-demo-1.gguf", "README.md", "CARD.md"}
    assert (tmp_path / "out" / "nightowl-demo-1.gguf").read_bytes().startswith(b"GGUF")

    shutil.move(tmp_path / "llama.cpp", tmp_path / "broken")
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "broken"))
    with pytest.raises(WorldFailed, match="no such architecture"):
        export(version, "gguf", tmp_path / "second", world.store)
    assert not (tmp_path / "second").exists()


def test_an_unknown_target_is_refused(world: Any, enter: Enter, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="Known: vllm, merged, gguf"):
        export(enter(world), "onnx", tmp_path / "out", world.store)
