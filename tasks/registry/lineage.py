"""Lineage: what a version, a run and a data set say of where they came from, and the way back.

Backward: everything is on the version (tags) and on its training run (inputs). Forward: every version
carries one tag a source commit, named by the digest of the commit, so that "which adapters contain it" is one
query of the registry; rows are looked up in the mixtures of the store.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import polars as pl

from tasks.conversations import Conversations
from tasks.errors import BadInput
from tasks.mixture import TokenisedMixture
from tasks.registry.tracking import answers, client, pages
from tasks.sources import Snapshot
from tasks.store import Store, digest, file_digest

Snapshots = Sequence[Snapshot] | Mapping[str, Snapshot]
_ROOT = Path(__file__).resolve().parent.parent.parent
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


def contains_tag(source: str) -> str:
    """The name of the tag that a version carries for a pinned source."""
    return f"nightowl.contains.{hashlib.sha256(source.encode()).hexdigest()[:16]}"


def source_names(snapshots: Snapshots, conversations: Sequence[Conversations]) -> dict[str, Snapshot]:
    """Snapshots by the name their source has in the recipe, or by uri where nothing says."""
    if isinstance(snapshots, Mapping):
        return dict(snapshots)
    names = {entry.snapshot: entry.source for entry in conversations}
    return {names.get(snapshot.address, snapshot.uri): snapshot for snapshot in snapshots}


def source_tags(snapshots: Snapshots, conversations: Sequence[Conversations]) -> dict[str, str]:
    """What a version says of its sources."""
    tags = {}
    for name, snapshot in source_names(snapshots, conversations).items():
        source = pinned(snapshot.uri, snapshot.revision)
        tags[f"nightowl.source.{name}"] = source
        tags[contains_tag(source)] = source
    return tags


def mixture_tags(mixture: TokenisedMixture) -> dict[str, str]:
    """What a version says of its mixture."""
    splits = {f"nightowl.mixture.{name}": split.digest for name, split in mixture.splits.items()}
    return {"nightowl.mixture": mixture.address, **splits}


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


def containing_source(source: str) -> list[dict[str, Any]]:
    """Registered versions, over all models, that were trained on a pinned source (`hf://org/name@commit`).

    Newest first: model, version, adapter, mixture, base and aliases. Raises BadInput for a source without its commit
    and WorldFailed when MLflow does not answer.
    """
    head = source.partition("?")[0].partition("://")[2]
    if "@" not in head:
        raise BadInput("--source", source, "names no commit", "Give it as the report shows it: hf://org/name@commit.")
    mlflow = client()
    with answers():
        query = f"tags.`{contains_tag(source)}` LIKE '%'"
        return _described(mlflow, list(pages(mlflow.search_model_versions, filter_string=query)))


def containing_row(row_id: str, store: Store) -> list[dict[str, Any]]:
    """Mixtures of the store that hold a conversation, each with the split it is in and the versions trained on it.

    A row that was held out (split test or validation) is found as well: it was not trained on, but it is there.
    """
    found = []
    mlflow = client()
    for mixture in store.all(TokenisedMixture):
        folder = store.folder(mixture)
        splits = [name for name in mixture.splits if _holds(folder / f"{name}.parquet", row_id)]
        if not splits:
            continue
        with answers():
            query = f"tags.`nightowl.mixture` = '{mixture.address}'"
            versions = _described(mlflow, list(pages(mlflow.search_model_versions, filter_string=query)))
        found.append({"mixture": mixture.address, "splits": splits, "made_at": mixture.made_at, "versions": versions})
    return found


def _holds(split: Path, row_id: str) -> bool:
    """Whether a split has a row; reads that one column, and only row groups whose range can hold it."""
    rows = pl.scan_parquet(split).filter(pl.col("row_id") == row_id).select("row_id").head(1)
    return not rows.collect().is_empty()


def _described(mlflow: Any, entries: list[Any]) -> list[dict[str, Any]]:
    aliases: dict[tuple[str, int], list[str]] = {}
    for model in {entry.name for entry in entries}:
        for alias, version in mlflow.get_registered_model(model).aliases.items():
            aliases.setdefault((model, int(version)), []).append(alias)
    described = [
        {
            "model": entry.name,
            "version": int(entry.version),
            "aliases": sorted(aliases.get((entry.name, int(entry.version)), [])),
            "adapter": entry.tags["nightowl.adapter"],
            "mixture": entry.tags["nightowl.mixture"],
            "base": entry.tags["nightowl.base"],
        }
        for entry in entries
    ]
    return sorted(described, key=lambda entry: (entry["model"], -entry["version"]))
