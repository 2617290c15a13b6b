"""What a source points at now."""

from __future__ import annotations

import hashlib
from typing import Any

from pydantic import BaseModel, ConfigDict

from tasks.errors import WorldFailed


class RemoteFile(BaseModel):
    """A file of a repository. `size` in bytes; one of the digests: sha256 of the content, or git's blob id (sha1).

    A bucket's object has no digest, but its `key`, `etag` and time of change (ISO 8601).
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    size: int
    sha256: str | None = None
    git_blob: str | None = None
    key: str = ""
    etag: str | None = None
    modified: str | None = None

    @property
    def place(self) -> str:
        """Its path while it is fetched; an object that has been rewritten is another one."""
        return self.name if self.etag is None else f"{hashlib.sha256(self.etag.encode()).hexdigest()[:16]}/{self.name}"


class Listing(BaseModel):
    """A repository at a commit. `card`: the front matter of its README, as far as the hub or the file gives it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    commit: str
    files: tuple[RemoteFile, ...]
    card: dict[str, Any]

    @property
    def licence(self) -> str | None:
        """The licence that the card states."""
        licence = self.card.get("license")
        return licence if isinstance(licence, str) else ", ".join(map(str, licence)) if licence else None


class Pin(BaseModel):
    """`revision`: a commit, or a digest that stands for one; `requested`: the branch or tag it was asked as, if any.

    `listing`: what is there, where that cannot be asked for again by the revision.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: str
    requested: str | None
    listing: Listing | None = None


class Unreachable(WorldFailed):
    """A hub could not be reached at all: what is already in the store may still serve."""


class Moved(WorldFailed):
    """What was pinned is no longer there: pinning anew can help."""


class BrokenOff(WorldFailed):
    """A server went away while it was read: what has been read is kept, and reading can go on from there."""
