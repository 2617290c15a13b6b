"""Sources: where data sets and base models come from, pinned by commit or digest and verified by sha256."""

from tasks.sources.snapshot import BaseSnapshot, Snapshot

__all__ = ["BaseSnapshot", "Snapshot"]
