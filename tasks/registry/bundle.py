"""The folder that is registered: the adapter with its tokenizer, template, generation config and model card.

Nothing else gets in: no base weights, no pickles, no path of the machine it was trained on. Where all weights were
trained (method full), the adapter is the whole model.
"""

from __future__ import annotations

import json
import shutil
import struct
from pathlib import Path
from typing import Any

from tasks.errors import BadInput, WorldFailed
from tasks.registry.card import MIXTURE_PICTURE
from tasks.sources import BaseSnapshot
from tasks.store import Store, file_digest
from tasks.training import CONFIG, Adapter, is_whole

_WEIGHTS = ".safetensors"
_PLAIN = {".json", ".jinja", ".txt", ".model", ".md"}


def pack(adapter: Adapter, base: BaseSnapshot, card: str, store: Store, target: Path, picture: Path) -> int:
    """Copy what may be registered of an adapter into `target`, as it was judged; returns its size in bytes.

    `picture`: of the mixture, shown by the card; left out where there is none.

    Raises BadInput for a file that may not be registered and weights that are not an adapter's, WorldFailed for
    files that are not, byte for byte, what training left.
    """
    source = store.folder(adapter) / "adapter"
    names = sorted(name.removeprefix("adapter/") for name in adapter.files if name.startswith("adapter/"))
    weights = [name for name in names if Path(name).suffix == _WEIGHTS]
    if not weights:
        raise BadInput(f"adapter {adapter.short}", names, f"has no {_WEIGHTS}", "Train it again.")
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        if name not in weights and Path(name).suffix not in _PLAIN:
            raise BadInput(
                f"adapter {adapter.short}", name, "may not be registered", "Only safetensors, JSON and text are."
            )
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source / name, target / name)
        if file_digest(target / name) != adapter.files[f"adapter/{name}"]:
            raise WorldFailed(
                str(source / name), "has changed since training", "Remove that adapter's folder and run again."
            )
    for name in weights:
        check_weights(target / name, whole=is_whole(target))
        if not is_whole(target):
            _as_judged(target / name)
    if not is_whole(target):
        _name_the_base(target / CONFIG, base)
    (target / "README.md").write_text(card, encoding="utf-8")
    if picture.exists():
        shutil.copyfile(picture, target / MIXTURE_PICTURE)
    return sum(path.stat().st_size for path in target.rglob("*") if path.is_file())


def _as_judged(path: Path) -> None:
    """Write LoRA matrices in the 16 bits in which candidates are judged and served; that halves what is kept.

    Where this machine has no 16-bit arithmetic, candidates are judged in 32 bits, and they stay as they are.
    """
    import torch
    from safetensors.torch import load_file, save_file

    if torch.cuda.is_available() or torch.ops.mkldnn._is_mkldnn_bf16_supported():
        matrices = {name: matrix.to(torch.bfloat16) for name, matrix in load_file(path).items()}
        save_file(matrices, path, metadata={"format": "pt"})


def check_weights(path: Path, *, whole: bool = False) -> None:
    """Raise BadInput unless a safetensors file holds LoRA matrices and nothing else, or, of a `whole` model, none of
    them (its header is enough to tell)."""
    with open(path, "rb") as file:
        try:
            (length,) = struct.unpack("<Q", file.read(8))
            header = json.loads(file.read(length))
        except (struct.error, ValueError, OverflowError, MemoryError) as error:
            raise BadInput(str(path), path.name, "is not a safetensors file", "Train the adapter again.") from error
    tensors = [name for name in header if name != "__metadata__"]
    foreign = [name for name in tensors if ("lora_" in name) == whole]
    if foreign or not tensors:
        raise BadInput(
            str(path),
            foreign[:3],
            ("holds weights of another kind" if whole else "holds weights that are not an adapter's")
            if tensors
            else "holds no weights",
            "LoRA matrices alone are registered, and the base stays a reference, or a whole model of method full.",
        )


def base_reference(base: BaseSnapshot) -> dict[str, Any]:
    """How a registered adapter names its base: where from, which commit, and the sha256 of weights and config."""
    config = next((name for name in sorted(base.files, key=len) if Path(name).name == "config.json"), None)
    if config is None:
        raise BadInput(f"base {base.short}", base.uri, "has no config.json", "Name a model that transformers can load.")
    folder = Path(config).parent
    files = {
        str(Path(name).relative_to(folder)): sha256
        for name, sha256 in base.files.items()
        if Path(name).parent == folder and (Path(name).suffix == ".safetensors" or Path(name).name == "config.json")
    }
    return {
        "uri": base.uri,
        "revision": base.revision,
        "address": base.address,
        "folder": str(folder),
        "files": files,
    }


def _name_the_base(path: Path, base: BaseSnapshot) -> None:
    """PEFT writes the folder it trained from; elsewhere that names nothing."""
    config = json.loads(path.read_text(encoding="utf-8"))
    scheme, _, rest = base.uri.partition("://")
    hub = scheme in ("hf", "modelscope")
    config["base_model_name_or_path"] = rest.partition("@")[0].partition("?")[0] if hub else base.uri
    config["revision"] = base.revision if hub else None
    path.write_text(json.dumps(config, indent=2, sort_keys=True), encoding="utf-8")
