"""`file://`: files on this machine, copied into the snapshot so that a night can be run again.

The digest of names and contents stands for the commit. Files are copied rather than linked, because
a log that grows tonight must not change last night's snapshot.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterable
from pathlib import Path

import orjson

from tasks.errors import WorldFailed
from tasks.sources.pin import Moved, Pin
from tasks.sources.records import FORMATS, PACKED, is_data_file
from tasks.sources.rows import has_header
from tasks.sources.uri import SourceUri, local_path
from tasks.store import digest, file_digest

# Where a tokenizer that was saved with several chat templates has those besides the first.
TEMPLATES = "additional_chat_templates"
_MODEL_FILES = (".json", ".safetensors", ".txt", ".model", ".jinja", ".tiktoken")


def resolve(uri: SourceUri) -> Pin:
    """Raises BadInput when nothing is there, or what is there holds no rows or cannot be read."""
    has_header(uri)
    return _pin(uri, find_data(uri))


def write(uri: SourceUri, pin: Pin, data: Path, sifted: bool) -> None:
    """Copy the files into a folder; raises WorldFailed when they are no longer what `pin` says.

    `sifted`: room must be left for their rows to be written once more.
    """
    copy(uri, find_data(uri), pin, data, times=2 if sifted else 1)


def resolve_model(uri: SourceUri) -> Pin:
    """Raises BadInput where the folder holds no model with safetensors weights."""
    return _pin(uri, find_model(uri))


def write_model(uri: SourceUri, pin: Pin, folder: Path) -> None:
    """Copy a model's files into a base snapshot's folder."""
    copy(uri, find_model(uri), pin, folder)


def find_data(uri: SourceUri) -> dict[str, Path]:
    """The data files of a path or glob, by their name in the snapshot, in order."""
    path = local_path(uri)
    if path.is_dir():
        found = {str(p.relative_to(path)): p for p in path.rglob("*") if p.is_file() and is_data_file(p.name)}
        if not found:
            raise uri.bad("is a folder without data files", f"Data files end in {', '.join(FORMATS)}, plain or packed.")
    elif path.exists():
        found = {path.name: path}
    elif glob.has_magic(str(path)):
        root = _fixed_part(path)
        matches = root.glob(str(path.relative_to(root)))
        found = {str(p.relative_to(root)): p for p in matches if p.is_file()}
        if not found:
            raise uri.bad("matches no file", f"The folder it looks in is {root}.")
    else:
        raise uri.bad("does not exist", f"Looked for {path}.")
    for name, place in found.items():
        if not is_data_file(name):
            endings = f"{', '.join(FORMATS)}, each also with {' or '.join(PACKED)}"
            raise uri.bad(f"leads to {place}, which is no data file", f"Data files end in {endings}.")
    return dict(sorted(found.items()))


def find_model(uri: SourceUri) -> dict[str, Path]:
    """The files of a model folder that `from_pretrained` needs, by name; weights are safetensors alone."""
    folder = local_path(uri)
    if not folder.is_dir():
        raise uri.bad("is no folder", "Give the folder that a model was saved to.")
    present = sorted(p for p in folder.iterdir() if p.is_file())
    names = {p.name for p in present}
    if not any(name.endswith(".safetensors") for name in names):
        pickled = sorted(name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        problem = f"holds pickled weights only ({pickled[0]})" if pickled else "holds no weights"
        raise uri.bad(problem, "Weights are read from .safetensors files alone: save them so.")
    for needed in ("config.json", "tokenizer_config.json"):
        if needed not in names:
            raise uri.bad(f"holds no {needed}", "Save model and tokenizer into it with save_pretrained.")
    templates = {f"{TEMPLATES}/{p.name}": p for p in sorted((folder / TEMPLATES).glob("*.jinja"))}
    return {p.name: p for p in present if p.name.endswith(_MODEL_FILES)} | templates


def copy(uri: SourceUri, files: dict[str, Path], pin: Pin, target: Path, times: int = 1) -> None:
    """Copy files to `target`, where there must be room for them `times` times; check that they are what was pinned."""
    target.mkdir(parents=True, exist_ok=True)
    need = sum(place.stat().st_size for place in files.values())
    require_space(target, need * times, uri.text)
    digests = {}
    for name, place in files.items():
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(place, target / name)
        digests[name] = file_digest(target / name)
    if digest(digests) != pin.revision:
        raise Moved(uri.text, "changed while it was copied", "Run again when nothing writes to it.")


def require_space(folder: Path, need: int, what: str) -> None:
    """Raises WorldFailed unless `need` bytes, and a little more, are free on the folder's disk."""
    free = shutil.disk_usage(folder).free
    if need + 2**24 > free:
        raise WorldFailed(
            what,
            f"needs {need / 1e9:.2f} GB, and {free / 1e9:.2f} GB are free in {folder}",
            "Free disk space there, or set NIGHTOWL_STORE to another disk.",
        )


def write_json_lines(path: Path, rows: Iterable[object]) -> None:
    """Write rows as JSON lines, making the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as file:
        for row in rows:
            file.write(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE))


def _pin(uri: SourceUri, files: dict[str, Path]) -> Pin:
    try:
        return Pin(revision=digest({name: file_digest(place) for name, place in files.items()}), requested=None)
    except OSError as error:
        raise uri.bad(f"cannot be read ({error})", "Make its files readable for this user.") from error


def _fixed_part(path: Path) -> Path:
    """The part of a glob before its first wildcard."""
    parts = []
    for part in path.parts:
        if glob.has_magic(part):
            break
        parts.append(part)
    return Path(*parts)
