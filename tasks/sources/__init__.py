"""Sources: where data sets and base models come from, pinned by commit or digest and verified by sha256."""

from tasks.sources.pin import Pin, Unreachable
from tasks.sources.rows import read_rows
from tasks.sources.schemes import resolve, write_base, write_data
from tasks.sources.snapshot import BaseSnapshot, Snapshot
from tasks.sources.uri import HUBS, SourceUri, parse_uri

__all__ = [
    "HUBS",
    "BaseSnapshot",
    "Pin",
    "Snapshot",
    "SourceUri",
    "Unreachable",
    "parse_uri",
    "read_rows",
    "resolve",
    "write_base",
    "write_data",
]
