"""Lineage: what a version, a run and a data set say of where they came from.

Backward: everything is on the version (tags) and on its training run (inputs). Forward: versions and runs name their
sources in one tag, which `forward.py` searches.
"""

from __future__ import annotations

import json
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import Any

from tasks.conversations import Conversations
from tasks.mixture import TokenisedMixture
from tasks.sources import Snapshot
from tasks.store import digest, file_digest

Snapshots = Sequence[Snapshot] | Mapping[str, Snapshot]
_ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES_TAG = "nightowl.sources"
_LONGEST_TAG = 7900  # characters; MLflow cuts a run's at 8000 without a word
_MOST_FILES = 1000  # of a source, named with their sha256 in its data set; the record of a version has them all
_DIGEST = 36  # characters of a data set's digest that MLflow keeps


def compact(value: object) -> str:
    """Canonical JSON for a tag."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=str)


@cache
def code_version() -> tuple[str, str]:
    """The package's version with the git commit it runs from, and the sha256 of the lock file."""
    try:
        version = metadata.version("nightowl")
    except metadata.PackageNotFoundError:
        version = tomllib.loads((_ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["version"]
    commit = _git("rev-parse", "HEAD") if (_ROOT / ".git").exists() else None
    if commit:
        changed = _git("status", "--porcelain", "--untracked-files=no")
        version = f"{version}+git.{commit}{'.changed' if changed else ''}"
    lock = _ROOT / "requirements.lock"
    return version, file_digest(lock) if lock.exists() else "no lock file"


def code_tags() -> dict[str, str]:
    """Code version and lock digest, as tags."""
    version, lock = code_version()
    return {"nightowl.code": version, "nightowl.lock": lock}


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(_ROOT), *arguments], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def pinned(uri: str, revision: str) -> str:
    """A source as people write it: `hf://org/name@commit`, whatever branch the recipe asked for."""
    head, question, query = uri.partition("?")
    scheme, separator, rest = head.partition("://")
    place = rest.partition("@")[0] if scheme in ("hf", "modelscope") else rest
    return f"{scheme}{separator}{place}@{revision}{question}{query}"


def source_names(snapshots: Snapshots, conversations: Sequence[Conversations]) -> dict[str, Snapshot]:
    """Snapshots by the name their source has in the recipe, or by uri where nothing says."""
    if isinstance(snapshots, Mapping):
        return dict(snapshots)
    names = {entry.snapshot: entry.source for entry in conversations}
    return {names.get(snapshot.address, snapshot.uri): snapshot for snapshot in snapshots}


def source_tags(snapshots: Snapshots, conversations: Sequence[Conversations]) -> dict[str, str]:
    """What a version and a run say of their sources: a line a source, its name and where it is pinned."""
    named = source_names(snapshots, conversations)
    parts = [""]
    for line in (f"{name} {pinned(s.uri, s.revision)}\n" for name, s in sorted(named.items())):
        if len(parts[-1]) + len(line) > _LONGEST_TAG:
            parts.append("")
        parts[-1] += line
    return {f"{SOURCES_TAG}.{n}" if n else SOURCES_TAG: part.rstrip("\n") for n, part in enumerate(parts)}


def sources_said(tags: Mapping[str, str]) -> str:
    """What the tags of a version or a run say of its sources, a line a source; many sources fill several tags."""
    parts = [tags.get(SOURCES_TAG, "")]
    while (key := f"{SOURCES_TAG}.{len(parts)}") in tags:
        parts.append(tags[key])
    return "\n".join(parts)


def mixture_tags(mixture: TokenisedMixture) -> dict[str, str]:
    """What a version says of its mixture."""
    splits = {f"nightowl.mixture.{name}": split.digest for name, split in mixture.splits.items()}
    sizes = {
        name: split.model_dump(include={"rows", "tokens", "supervised_tokens"})
        for name, split in mixture.splits.items()
    }
    return {"nightowl.mixture": mixture.address, **splits, "nightowl.splits": compact(sizes)}


def dataset_inputs(
    mixture: TokenisedMixture | None, snapshots: Snapshots, conversations: Sequence[Conversations]
) -> list[Any]:
    """MLflow data set inputs of a run: one a source, one a split. Digests are of content, 36 characters."""
    inputs = [_source_input(name, snapshot) for name, snapshot in source_names(snapshots, conversations).items()]
    if mixture is not None:
        inputs += [_split_input(mixture, name) for name in mixture.splits]
    return inputs


def _source_input(name: str, snapshot: Snapshot) -> Any:
    scheme, _, rest = snapshot.uri.partition("://")
    content = digest(snapshot.files)
    if scheme == "hf":
        kind, source = "hugging_face", {"path": rest.partition("@")[0].partition("?")[0], "revision": snapshot.revision}
    else:
        kind, source = scheme or "local", {"uri": snapshot.uri, "revision": snapshot.revision}
    profile = {
        "rows": snapshot.rows,
        "bytes": snapshot.size,
        "licence": snapshot.licence or "not stated",
        "requested": snapshot.requested,
        "sha256": content,
        "files": len(snapshot.files),
        "sha256_by_file": dict(islice(sorted(snapshot.files.items()), _MOST_FILES)),
        "address": snapshot.address,
    }
    tags = {"uri": snapshot.uri, "revision": snapshot.revision, "sha256": content}
    return _dataset(name, content, kind, source, profile, "source", tags)


def _split_input(mixture: TokenisedMixture, name: str) -> Any:
    split = mixture.splits[name]
    profile = {
        "rows": split.rows,
        "tokens": split.tokens,
        "supervised_tokens": split.supervised_tokens,
        "sha256": split.digest,
        "shares": {source: [part.asked, round(part.reached, 6)] for source, part in mixture.shares.items()},
    }
    source = {"uri": f"store://mixture/{mixture.address}/{name}.parquet"}
    tags = {"sha256": split.digest, "mixture": mixture.address}
    return _dataset(f"{mixture.recipe}-{name}", split.digest, "nightowl", source, profile, name, tags)


def _dataset(
    name: str,
    content: str,
    kind: str,
    source: Mapping[str, object],
    profile: Mapping[str, object],
    context: str,
    tags: Mapping[str, str],
) -> Any:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    dataset = Dataset(
        name=name[:500],
        digest=content[:_DIGEST],
        source_type=kind,
        source=compact(source),
        profile=compact(profile),
    )
    labels = [InputTag("mlflow.data.context", context)]
    labels += [InputTag(f"nightowl.{key}", value[:500]) for key, value in tags.items()]
    return DatasetInput(dataset=dataset, tags=labels)
