"""Data files as a stream of records: Parquet, JSON lines, JSON, CSV, and .gz or .zst of them.

A file is read in pieces, so its size is not bounded by memory, and whatever is wrong with it is
said with its name and line.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import orjson

from tasks.errors import BadInput
from tasks.sources.pieces import Lines, Piece, Record, Records, Table, bad_line

FORMATS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKED = (".gz", ".zst")
DATA_SUFFIXES = tuple(kind + packed for kind in FORMATS for packed in ("", *PACKED))

# A batch ends at whichever comes first; the bytes are of the text as it lies in the file.
BATCH_ROWS = 50_000
BATCH_BYTES = 32 * 2**20
# No conversation is as long as this; what is has another form than its name says, or a quote that is not closed.
ROW_BYTES = 64 * 2**20
_PIECE = 2**20
_PEEKED = 2**10
_MARK = b"\xef\xbb\xbf"
# Of each byte, whether bytes.strip() takes it away.
_BLANK = np.isin(np.arange(256), list(b" \t\n\r\v\f"))
# Of text that repeats itself, zstandard makes thousands of times as much.
_PACKED_PIECE = 2**16


def is_data_file(name: str) -> bool:
    """Whether a file's name says that it holds rows this module reads."""
    return name.lower().endswith(DATA_SUFFIXES) and not name.rpartition("/")[2].startswith(".")


def read_pieces(path: Path, shown: str, *, header: bool = True) -> Iterator[Piece]:
    """The rows of one data file, piece by piece; `shown` is the file's name in messages.

    `header`: whether the first line of a CSV file names its columns; else they are column_1, column_2, ...

    Raises BadInput, with file and line, for a file or a line that is not what its name says.
    """
    kind = form(path.name)
    try:
        with _opened(path) as file:
            if kind == ".parquet":
                yield from _parquet(file, shown)
            elif kind in (".csv", ".tsv"):
                yield from map(Records, _csv(file, shown, "\t" if kind == ".tsv" else ",", header))
            elif kind == ".json" or not _is_lines(file):
                yield from map(Records, _json(file, shown))
            else:
                yield from _json_lines(file, shown)
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _unreadable(shown, error) from error
    except Exception as error:
        # zstandard is imported only where a .zst file is read.
        if type(error).__module__.startswith("zstandard"):
            raise _unreadable(shown, error) from error
        raise


def _is_lines(file: IO[bytes]) -> bool:
    """Whether a file called JSON lines has a row a line: some hold an array, or objects over several lines."""
    start = cast(Any, file).peek(_PEEKED)[:_PEEKED].removeprefix(_MARK).lstrip()
    return not start.startswith(b"[") and start.partition(b"\n")[0].rstrip() != b"{"


def form(name: str) -> str:
    """The format that a data file's name states, such as `.jsonl`, packed or not."""
    lowered = name.lower()
    for packed in PACKED:
        lowered = lowered.removesuffix(packed)
    return "." + lowered.rpartition(".")[2]


def _too_long(shown: str, number: int, line: bytes) -> BadInput:
    excerpt = line[:80].decode("utf-8", "replace")
    way_out = "Give one row a line (.jsonl), or an array of rows or rows one after the other (.json)."
    return BadInput(f"{shown}:{number}", excerpt, f"begins a row of more than {ROW_BYTES // 10**6} MB", way_out)


def _unreadable(shown: str, error: Exception) -> BadInput:
    return BadInput(shown, type(error).__name__, f"cannot be unpacked ({error})", "Fetch or write the file again.")


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's unpacked bytes; a seekable file for Parquet."""
    packed = next((ending for ending in PACKED if path.name.lower().endswith(ending)), "")
    with open(path, "rb") as raw:
        if not packed:
            yield raw
            return
        if packed == ".gz":
            stream = cast(IO[bytes], gzip.GzipFile(fileobj=raw))
        else:
            stream = cast(IO[bytes], io.BufferedReader(_Zstandard(raw), _PIECE))
        if form(path.name) != ".parquet":
            yield stream
            return
        with tempfile.TemporaryFile(dir=path.parent) as unpacked:
            while piece := stream.read(_PIECE):
                unpacked.write(piece)
            unpacked.seek(0)
            yield unpacked


class _Zstandard(io.RawIOBase):
    """The content of one or more zstandard frames.

    The package's own reader takes a file that ends inside a frame for a whole one; this one raises EOFError.
    """

    def __init__(self, raw: IO[bytes]) -> None:
        import zstandard

        self.raw = raw
        self.decompressor = zstandard.ZstdDecompressor()
        self.frame: Any = None
        self.packed = b""
        self.content = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.content:
            if not self.packed:
                self.packed = self.raw.read(_PACKED_PIECE)
            if not self.packed:
                if self.frame is not None:
                    raise EOFError("it ends inside a zstandard frame")
                return 0
            self.frame = self.frame or self.decompressor.decompressobj()
            self.content = self.frame.decompress(self.packed)
            self.packed = b""
            if self.frame.eof:
                self.packed = self.frame.unused_data
                self.frame = None
        taken = min(len(buffer), len(self.content))
        buffer[:taken] = self.content[:taken]
        self.content = self.content[taken:]
        return taken


def _parquet(file: IO[bytes], shown: str) -> Iterator[Piece]:
    import pyarrow
    import pyarrow.parquet

    try:
        # By default the reader takes in all columns of a row group, and keeps them.
        parquet = pyarrow.parquet.ParquetFile(file, buffer_size=_PIECE, pre_buffer=False)
        if len(set(names := parquet.schema_arrow.names)) < len(names):
            twice = next(name for name in names if names.count(name) > 1)
            raise BadInput(shown, twice, "is the name of two columns", "Write the file with one of them renamed.")
        groups = [parquet.metadata.row_group(number) for number in range(parquet.metadata.num_row_groups)]
        widest = max((group.total_byte_size // max(1, group.num_rows) for group in groups), default=0)
        rows = max(1, min(BATCH_ROWS // 10, BATCH_BYTES // max(1, widest)))
        for batch in parquet.iter_batches(batch_size=rows):
            batch.validate(full=True)  # text that is no UTF-8, for one
            yield Table(batch)
    except (pyarrow.ArrowException, OSError) as error:
        raise BadInput(
            shown, str(error)[:200], "is not a whole Parquet file", "Fetch or write the file again."
        ) from error


def _json_lines(file: IO[bytes], shown: str) -> Iterator[Piece]:
    first = 1
    for text, ends in _whole_lines(file, shown):
        start = len(_MARK) if first == 1 and text[: len(_MARK)].tobytes() == _MARK else 0
        starts, ends = np.concatenate([[start], ends[:-1] + 1]), ends.copy()
        # A file of nothing but the mark begins its one line at its end.
        bare = _BLANK[text[np.minimum(starts, len(text) - 1)]] | _BLANK[text[ends - 1]]
        for place in np.flatnonzero(bare & (starts < ends)):
            line = text[starts[place] : ends[place]].tobytes()
            starts[place] += len(line) - len(line.lstrip())
            ends[place] = starts[place] + len(line.strip())
        written = np.flatnonzero(starts < ends)
        for at in range(0, len(written), BATCH_ROWS):
            some = written[at : at + BATCH_ROWS]
            yield Lines(shown, text, starts[some], ends[some], first + some)
        first += len(ends)


def _whole_lines(file: IO[bytes], shown: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The text (u8) of some lines after the other, and where in it each line ends (i64).

    Most lines are hashed and no more, so they are not copied, and read into memory that is not cleared first.
    """
    rest: np.ndarray = np.empty(0, np.uint8)
    number = 1
    while True:
        text = np.empty(len(rest) + BATCH_BYTES, np.uint8)
        text[: len(rest)] = rest
        read = cast(Any, file).readinto(text[len(rest) :])
        if not read:
            break
        text = text[: len(rest) + read]
        ends = np.flatnonzero(text == ord("\n"))
        if len(ends):
            yield text[: ends[-1] + 1], ends
            number += len(ends)
        rest = text[ends[-1] + 1 :] if len(ends) else text
        if len(rest) > ROW_BYTES:
            raise _too_long(shown, number, rest[:80].tobytes())
    if len(rest):
        yield rest, np.array([len(rest)])


def _not_finite(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def _json(file: IO[bytes], shown: str) -> Iterator[list[Record]]:
    """One array of objects, one object, or objects one after the other, without holding the file."""
    decoder = json.JSONDecoder(parse_constant=_not_finite)
    text = io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig", newline="")
    batch: list[Record] = []
    pending, line, size, piece = "", 1, 0, _PIECE
    in_array: bool | None = None
    closed = False
    try:
        while True:
            read = text.read(piece)
            pending += read
            at = 0
            while True:
                # Commas are taken as blanks: what stands between two objects does not change either of them.
                start = _skip(pending, at)
                line += pending.count("\n", at, start)
                at = start
                if at >= len(pending):
                    break
                sign = pending[at]
                if in_array is None and sign == "[":
                    in_array, at = True, at + 1
                    continue
                in_array = bool(in_array)
                if in_array and sign == "]" and not closed:
                    closed, at = True, at + 1
                    continue
                if sign != "{" or closed:
                    raise bad_line(shown, line, pending[at : at + 80].encode(), "is not a JSON object")
                try:
                    end = decoder.raw_decode(pending, at)[1]
                except RecursionError as error:
                    raise bad_line(shown, line, pending[at : at + 80].encode(), "is nested too deep") from error
                except ValueError as error:
                    if len(pending) - at > ROW_BYTES:
                        raise _too_long(shown, line, pending[at : at + 80].encode()) from error
                    if read:
                        break
                    raise bad_line(
                        shown, line, pending[at : at + 80].encode(), f"begins what is not JSON ({error})"
                    ) from error
                batch.append(_strict(shown, line, pending[at:end]))
                size += end - at
                line += pending.count("\n", at, end)
                at = end
                if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
                    yield batch
                    batch, size = [], 0
            # An object larger than a piece is tried again at twice the size, not at every piece.
            piece = max(_PIECE, len(pending) - at)
            pending = pending[at:]
            if not read:
                break
        if in_array and not closed:
            raise BadInput(f"{shown}:{line}", "end of file", "ends inside its array", "Fetch or write the file again.")
    except UnicodeDecodeError as error:
        raise BadInput(shown, error.reason, "is not UTF-8 text", "Save it as UTF-8.") from error
    finally:
        text.detach()
    if batch:
        yield batch


def _strict(shown: str, line: int, text: str) -> Record:
    """The object again, by the parser that JSON lines go through: it refuses half a surrogate pair, for one."""
    try:
        return dict(orjson.loads(text))
    except (orjson.JSONDecodeError, UnicodeEncodeError) as error:
        raise bad_line(shown, line, text[:80].encode(errors="replace"), f"is not JSON ({error})") from error


def _skip(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n,":
        at += 1
    return at


def _csv(file: IO[bytes], shown: str, delimiter: str, header: bool) -> Iterator[list[Record]]:
    """Every cell is text, as it is written: `007` stays `007`."""
    csv.field_size_limit(ROW_BYTES)
    text = io.TextIOWrapper(cast(Any, file), encoding="utf-8-sig", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=True)
    batch: list[Record] = []
    names: list[str] = []
    size = 0
    try:
        for cells in reader:
            if not cells:
                continue
            if not names:
                # A column without a name is the index that pandas writes.
                names = [cell if header and cell else f"column_{n}" for n, cell in enumerate(cells, 1)]
                if len(set(names)) < len(names):
                    raise BadInput(
                        f"{shown}:{reader.line_num}",
                        delimiter.join(names)[:80],
                        "is no header: a column name appears twice",
                        "Correct the header, or add ?header=false to the URI where the file has none.",
                    )
                if header:
                    continue
            if len(cells) != len(names):
                raise BadInput(
                    f"{shown}:{reader.line_num}",
                    delimiter.join(cells)[:80],
                    f"has {len(cells)} cells where the first line has {len(names)}",
                    "Correct or remove that line.",
                )
            batch.append(dict(zip(names, cells, strict=True)))
            size += sum(map(len, cells))
            if len(batch) >= BATCH_ROWS or size >= BATCH_BYTES:
                yield batch
                batch, size = [], 0
    except csv.Error as error:
        raise BadInput(
            f"{shown}:{reader.line_num}", str(error), "is not CSV", "Correct that line, and quote what needs quotes."
        ) from error
    except UnicodeDecodeError as error:
        raise BadInput(shown, error.reason, "is not UTF-8 text", "Save it as UTF-8.") from error
    finally:
        text.detach()
    if batch:
        yield batch
