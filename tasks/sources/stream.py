"""Streams: sources without commits that only grow, such as a table or a tracking server's traces.

A stream is read in the order of its cursor and kept as segments: files of JSON lines, named by their
digest, that follow each other. A night takes the segments it has from the store and reads what lies
after the watermark, the cursor of the last row; the digest of the segments' digests stands for the
commit. What can go wrong with that, and what is done about it:

- A row comes late, with a cursor below the watermark (a transaction that took long, a clock that runs
  behind): an `overlap` before the watermark is read again each night and merged with what is stored, row
  by row; a row that changed there replaces the stored one. A row that was deleted upstream stays, unless
  the recipe asks for `recheck`, which reads the whole stream again each night and follows every change.
- A row comes later than that: where upstream can count, it is asked how many rows it has before the overlap,
  and asked again the next night. Where they have become more, everything is read and merged.
- A clock that runs ahead: the watermark never passes the time that upstream had when it was read, so that one
  row of the year 2099 does not hide all that come after it.
- Equal cursors: a cursor must be unique, several columns if need be; two equal ones are an error, because
  a page that ended between them would lose the second.
- A killed process: finished segments stay in a work folder and the next attempt goes on after them.
"""

from __future__ import annotations

import hashlib
import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import orjson
from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInput
from tasks.sources.permission import Permission
from tasks.sources.rows import DATA
from tasks.sources.uri import SourceUri
from tasks.store import digest, file_digest, link, write_whole

log = logging.getLogger(__name__)

SEGMENTS = "segments.json"
# A segment ends at whichever comes first.
SEGMENT_ROWS = 20_000
SEGMENT_BYTES = 16 * 2**20


class Wanted(BaseModel):
    """What the recipe says of a stream; the fields as it describes them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: str | None = None
    cursor: tuple[str, ...] = ()
    overlap: float | None = None
    recheck: bool = False
    permission: Permission = Permission()
    tracking_uri: str | None = None


class Row(NamedTuple):
    """One row of a stream.

    `position`: where it stands, in whole steps of the cursor's first column; None where that has no
    distances (text). `key`: the cursor, unique. `line`: its JSON. `aside`: why the source itself rules it out.
    """

    position: int | None
    key: tuple[Any, ...]
    record: dict[str, Any]
    line: bytes
    aside: str | None = None


class Segment(BaseModel):
    """A run of rows. `high`: the last row's cursor; `position`: its position; `oldest`: least time in it, in µs;
    `limit`: upstream's own time when it was read, as a position; `before`, of the last segment: the position from
    which the next night reads, and how many rows upstream had before it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    digest: str
    rows: int
    high: tuple[Any, ...]
    position: int | None
    oldest: int | None
    limit: int | None = None
    before: tuple[int, int] | None = None


class Upstream(Protocol):
    """A stream's own side, read at one moment: every call sees the same rows."""

    uri: SourceUri
    overlap: float  # where the recipe says nothing

    @property
    def unit(self) -> int | None:
        """Positions to one unit of the recipe's `overlap`; None where positions are None."""

    def now(self) -> int | None:
        """The position that a row written now would have; None where the cursor is no clock."""

    def count(self, before: int) -> int | None:
        """How many rows there are before a position; None where that costs as much as reading them."""

    def rows(self, *, after: tuple[Any, ...] | None, since: int | None) -> Iterator[Row]:
        """Rows in the order of their cursor: those after a cursor, those from a position on, or all."""

    def row(self, line: bytes) -> Row:
        """The row that a stored line holds."""


class Chain(NamedTuple):
    """A stream as it was read. `files`: where each segment lies, by digest; `rows_in`: rows looked at."""

    segments: tuple[Segment, ...]
    files: dict[str, Path]
    rows_in: int
    set_aside: dict[str, int]

    @property
    def revision(self) -> str:
        """What stands for the commit."""
        return digest([segment.digest for segment in self.segments])

    def older_than(self, cutoff: int | None) -> bool:
        """Whether any row is of a time, in microseconds since 1970, before `cutoff`."""
        return cutoff is not None and any(s.oldest is not None and s.oldest < cutoff for s in self.segments)

    @property
    def watermark(self) -> str | None:
        """The last row's cursor, as JSON."""
        return orjson.dumps(self.segments[-1].high).decode() if self.segments else None


EMPTY = Chain((), {}, 0, {})


def stored(folder: Path, damaged: Iterable[str] = ()) -> Chain:
    """The chain that a snapshot's folder holds; segments whose files (by name) are damaged have no file."""
    segments = tuple(Segment.model_validate(entry) for entry in orjson.loads((folder / SEGMENTS).read_bytes()))
    bad = set(damaged)
    files = {
        segment.digest: folder / DATA / name
        for name, segment in _named(segments)
        if f"{DATA}/{name}" not in bad and (folder / DATA / name).is_file()
    }
    return Chain(segments, files, 0, {})


def read(upstream: Upstream, before: Chain, wanted: Wanted, stage: Path | None) -> Chain:
    """The stream as it is now. `before` is what the store has; new segments are written to `stage`, if given.

    What an earlier attempt that started from the same `before` left in `stage` is made use of.
    """
    base = before.revision
    if stage is not None:
        before = _resume(stage, before, base)
    cutoff = wanted.permission.cutoff()
    segments = before.segments
    first, since = _start(upstream, before, wanted)
    writer = _Writer(stage, wanted.permission, cutoff, before, upstream.now())
    for segment in segments[:first]:
        if cutoff is not None and segment.oldest is not None and segment.oldest < cutoff:
            writer.take(_rows_of(before.files[segment.digest], upstream))
            writer.close()
        else:
            writer.keep(segment)
    kept = () if wanted.recheck or upstream.unit is None else segments[first:]
    old = chain.from_iterable(_rows_of(before.files[s.digest], upstream) for s in kept if s.digest in before.files)
    after = None if since is not None or not first else segments[first - 1].high
    # Until the merge is past what was stored, there is nothing that an attempt could go on from.
    watermark = segments[-1].position if kept else None
    if stage is not None:
        writer.finished = lambda: _save(stage, base, writer, watermark)
    writer.take(_merged(old, _unique(upstream.rows(after=after, since=since))))
    writer.close()
    if writer.segments and not wanted.recheck:
        writer.segments[-1] = _counted(upstream, writer.segments[-1], wanted)
    return writer.chain()


def write(chain: Chain, folder: Path) -> None:
    """Lay a chain's segments out as a snapshot's data, by hard links: an earlier night's rows are not copied."""
    (folder / DATA).mkdir(exist_ok=True)
    names = dict(_named(chain.segments))
    for path in (folder / DATA).iterdir():
        if path.name not in names:
            path.unlink()
    for name, segment in names.items():
        target = folder / DATA / name
        if not target.exists():
            link(chain.files[segment.digest], target)
    segments = [segment.model_dump(mode="json") for segment in chain.segments]
    write_whole(folder / SEGMENTS, orjson.dumps(segments, option=orjson.OPT_INDENT_2).decode())


def _named(segments: Iterable[Segment]) -> Iterator[tuple[str, Segment]]:
    """Segments with their file names, which sort in the order of the rows."""
    for number, segment in enumerate(segments):
        yield f"{number:06d}-{segment.digest[:16]}.jsonl", segment


def _start(upstream: Upstream, before: Chain, wanted: Wanted) -> tuple[int, int | None]:
    """The first stored segment that is read again, and the position from which upstream is read (None: after it)."""
    segments = before.segments
    if wanted.recheck or not segments:
        return 0, None
    damaged = next((n for n, s in enumerate(segments) if s.digest not in before.files), None)
    if damaged is not None:
        return damaged, None
    last = segments[-1]
    since = _boundary(upstream, last, wanted)
    if since is None:
        return len(segments), None
    if last.before and last.before[0] == since and (late := (upstream.count(since) or 0) - last.before[1]) > 0:
        log.warning("%s: %d rows came later than `overlap` allows for; reading it whole", upstream.uri.text, late)
        return 0, None
    if since == last.position:
        return len(segments), None
    first = next(n for n, segment in enumerate(segments) if segment.position is not None and segment.position >= since)
    return first, since


def _boundary(upstream: Upstream, last: Segment, wanted: Wanted) -> int | None:
    """The position from which on rows are read again after a last segment; None where positions have no distances."""
    if upstream.unit is None or last.position is None:
        return None
    reach = upstream.overlap if wanted.overlap is None else wanted.overlap
    return min(last.position, last.position if last.limit is None else last.limit) - int(reach * upstream.unit)


def _counted(upstream: Upstream, last: Segment, wanted: Wanted) -> Segment:
    """The last segment with what the next night compares."""
    boundary = _boundary(upstream, last, wanted)
    before = None if boundary is None else upstream.count(boundary)
    return last.model_copy(update={"before": None if before is None else (boundary, before)})


def _rows_of(path: Path, upstream: Upstream) -> Iterator[Row]:
    with open(path, "rb") as file:
        for line in file:
            yield upstream.row(line.rstrip(b"\n"))


def _unique(rows: Iterator[Row]) -> Iterator[Row]:
    last: tuple[Any, ...] | None = None
    for row in rows:
        if row.key == last:
            raise BadInput(
                "cursor",
                orjson.dumps(row.key).decode(),
                "is the cursor of two rows",
                "Add a column that tells rows apart, such as the primary key: cursor: [created_at, id].",
            )
        last = row.key
        yield row


def _merged(old: Iterator[Row], new: Iterator[Row]) -> Iterator[Row]:
    """Both in the order of their positions; of two rows with one cursor, the new one."""

    def position(row: Row) -> int:
        return row.position or 0

    olds, news = groupby(old, position), groupby(new, position)
    left, right = next(olds, None), next(news, None)
    while left is not None or right is not None:
        if right is None or (left is not None and left[0] < right[0]):
            assert left is not None
            yield from left[1]
            left = next(olds, None)
        elif left is None or right[0] < left[0]:
            yield from right[1]
            right = next(news, None)
        else:
            kept = {row.key: row for row in left[1]}
            for row in right[1]:
                kept.pop(row.key, None)
                yield row
            yield from kept.values()
            left, right = next(olds, None), next(news, None)


class _Writer:
    """Cuts rows into segments, leaves out what may not be used, and counts."""

    def __init__(
        self, stage: Path | None, permission: Permission, cutoff: int | None, before: Chain, limit: int | None
    ) -> None:
        self.stage = stage
        self.permission = permission
        self.cutoff = cutoff
        self.limit = limit
        self.segments: list[Segment] = []
        self.files = dict(before.files)
        self.rows_in = before.rows_in
        self.set_aside = Counter(before.set_aside)
        self.finished: Callable[[], None] = lambda: None
        self._clear()

    def _clear(self) -> None:
        self.lines: list[bytes] = []
        self.size = 0
        self.oldest: int | None = None
        self.last: Row | None = None

    def keep(self, segment: Segment) -> None:
        self.segments.append(segment)
        self.rows_in += segment.rows

    def take(self, rows: Iterable[Row]) -> None:
        for row in rows:
            self.rows_in += 1
            if reason := row.aside or self.permission.reason(row.record, self.cutoff):
                self.set_aside[reason] += 1
                continue
            when = self.permission.when(row.record)
            if when is not None:
                self.oldest = when if self.oldest is None else min(self.oldest, when)
            self.lines.append(row.line)
            self.size += len(row.line) + 1
            self.last = row
            if len(self.lines) >= SEGMENT_ROWS or self.size >= SEGMENT_BYTES:
                self.close()

    def close(self) -> None:
        """End the segment that is being filled, if there is one."""
        if self.last is None:
            return
        content = b"\n".join([*self.lines, b""])
        name = hashlib.sha256(content).hexdigest()
        if self.stage is not None:
            self.files[name] = self.stage / f"{name}.jsonl"
            temporary = self.stage / f".{name}"
            temporary.write_bytes(content)
            temporary.replace(self.files[name])
        self.segments.append(
            Segment(
                digest=name,
                rows=len(self.lines),
                high=self.last.key,
                position=self.last.position,
                oldest=self.oldest,
                limit=self.limit,
            )
        )
        self._clear()
        self.finished()

    def chain(self) -> Chain:
        return Chain(tuple(self.segments), self.files, self.rows_in, dict(self.set_aside))


def _save(stage: Path, base: str, writer: _Writer, watermark: int | None) -> None:
    last = writer.segments[-1].position
    if watermark is not None and (last is None or last < watermark):
        return
    state = {
        "base": base,
        "segments": [segment.model_dump(mode="json") for segment in writer.segments],
        "set_aside": dict(writer.set_aside),
    }
    write_whole(stage / SEGMENTS, orjson.dumps(state).decode())


def _resume(stage: Path, before: Chain, base: str) -> Chain:
    """What an attempt that was killed had finished, where it started from the same segments; else `before`."""
    stage.mkdir(parents=True, exist_ok=True)
    state = orjson.loads((stage / SEGMENTS).read_bytes()) if (stage / SEGMENTS).exists() else {}
    if state.get("base") != base:
        shutil.rmtree(stage)
        stage.mkdir()
        return before
    segments = tuple(Segment.model_validate(entry) for entry in state["segments"])
    files = dict(before.files)
    for segment in segments:
        path = stage / f"{segment.digest}.jsonl"
        if segment.digest not in files and path.is_file() and file_digest(path) == segment.digest:
            files[segment.digest] = path
    return Chain(segments, files, sum(state["set_aside"].values()), state["set_aside"])
