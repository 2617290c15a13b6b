"""What a source points at now."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from tasks.errors import WorldFailed


class Pin(BaseModel):
    """`revision`: a commit, or a digest that stands for one; `requested`: the branch or tag it was asked as, if any."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    revision: str
    requested: str | None


class Unreachable(WorldFailed):
    """A hub could not be reached at all: what is already in the store may still serve."""


class BrokenOff(WorldFailed):
    """A server went away while it was read: what has been read is kept, and reading can go on from there."""
