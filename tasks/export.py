"""export: hand a registered version to whatever serves it, as a folder that is written whole or not at all.

`vllm`: the adapter with the command that serves it on its base. `merged`: the adapter merged into the 16-bit base,
checked against the adapter on fixed prompts. `gguf`: the same for llama.cpp, by its own converter.
"""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict

from tasks.conversations import Renderer
from tasks.errors import BadInput, WorldFailed
from tasks.evaluation import room_for
from tasks.fetch import fetch_base_again, verify
from tasks.registry import Record, Version, download_adapter, read_record
from tasks.sources import BaseSnapshot
from tasks.store import Store, write_whole
from tasks.training import CONFIG, is_whole, rank_of

Target = Literal["vllm", "merged", "gguf"]
PARITY_TOLERANCE = 0.05
"""How far a logit of the merged model may be from the adapter's, relative to the prompt's largest: rounding the merged
weights to 16 bits moves them by some thousandths, a lost layer by more than the whole."""
PARITY_PROMPTS = (
    "What is the capital of France?",
    "Compute 17 + 25 and say how you did it.",
    "Write one sentence about owls.",
    "用一句话介绍北京。",
)
_CALL_PARSERS = {
    ("<tool_call>", "arguments"): "hermes",
    ("[TOOL_CALLS]", "arguments"): "mistral",
    ("", "parameters"): "llama3_json",
}
"""vLLM's --tool-call-parser by what stands before a call, and what its arguments go by."""
_ADAPTERS_OWN = ("adapter_model.safetensors", CONFIG, "README.md", "nightowl.json")
_CONVERTER = "convert_hf_to_gguf.py"


class Exported(BaseModel):
    """What was written. `parity`: the largest relative difference of a logit, where weights were merged."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    target: Target
    folder: str
    files: dict[str, int]
    parity: float | None = None


def export(version: Version, target: str, out: Path, store: Store) -> Exported:
    """Write a version into the folder `out`, which must be absent or empty.

    Raises BadInput for an unknown target, a folder that holds something and a missing converter; WorldFailed when
    the base or the disk fails, and when the merged model answers differently from the adapter.
    """
    if target not in get_args(Target):
        raise BadInput("--to", target, "is no target", f"Known: {', '.join(get_args(Target))}.")
    out = out.expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise BadInput("OUT", str(out), "is there and not empty", "Name a new folder; nothing is overwritten.")
    from safetensors import SafetensorError

    converter = _converter() if target == "gguf" else None
    record = read_record(version)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as work:
            folder = Path(work) / out.name
            folder.mkdir()
            parity = _write(version, record, target, folder, Path(work), store, converter)
            files = {str(p.relative_to(folder)): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
            folder.replace(out)
    except (OSError, SafetensorError) as error:  # safetensors has errors of its own for a full disk
        raise WorldFailed(
            str(out),
            f"could not be written ({getattr(error, 'strerror', None) or error})",
            "Nothing is left there; free some space.",
        ) from error
    return Exported.model_validate({"target": target, "folder": str(out), "files": files, "parity": parity})


def _write(
    version: Version,
    record: Record,
    target: str,
    folder: Path,
    work: Path,
    store: Store,
    converter: list[str] | None,
) -> float | None:
    if target == "vllm":
        download_adapter(version, folder / "adapter")
        shutil.copyfile(folder / "adapter" / "README.md", folder / "CARD.md")
        for shown in folder.glob("adapter/*.png"):
            shutil.copyfile(shown, folder / shown.name)
        write_whole(folder / "serve.sh", serve_script(version, record, store, folder / "adapter"))
        (folder / "serve.sh").chmod(0o755)
        write_whole(folder / "README.md", _readme(version, record, _VLLM.format(model=version.model)))
        return None
    adapter = work / "adapter"
    download_adapter(version, adapter)
    shutil.copyfile(adapter / "README.md", folder / "CARD.md")
    merged = folder if target == "merged" else work / "merged"
    merged.mkdir(exist_ok=True)
    parity = None
    if is_whole(adapter):
        _copy_all(adapter, merged)
        said = _WHOLE
    else:
        parity = merge(store.folder(_base(record, store)), adapter, merged)
        said = _PARITY.format(parity=parity)
    if converter is None:
        write_whole(folder / "README.md", _readme(version, record, _MERGED.format(said=said)))
        return parity
    file = folder / f"{version.model}-{version.version}.gguf"
    _run([*converter, str(merged), "--outfile", str(file), "--outtype", "auto"])
    if not file.is_file():
        raise WorldFailed(
            " ".join(converter), f"ended well and wrote no {file.name}", "Try it by hand on a merged model."
        )
    write_whole(folder / "README.md", _readme(version, record, _GGUF.format(file=file.name, said=said)))
    return parity


def _base(record: Record, store: Store) -> BaseSnapshot:
    """The base model the version was trained on, every file held to its sha256."""
    found = store.find(BaseSnapshot, record.base.address)
    if found is None or verify(store, found):
        found = fetch_base_again(record.recipe.base, record.base, store)
    if found.files != record.base.files:
        other = sorted(name for name in record.base.files if found.files.get(name) != record.base.files[name])
        raise WorldFailed(
            record.base.uri,
            f"is no longer what the adapter was trained on ({', '.join(other[:3]) or 'it has other files'})",
            "Set NIGHTOWL_STORE to the store it was made in.",
        )
    return found


def merge(base: Path, adapter: Path, target: Path) -> float:
    """Merge an adapter into its 16-bit base, with the adapter's tokenizer, template and generation config.

    Returns the largest difference of a logit between base with adapter and the merged model as it was saved, relative
    to the largest logit of the prompt. Raises WorldFailed where it is above PARITY_TOLERANCE.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, GenerationConfig

    # Sums in 32 bits, so that what is compared is the weights; what is saved is rounded to the base's 16 bits.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, use_safetensors=True)
    with_adapter = PeftModel.from_pretrained(model, adapter)
    with_adapter.eval()
    expected = _logits(with_adapter, adapter)
    merged = with_adapter.merge_and_unload(safe_merge=True).to(_narrow(base))
    merged.generation_config = GenerationConfig()  # the base's may not be writable; the adapter's own is copied below
    merged.save_pretrained(target, max_shard_size="5GB")
    _copy_all(adapter, target)
    del model, with_adapter, merged
    again = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, use_safetensors=True)
    again.eval()
    found = _logits(again, target)
    far = max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(expected, found, strict=True))
    if not far <= PARITY_TOLERANCE:
        raise WorldFailed(
            "merging",
            f"the merged model's logits are {far:.3f} of the largest away from the adapter's, more than "
            f"{PARITY_TOLERANCE}",
            "Nothing was written. Serve the adapter itself: --to vllm.",
        )
    return far


def _copy_all(adapter: Path, target: Path) -> None:
    """Copy what a merged model has from the adapter's folder: all but the adapter itself."""
    for path in adapter.iterdir():
        if path.name not in _ADAPTERS_OWN:
            shutil.copyfile(path, target / path.name)


def _narrow(base: Path) -> Any:
    """The 16-bit type that a base's weights are in; bfloat16 for one in 32 bits."""
    import torch

    config = json.loads((base / "config.json").read_text(encoding="utf-8"))
    named = config.get("dtype") or config.get("torch_dtype")
    return torch.float16 if named == "float16" else torch.bfloat16


def _logits(model: Any, tokenizer: Path) -> list[Any]:
    """The logits of every token of PARITY_PROMPTS, rendered with the template."""
    import torch
    from transformers import AutoTokenizer

    tokens = AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
    found = []
    for prompt in PARITY_PROMPTS:
        messages = [{"role": "user", "content": prompt}]
        text = tokens.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        ids = tokens(text, return_tensors="pt", add_special_tokens=False)["input_ids"]
        with torch.inference_mode():
            found.append(model(input_ids=ids).logits[0])
    return found


def serve_script(version: Version, record: Record, store: Store, adapter: Path) -> str:
    """The command that serves a version's adapter on its base, or the whole model, with vLLM: greedy, as it was judged.

    Calls are read by vLLM's parser for the way in which the adapter's template writes them, where it has one.
    """
    base, recipe = record.base, record.recipe
    scheme, _, rest = base.uri.partition("://")
    hub = scheme in ("hf", "modelscope")
    place = rest.partition("@")[0].partition("?")[0] if hub else str(store.folder(base))
    kinds = {source.kind for source in recipe.sources}
    style = Renderer.open(adapter).call_style if "tool" in kinds else None
    parser = _CALL_PARSERS.get((style.sign, style.arguments_key)) if style else None
    whole = is_whole(adapter)
    if whole:
        model = [f"--served-model-name {version.model}"]
    else:
        model = [f"--revision {base.revision}"] if hub else []
        model.append(f"--enable-lora --max-lora-rank {room_for(rank_of(adapter))}")
        model.append(f"--lora-modules {version.model}=adapter")
    options = [
        *model,
        "--dtype bfloat16",
        "--chat-template adapter/chat_template.jinja",
        "--generation-config adapter",
        "--override-generation-config '{\"temperature\": 0.0}'",
        *([f"--enable-auto-tool-choice --tool-call-parser {parser}"] if parser else []),
        *(["--reasoning-parser qwen3"] if "reasoning" in kinds else []),
        '"$@"',
    ]
    unread = style is not None and parser is None
    served = f"# Serves {version.model} version {version.version}"
    about = [f"{served} with vLLM. Arguments go to vLLM."]
    if not whole:
        about = [
            f"{served} on its base with vLLM. NIGHTOWL_BASE: another place of",
            f"# the base, which is {base.uri} at {base.revision} and no other. Arguments go to vLLM.",
        ]
    weights = "adapter" if whole else f'"${{NIGHTOWL_BASE:-{place}}}"'
    lines = [
        "#!/bin/sh",
        *about,
        *(["# vLLM has no parser for calls as this template writes them: they come as text."] if unread else []),
        "set -e",
        'cd "$(dirname "$0")"',
        *(["export VLLM_USE_MODELSCOPE=True"] if scheme == "modelscope" and not whole else []),
        " \\\n  ".join([f"exec vllm serve {weights}", *options]),
    ]
    return "\n".join(lines) + "\n"


def _readme(version: Version, record: Record, how: str) -> str:
    base = record.base
    return (
        f"# {version.model} version {version.version}\n\nAdapter `{version.adapter[:12]}` on {base.uri} at "
        f"`{base.revision}` (licence: {base.licence or 'not stated'}), exported by Nightowl {record.code}. What it was "
        f"made of and how it was judged is in CARD.md.\n\n{how}"
    )


_VLLM = """`sh serve.sh` serves it with vLLM. Ask for the model `{model}`:

    curl http://127.0.0.1:8000/v1/chat/completions -H "Content-Type: application/json" \\
      -d '{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'

Decoding is greedy, as it was when the adapter was judged. With `"chat_template_kwargs": {{"enable_thinking": true}}` in
the request it thinks first. An adapter trained on a 4-bit base (QLoRA) was judged on that; on the 16-bit base answers
may differ by rounding.
"""

_MERGED = """{said} Whatever loads a transformers checkpoint can serve it, and `vllm serve .` does.
"""

_GGUF = """`llama-server -m {file} --jinja` serves it. It was converted from 16-bit weights. {said}
"""

_PARITY = """The weights are the base's with the adapter merged into them; logits on fixed prompts differ from those of
base and adapter apart by at most {parity:.1e} of the largest."""

_WHOLE = "The weights are the trained model itself, file by file: all of them were trained."


def _converter() -> list[str]:
    """The command of llama.cpp's converter; raises BadInput where it is not at hand."""
    named = os.environ.get("LLAMA_CPP")
    places = [Path(named) / _CONVERTER] if named else []
    if found := shutil.which(_CONVERTER):
        places.append(Path(found))
    for place in places:
        if place.is_file():
            return [sys.executable, str(place)]
    raise BadInput(
        "--to",
        "gguf",
        f"needs llama.cpp's {_CONVERTER}, which is not on PATH",
        "Clone llama.cpp and name its folder in LLAMA_CPP, or export --to merged and convert that elsewhere.",
    )


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        last = " | ".join((done.stderr or done.stdout).strip().splitlines()[-5:])
        raise WorldFailed(shlex.join(command[:2]), f"ended with {done.returncode} ({last})", "Nothing was written.")
