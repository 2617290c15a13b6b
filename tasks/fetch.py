"""Fetch: pin each source by commit or digest and keep its files in the store.

What a source points at is asked first and is cheap; the files are fetched only when the store does not
hold them at that commit, so a source that did not move costs next to nothing. What the store holds is
hashed again before it is handed out; a damaged file is fetched once more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from tasks.errors import WorldFailed
from tasks.recipe import Base, Source
from tasks.sources import (
    HUBS,
    BaseSnapshot,
    Pin,
    Snapshot,
    SourceUri,
    Unreachable,
    parse_uri,
    resolve,
    write_base,
    write_data,
)
from tasks.store import Store, code_digest, file_digest

log = logging.getLogger(__name__)
S = TypeVar("S", Snapshot, BaseSnapshot)


def fetch(source: Source, store: Store) -> Snapshot:
    """The source's snapshot at what it points at now.

    When its hub cannot be reached at all, the latest snapshot in the store is used, and the log says
    at which commit. Raises BadInput where the source cannot be used as given, WorldFailed where a hub,
    the disk or a file in the store fails.
    """
    uri = _source_uri(source)
    try:
        pin = resolve(uri)
    except Unreachable as error:
        return _in_store(Snapshot, uri, store, error)
    return _sound(Snapshot, store, _source_inputs(uri, pin), uri, pin, write_data)


def fetch_base(base: Base, store: Store) -> BaseSnapshot:
    """The base model's snapshot at what it points at now; falls back and raises as `fetch` does."""
    uri = _base_uri(base)
    try:
        pin = resolve(uri, "model")
    except Unreachable as error:
        return _in_store(BaseSnapshot, uri, store, error)
    return _sound(BaseSnapshot, store, _base_inputs(uri, pin), uri, pin, write_base)


def source_inputs(source: Source) -> dict[str, str]:
    """The inputs that give the source's snapshot its address, as it points now; raises as `resolve` does."""
    uri = _source_uri(source)
    return _source_inputs(uri, resolve(uri))


def base_inputs(base: Base) -> dict[str, str]:
    """The inputs that give the base model's snapshot its address, as it points now; raises as `resolve` does."""
    uri = _base_uri(base)
    return _base_inputs(uri, resolve(uri, "model"))


def _source_uri(source: Source) -> SourceUri:
    return parse_uri(source.uri, field=f"sources.{source.name}.uri")


def _base_uri(base: Base) -> SourceUri:
    return parse_uri(base.uri, field="base.uri")


def _source_inputs(uri: SourceUri, pin: Pin) -> dict[str, str]:
    # The columns that are written beside the data are the work of this code.
    return {"uri": uri.text, "revision": pin.revision, "columns": code_digest("tasks/sources/columns.py")}


def _base_inputs(uri: SourceUri, pin: Pin) -> dict[str, str]:
    inputs = {"uri": uri.text, "revision": pin.revision}
    if uri.scheme == "sample":
        inputs["code"] = code_digest("tasks/sources/smollm2.py", libraries=("transformers",))
    return inputs


def verify(store: Store, snapshot: Snapshot | BaseSnapshot) -> list[str]:
    """The files of a snapshot that are no longer what was fetched: missing, or of another sha256."""
    folder = store.folder(snapshot)
    return [
        name
        for name, expected in snapshot.files.items()
        if not (folder / name).is_file() or file_digest(folder / name) != expected
    ]


def _sound(
    kind: type[S],
    store: Store,
    inputs: dict[str, str],
    uri: SourceUri,
    pin: Pin,
    write: Callable[[SourceUri, Pin, Path], dict[str, Any]],
) -> S:
    for _ in range(2):
        snapshot, made = store.make(kind, inputs, partial(write, uri, pin), resumable=uri.scheme in HUBS)
        # What was made now has been hashed now.
        damaged = [] if made else verify(store, snapshot)
        if not damaged:
            return snapshot
        log.warning("%s: %s in the store is damaged and is fetched again", uri.text, ", ".join(damaged))
        store.withdraw(snapshot, damaged)
    raise _damaged(uri, store, damaged)


def _in_store(kind: type[S], uri: SourceUri, store: Store, error: Unreachable) -> S:
    """The latest sound snapshot of a URI whose hub cannot be reached."""
    for snapshot in reversed([found for found in store.all(kind) if found.uri == uri.text]):
        if damaged := verify(store, snapshot):
            raise _damaged(uri, store, damaged) from error
        log.warning("%s Going on with commit %s, fetched %s.", error, snapshot.revision, snapshot.made_at)
        return snapshot
    raise error


def _damaged(uri: SourceUri, store: Store, damaged: list[str]) -> WorldFailed:
    return WorldFailed(
        uri.text,
        f"{', '.join(damaged)} in {store.root} is damaged",
        "Check that disk; with the hub in reach, run again.",
    )
