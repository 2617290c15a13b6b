"""Sources: where data sets and base models come from, pinned by commit or digest and verified by sha256."""

from tasks.sources.permission import Permission
from tasks.sources.pin import Pin, Unreachable
from tasks.sources.rows import COLUMNS, Batch, read_batches
from tasks.sources.schemes import read_stream, resolve, write_base, write_data, write_stream
from tasks.sources.snapshot import BaseSnapshot, Snapshot
from tasks.sources.stream import EMPTY, Chain, Wanted, stored
from tasks.sources.uri import HUBS, STREAMS, SourceUri, parse_uri, redacted

__all__ = [
    "COLUMNS",
    "EMPTY",
    "HUBS",
    "STREAMS",
    "BaseSnapshot",
    "Batch",
    "Chain",
    "Permission",
    "Pin",
    "Snapshot",
    "SourceUri",
    "Unreachable",
    "Wanted",
    "parse_uri",
    "read_batches",
    "read_stream",
    "redacted",
    "resolve",
    "stored",
    "write_base",
    "write_data",
    "write_stream",
]
