"""Sources: where data sets and base models come from, pinned by commit or digest and verified by sha256."""

from tasks.sources.gym import gym_task
from tasks.sources.permission import Permission
from tasks.sources.pin import Moved, Pin, Unreachable
from tasks.sources.rows import COLUMNS, Batch, read_batches
from tasks.sources.schemes import Earlier, no_rows, read_stream, resolve, write_base, write_data, write_stream
from tasks.sources.sift import CODE as SIFTING
from tasks.sources.snapshot import BaseSnapshot, Snapshot
from tasks.sources.stream import EMPTY, Chain, Wanted, stored
from tasks.sources.uri import HUBS, STREAMS, SourceUri, parse_uri, redacted

__all__ = [
    "COLUMNS",
    "EMPTY",
    "HUBS",
    "SIFTING",
    "STREAMS",
    "BaseSnapshot",
    "Batch",
    "Chain",
    "Earlier",
    "Moved",
    "Permission",
    "Pin",
    "Snapshot",
    "SourceUri",
    "Unreachable",
    "Wanted",
    "gym_task",
    "no_rows",
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
