"""The folder that leaves training: an adapter that can be loaded without knowing where it was made.

Beside PEFT's two files, or a whole model's where all weights were trained, it holds the tokenizer, the
chat template it was trained with and a generation config that stops on the token that was trained to end
a turn, so that no copy of them has to be guessed later. The base is named by URI and revision, never by a
path of the machine, and by the digest of its weights: an adapter fits the weights it was trained on and
silently garbles any other.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

from tasks.errors import BadInput, WorldFailed
from tasks.sources import BaseSnapshot
from tasks.store import digest, write_whole
from tasks.training.spec import TrainingSpec

SIDECAR = "nightowl.json"
_TOKENIZER = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
)
CONFIG = "adapter_config.json"
_PEFT = re.compile(r"adapter_model\.safetensors|adapter_config\.json")
_WHOLE = re.compile(r"model(-\d+-of-\d+)?\.safetensors|model\.safetensors\.index\.json|(generation_)?config\.json")


def is_whole(folder: Path) -> bool:
    """Whether this is a whole model, of method full, and not an adapter that is laid on its base."""
    return not (folder / CONFIG).exists()


def rank_of(folder: Path) -> int:
    """The largest rank in an adapter. A PiSSA adapter's is twice its recipe's."""
    config = json.loads((folder / CONFIG).read_bytes())
    return max([int(config["r"]), *map(int, (config.get("rank_pattern") or {}).values())])


def weights_digest(base: BaseSnapshot) -> str:
    """sha256 over the base's weight files; the same weights give the same digest from any hub."""
    weights = sorted(sha for name, sha in base.files.items() if name.endswith(".safetensors"))
    if not weights:
        raise BadInput("base.uri", base.uri, "holds no safetensors weights", "Name a base model that has them.")
    return digest(weights)


def require_base(adapter: Path, base: BaseSnapshot) -> None:
    """Raise BadInput unless the adapter in this folder was trained on these very weights."""
    try:
        trained_on = json.loads((adapter / SIDECAR).read_text(encoding="utf-8"))
        expected = trained_on["base_weights"]
    except (OSError, ValueError, KeyError) as error:
        raise BadInput(
            str(adapter / SIDECAR), str(error), "does not say which base it belongs to", "Train the adapter again."
        ) from error
    if expected != weights_digest(base):
        raise BadInput(
            "base.uri",
            f"{base.uri}@{base.revision}",
            f"has other weights than the adapter was trained on ({trained_on['base']}@{trained_on['revision']})",
            "Use that base, or train a new adapter on this one.",
        )


def complete(folder: Path, spec: TrainingSpec, ends: list[int]) -> None:
    """Turn what PEFT or transformers saved into a folder that stands alone.

    `ends`: the token ids that end a turn. Raises WorldFailed when they left something that is not
    safetensors or JSON.
    """
    known = _WHOLE if spec.training.method == "full" else _PEFT
    for path in folder.iterdir():
        if path.name == "README.md":
            path.unlink()
        elif not known.fullmatch(path.name):
            raise WorldFailed(str(path), "was saved with the adapter and is not known to be safe", "Report this.")
    if not is_whole(folder):
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = f"{spec.base_uri}@{spec.base_revision}"
        if isinstance(config.get("target_modules"), list):
            config["target_modules"] = sorted(config["target_modules"])  # PEFT writes a set, in no order
        write_whole(folder / CONFIG, json.dumps(config, indent=2, sort_keys=True))
    for name in _TOKENIZER:
        if (spec.base_folder / name).is_file():
            shutil.copyfile(spec.base_folder / name, folder / name)
    if spec.chat_template is not None:
        (folder / "chat_template.jinja").write_text(spec.chat_template, encoding="utf-8")
        _drop_template(folder / "tokenizer_config.json")
    write_whole(folder / "generation_config.json", json.dumps(generation(spec.base_folder, ends), indent=2))
    sidecar = {"base": spec.base_uri, "revision": spec.base_revision, "base_weights": spec.base_weights}
    write_whole(folder / SIDECAR, json.dumps(sidecar, indent=2))


def generation(base_folder: Path, ends: list[int]) -> dict[str, object]:
    """The base's generation config, stopping on the trained end of a turn first and on its own ends as well."""
    file = base_folder / "generation_config.json"
    config = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return config | {"eos_token_id": list(dict.fromkeys([*ends, *stop_tokens(base_folder)]))}


def stop_tokens(base_folder: Path) -> list[int]:
    """The ids that the base stops on, from its generation config and else its config."""
    for name in ("generation_config.json", "config.json"):
        file = base_folder / name
        found = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id") if file.is_file() else None
        if found is not None:
            return found if isinstance(found, list) else [found]
    return []


def _drop_template(tokenizer_config: Path) -> None:
    """A template inside tokenizer_config.json would compete with the one that was trained with."""
    if tokenizer_config.is_file():
        config = json.loads(tokenizer_config.read_text(encoding="utf-8"))
        if config.pop("chat_template", None) is not None:
            write_whole(tokenizer_config, json.dumps(config, indent=2, ensure_ascii=False))
