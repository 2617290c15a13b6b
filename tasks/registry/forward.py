"""Forward: from a source or a row to the mixtures, adapters, versions and champions that contain it.

Sources are looked up in what MLflow's versions and runs say they were made of (`made.py`): a team's tracking server
knows of the nights of all homes. Rows are looked up in the mixtures of the store, since a registry is no place for a
list of rows; what MLflow knows and the store does not have is named as not looked into.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInput
from tasks.mixture import SPLITS, TokenisedMixture
from tasks.registry.journal import moves
from tasks.registry.made import Made, all_made
from tasks.registry.schema import Move
from tasks.registry.tracking import answers, client
from tasks.store import MANIFEST, Store, home

_ROW_ID = re.compile(r"[0-9a-f]{32}")
_COMMIT = re.compile(r"[0-9a-f]{7,40}")
_SHORT = 12  # hex digits of a row id that the index keeps; a hit is looked up in full


class Reign(BaseModel):
    """A time as champion, UTC, ISO 8601; `until` is None for today's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    since: str
    until: str | None


class HoldingMixture(BaseModel):
    """A mixture that contains what was asked for. `splits`: where its rows were looked through; `runs`: MLflow's."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    made_at: str
    splits: tuple[str, ...] = ()
    runs: tuple[str, ...] = ()


class HoldingAdapter(BaseModel):
    """An adapter trained on such a mixture, registered or not. `run`: the run that trained it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    address: str
    mixture: str
    made_at: str
    run: str


class HoldingVersion(BaseModel):
    """A registered version of such an adapter, with its aliases today and its times as champion."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int
    aliases: tuple[str, ...]
    reigns: tuple[Reign, ...]
    adapter: str
    mixture: str
    base: str


class Holders(BaseModel):
    """Everything that contains a source or a row. `not_looked_into`: mixtures that the store does not have."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    asked: str
    mixtures: tuple[HoldingMixture, ...]
    adapters: tuple[HoldingAdapter, ...]
    versions: tuple[HoldingVersion, ...]
    not_looked_into: tuple[str, ...] = ()


def containing_source(source: str) -> Holders:
    """What contains a source, newest first: by its name in the recipe, its URI, or its URI at a commit.

    Raises BadInput for a hub's URI at a branch, since what is recorded is its commit; WorldFailed when MLflow does
    not answer.
    """
    head = source.partition("?")[0]
    commit = head.partition("@")[2] if head.startswith(("hf://", "modelscope://")) else ""
    if commit and not _COMMIT.fullmatch(commit):
        way_out = f"Give the commit, or {head.partition('@')[0]} for all of them."
        raise BadInput("--source", source, "names a branch or tag, and what is recorded is the commit", way_out)
    mlflow = client()
    with answers():
        return _holders(mlflow, source, [entry for entry in all_made(mlflow) if _says(entry.sources, source)])


def containing_row(row_id: str, store: Store) -> Holders:
    """What contains a conversation; one that was held out (split test or validation) is found as well.

    Raises BadInput for what is no row id, WorldFailed when MLflow does not answer.
    """
    if not _ROW_ID.fullmatch(row_id):
        raise BadInput("--row", row_id, "is no row id", "It has 32 hexadecimal digits, as in the splits' row_id.")
    mlflow = client()
    held = {mixture.address: (mixture, splits) for mixture, splits in _holding(row_id, store)}
    here = {path.parent.name for path in (store.root / TokenisedMixture.kind).glob(f"*/{MANIFEST}")}
    with answers():
        made = all_made(mlflow)
        found = _holders(mlflow, row_id, [entry for entry in made if entry.mixture in held])
    known = {entry.mixture for entry in made}
    mixtures = {mixture.address: mixture for mixture in found.mixtures}
    looked_up = [
        mixtures.get(address, HoldingMixture(address=address, made_at=mixture.made_at)).model_copy(
            update={"splits": splits}
        )
        for address, (mixture, splits) in held.items()
    ]
    newest_first = tuple(sorted(looked_up, key=lambda mixture: mixture.made_at, reverse=True))
    return found.model_copy(update={"mixtures": newest_first, "not_looked_into": tuple(sorted(known - here))})


def _says(sources: str, wanted: str) -> bool:
    """Whether what a version or run says of its sources names this one."""
    for line in sources.splitlines():
        name, _, pinned = line.partition(" ")
        head, mark, query = pinned.partition("?")
        place = head.rpartition("@")[0]
        if wanted in (name, pinned, head, place, f"{place}{mark}{query}"):
            return True
        if "@" in wanted and place == wanted.rpartition("@")[0] and head.startswith(wanted):
            return True  # a commit cut short
    return False


def _holders(mlflow: Any, asked: str, made: Sequence[Made]) -> Holders:
    """`made`: oldest first."""
    mixtures: dict[str, HoldingMixture] = {}
    adapters: dict[str, HoldingAdapter] = {}
    for entry in made:
        at = _moment(entry.at)
        known = mixtures.setdefault(entry.mixture, HoldingMixture(address=entry.mixture, made_at=at))
        if entry.run not in known.runs:
            mixtures[entry.mixture] = known.model_copy(update={"runs": (*known.runs, entry.run)})
        if entry.adapter:
            holding = HoldingAdapter(address=entry.adapter, mixture=entry.mixture, made_at=at, run=entry.run)
            adapters.setdefault(entry.adapter, holding)
    aliases: dict[tuple[str, int], list[str]] = {}
    reigns: dict[tuple[str, int], list[Reign]] = {}
    for model in {entry.model for entry in made if entry.model}:
        for alias, version in mlflow.get_registered_model(model).aliases.items():
            aliases.setdefault((model, int(version)), []).append(alias)
        for version, reign in _reigns(moves(mlflow, model)):
            reigns.setdefault((model, version), []).append(reign)
    versions = [
        HoldingVersion(
            model=entry.model,
            version=entry.version,
            aliases=tuple(sorted(aliases.get((entry.model, entry.version), []))),
            reigns=tuple(reigns.get((entry.model, entry.version), [])),
            adapter=entry.adapter or "",
            mixture=entry.mixture,
            base=entry.base or "",
        )
        for entry in made
        if entry.model and entry.version
    ]
    return Holders(
        asked=asked,
        mixtures=tuple(reversed(mixtures.values())),
        adapters=tuple(reversed(adapters.values())),
        versions=tuple(sorted(versions, key=lambda entry: (entry.model, -entry.version))),
    )


def _reigns(journal: Iterable[Move]) -> Iterator[tuple[int, Reign]]:
    """Who was champion from when to when."""
    moved = [move for move in journal if move.moved]
    for number, move in enumerate(moved):
        until = moved[number + 1].at if number + 1 < len(moved) else None
        yield move.to, Reign(since=move.at, until=until)


def _holding(row_id: str, store: Store) -> Iterator[tuple[TokenisedMixture, tuple[str, ...]]]:
    """The mixtures of the store that hold a row, each with the splits it is in."""
    folder = home() / "index" / "rows"
    folder.mkdir(parents=True, exist_ok=True)
    wanted = np.uint64(int(row_id[:_SHORT], 16))
    for path in (store.root / TokenisedMixture.kind).glob(f"*/{MANIFEST}"):
        index = folder / f"{path.parent.name}.npy"
        if not index.is_file():
            _write_index(path.parent, index)
        ids = np.load(index, mmap_mode="r")
        at = int(np.searchsorted(ids, wanted))
        if at < len(ids) and ids[at] == wanted:
            mixture = TokenisedMixture.model_validate_json(path.read_bytes())
            splits = tuple(name for name in mixture.splits if _holds(path.with_name(f"{name}.parquet"), row_id))
            if splits:
                yield mixture, splits


def _write_index(mixture: Path, index: Path) -> None:
    """The beginnings of a mixture's row ids, sorted: a thousand mixtures are then searched in a blink."""
    splits = [pl.scan_parquet(path).select("row_id") for path in mixture.glob("*.parquet") if path.stem in SPLITS]
    ids = pl.concat(splits).collect()["row_id"].str.head(_SHORT).str.to_integer(base=16).to_numpy().astype(np.uint64)
    temporary = index.with_name(f".{index.name}.{os.getpid()}")
    with open(temporary, "wb") as file:
        np.save(file, np.sort(ids))
    temporary.replace(index)


def _holds(split: Path, row_id: str) -> bool:
    rows = pl.scan_parquet(split).filter(pl.col("row_id") == row_id).select("row_id").head(1)
    return not rows.collect().is_empty()


def _moment(milliseconds: int) -> str:
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat(timespec="seconds")
