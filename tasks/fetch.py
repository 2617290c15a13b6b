"""Fetch: pin each source by commit or digest and keep its files in the store.

What a source points at is asked first and is cheap; the files are fetched only when the store does not
hold them at that commit, so a source that did not move costs next to nothing. What the store holds is
hashed again before it is handed out; a damaged file is fetched once more.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock

from tasks.errors import WorldFailed
from tasks.recipe import Base, Source
from tasks.sources import (
    EMPTY,
    HUBS,
    SIFTING,
    STREAMS,
    BaseSnapshot,
    Chain,
    Earlier,
    Moved,
    Permission,
    Pin,
    Snapshot,
    SourceUri,
    Unreachable,
    Wanted,
    no_rows,
    parse_uri,
    read_stream,
    resolve,
    stored,
    write_base,
    write_data,
    write_stream,
)
from tasks.store import Manifest, Store, code_digest, digest, file_digest, link

log = logging.getLogger(__name__)
# How often a source that moves while it is read is pinned.
_PINS = 3
S = TypeVar("S", Snapshot, BaseSnapshot)


def fetch(source: Source, store: Store) -> Snapshot:
    """The source's snapshot at what it points at now.

    When its hub cannot be reached at all, the latest snapshot in the store is used, and the log says
    at which commit. Raises BadInput where the source cannot be used as given, WorldFailed where a hub,
    the disk or a file in the store fails.
    """
    uri = _source_uri(source)
    if uri.scheme in STREAMS:
        return _fetch_stream(source, uri, store)
    for _ in range(_PINS - 1):
        try:
            return _fetch_files(source, uri, store)
        except Moved as error:
            log.info("%s Pinning it anew.", error)
    return _fetch_files(source, uri, store)


def _fetch_files(source: Source, uri: SourceUri, store: Store) -> Snapshot:
    permission = _permission(source)
    try:
        pin = resolve(uri)
    except Unreachable as error:
        kept = _in_store(Snapshot, uri, store, error, permission)
        if not _expired(kept, permission):
            return kept
        pin = Pin(revision=kept.revision, requested=kept.requested)
    inputs = _source_inputs(uri, pin, permission, store)

    def write(uri: SourceUri, pin: Pin, folder: Path) -> dict[str, Any]:
        return write_data(uri, pin, folder, permission, inputs.get("cutoff"), _earlier(store, uri, pin, inputs))

    return _sound(Snapshot, store, inputs, uri, pin, write)


def fetch_base(base: Base, store: Store) -> BaseSnapshot:
    """The base model's snapshot at what it points at now; falls back and raises as `fetch` does."""
    uri = _base_uri(base)
    try:
        pin = resolve(uri, "model")
    except Unreachable as error:
        return _in_store(BaseSnapshot, uri, store, error, Permission())
    return _sound(BaseSnapshot, store, _base_inputs(uri, pin), uri, pin, write_base)


def fetch_again(source: Source, recorded: Snapshot, store: Store) -> Snapshot:
    """The source's snapshot at a recorded commit; of a source without commits, what it holds now.

    Raises BadInput for a stream, whose rows of that day may have changed since, and else as `fetch` does, with no
    falling back on what the store has.
    """
    uri = _source_uri(source)
    if uri.scheme in STREAMS:
        raise uri.bad("is a stream and cannot be read as it was", "What was read of it is in the store it was read to.")
    pin, permission = _pin(recorded) if uri.scheme in HUBS else resolve(uri), _permission(source)
    inputs, cutoff = _pinned(uri, pin.revision), recorded.inputs.get("cutoff")
    if permission.asks():
        inputs |= _sifted(permission, cutoff)

    def write(uri: SourceUri, pin: Pin, folder: Path) -> dict[str, Any]:
        return write_data(uri, pin, folder, permission, cutoff, None)

    return _sound(Snapshot, store, inputs, uri, pin, write)


def fetch_base_again(base: Base, recorded: BaseSnapshot, store: Store) -> BaseSnapshot:
    """The base model's snapshot at a recorded commit, as `fetch_again` has it."""
    uri = _base_uri(base)
    pin = _pin(recorded) if uri.scheme in HUBS else resolve(uri, "model")
    return _sound(BaseSnapshot, store, _base_inputs(uri, pin), uri, pin, write_base)


def adopt(recorded: S, origin: Store, store: Store) -> S | None:
    """A snapshot of one store in another, its files linked; None where `origin` lacks a file as it was recorded."""
    if origin.find(type(recorded), recorded.address) is None or verify(origin, recorded):
        return None

    def build(work: Path) -> dict[str, Any]:
        for name in recorded.files:
            (work / name).parent.mkdir(parents=True, exist_ok=True)
            link(origin.folder(recorded) / name, work / name)
        return recorded.model_dump(exclude=set(Manifest.model_fields))

    return store.make(type(recorded), recorded.inputs, build)[0]


def source_inputs(source: Source, store: Store) -> dict[str, Any]:
    """The inputs that give the source's snapshot its address, as it points now; raises as `resolve` does.

    Of a stream, what came since the last snapshot in the store is read for it, and not kept.
    """
    uri = _source_uri(source)
    if uri.scheme in STREAMS:
        identity = _identity(source)
        before, _ = _before(store, _latest(store, identity))
        return _stream_inputs(uri, identity, read_stream(uri, _wanted(source), before, None))
    return _source_inputs(uri, resolve(uri), _permission(source), store)


def base_inputs(base: Base) -> dict[str, str]:
    """The inputs that give the base model's snapshot its address, as it points now; raises as `resolve` does."""
    uri = _base_uri(base)
    return _base_inputs(uri, resolve(uri, "model"))


def _source_uri(source: Source) -> SourceUri:
    return parse_uri(source.uri, field=f"sources.{source.name}.uri")


def _base_uri(base: Base) -> SourceUri:
    return parse_uri(base.uri, field="base.uri")


def _permission(source: Source) -> Permission:
    return Permission(consent=source.consent, time=source.time, max_age=source.max_age)


def _pin(recorded: Snapshot | BaseSnapshot) -> Pin:
    return Pin(revision=recorded.revision, requested=recorded.requested)


def _pinned(uri: SourceUri, revision: str) -> dict[str, Any]:
    # The columns that are written beside the data are the work of this code.
    return {"uri": uri.text, "revision": revision, "columns": code_digest("tasks/sources/columns.py")}


def _source_inputs(uri: SourceUri, pin: Pin, permission: Permission, store: Store) -> dict[str, Any]:
    inputs = _pinned(uri, pin.revision)
    if not permission.asks():
        return inputs
    inputs |= _sifted(permission, None)
    # As long as no row reaches its greatest age, the snapshot of an earlier day is today's as well.
    for snapshot in reversed(store.all(Snapshot)):
        if {**snapshot.inputs, "cutoff": None} == inputs and not _expired(snapshot, permission):
            return snapshot.inputs
    return {**inputs, "cutoff": permission.cutoff()}


def _sifted(permission: Permission, cutoff: int | None) -> dict[str, Any]:
    """What a snapshot depends on where rows may be left out of it."""
    return {"permission": permission.model_dump(), "sifting": code_digest(*SIFTING), "cutoff": cutoff}


def _expired(snapshot: Snapshot, permission: Permission) -> bool:
    """Whether rows of a snapshot have become too old since it was made."""
    cutoff = permission.cutoff()
    return cutoff is not None and snapshot.oldest is not None and snapshot.oldest < cutoff


def _base_inputs(uri: SourceUri, pin: Pin) -> dict[str, str]:
    inputs = {"uri": uri.text, "revision": pin.revision}
    if uri.scheme == "sample":
        inputs["code"] = code_digest("tasks/sources/smollm2.py", libraries=("transformers",))
    return inputs


def _earlier(store: Store, uri: SourceUri, pin: Pin, inputs: dict[str, Any]) -> Earlier | None:
    """The last snapshot of a source made under the same permission; of a bucket, whatever it then had."""
    same = ("uri", "permission", "sifting", *(() if uri.scheme == "s3" else ("revision",)))
    for snapshot in reversed(store.all(Snapshot)):
        if all(snapshot.inputs.get(name) == inputs.get(name) for name in same):
            damaged, folder = verify(store, snapshot), store.folder(snapshot)
            return Earlier(snapshot, {name: folder / name for name in snapshot.files if name not in damaged})
    return None


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
    inputs: dict[str, Any],
    uri: SourceUri,
    pin: Pin,
    write: Callable[[SourceUri, Pin, Path], dict[str, Any]],
) -> S:
    for _ in range(2):
        snapshot, made = store.make(kind, inputs, partial(write, uri, pin), resumable=uri.scheme in (*HUBS, "s3"))
        # What was made now has been hashed now.
        damaged = [] if made else verify(store, snapshot)
        if not damaged:
            return snapshot
        log.warning("%s: %s in the store is damaged and is fetched again", uri.text, ", ".join(damaged))
        store.withdraw(snapshot, damaged)
    raise _damaged(uri, store, damaged)


def _fetch_stream(source: Source, uri: SourceUri, store: Store) -> Snapshot:
    """A stream's snapshot, made of the segments of its last one and what came since."""
    identity = _identity(source)
    stage = store.root / "work" / f"stream-{identity}"
    try:
        stage.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{stage}.lock"):
            latest = _latest(store, identity)
            before, damaged = _before(store, latest)
            if damaged:
                log.warning("%s: %s in the store is damaged; what it held is read again", uri.text, ", ".join(damaged))
            try:
                chain = read_stream(uri, _wanted(source), before, stage)
            except Unreachable as error:
                if latest is None:
                    raise
                if damaged:
                    raise _damaged(uri, store, damaged) from error
                if before.older_than(_permission(source).cutoff()):
                    log.warning("%s: what the store has holds rows that are too old by now", uri.text)
                    raise
                log.warning("%s Going on with %s, fetched %s.", error, latest.revision, latest.made_at)
                return latest
            if not chain.segments:
                raise no_rows(uri, chain.set_aside)
            inputs = _stream_inputs(uri, identity, chain)
            if latest and not damaged and latest.address == Store.address(Snapshot, inputs):
                return latest
            snapshot = _kept(uri, inputs, chain, store)
            store.set_latest(identity, snapshot)
            shutil.rmtree(stage, ignore_errors=True)
            return snapshot
    except OSError as error:
        raise WorldFailed(
            str(store.root),
            f"writing what {uri.text} yields failed ({error.strerror or error})",
            "Free disk space there, or set NIGHTOWL_STORE to another disk; what was read is kept.",
        ) from error


def _kept(uri: SourceUri, inputs: dict[str, str], chain: Chain, store: Store) -> Snapshot:
    for _ in range(2):
        snapshot, made = store.make(Snapshot, inputs, partial(write_stream, uri, chain), resumable=True)
        damaged = [] if made else verify(store, snapshot)
        if not damaged:
            return snapshot
        store.withdraw(snapshot, damaged)
    raise _damaged(uri, store, damaged)


def _identity(source: Source) -> str:
    """What tells one stream from another: with any other value here, it is read from its beginning."""
    of = {"uri": source.uri, "query": source.query, "cursor": source.cursor}
    return digest({**of, "consent": source.consent, "time": source.time, "max_age": source.max_age})


def _wanted(source: Source) -> Wanted:
    tracking = None
    if source.uri.startswith("mlflow:"):
        from tasks.registry import client, tracking_uri

        client()  # makes the embedded database where there is none
        tracking = tracking_uri()
    return Wanted(
        query=source.query,
        cursor=source.cursor,
        overlap=source.overlap,
        recheck=source.consent is not None if source.recheck is None else source.recheck,
        permission=_permission(source),
        tracking_uri=tracking,
    )


def _stream_inputs(uri: SourceUri, identity: str, chain: Chain) -> dict[str, Any]:
    return {**_pinned(uri, chain.revision), "stream": identity}


def _latest(store: Store, identity: str) -> Snapshot | None:
    """The snapshot that a stream had last; a process killed before it said so leaves it to be found."""
    if found := store.latest(Snapshot, identity):
        return found
    return next((one for one in reversed(store.all(Snapshot)) if one.inputs.get("stream") == identity), None)


def _before(store: Store, latest: Snapshot | None) -> tuple[Chain, list[str]]:
    """The chain that a snapshot holds, and which of its files are damaged."""
    if latest is None:
        return EMPTY, []
    damaged = verify(store, latest)
    if "segments.json" in damaged:
        return EMPTY, damaged
    return stored(store.folder(latest), damaged), damaged


def _in_store(kind: type[S], uri: SourceUri, store: Store, error: Unreachable, permission: Permission) -> S:
    """The latest sound snapshot of a URI whose hub cannot be reached, made under the same permission."""
    asked = permission.model_dump() if permission.asks() else None
    for snapshot in reversed(store.all(kind)):
        if snapshot.uri != uri.text or snapshot.inputs.get("permission") != asked:
            continue
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
