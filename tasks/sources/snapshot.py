"""What a fetched source leaves in the store."""

from __future__ import annotations

from tasks.store import Manifest


class Snapshot(Manifest):
    """The files of a data source at one commit. Files lie under `data/`, as the source wrote them.

    `uri`: as in the recipe; `revision`: the commit, or for sources without commits a digest that
    stands for one; `requested`: the branch or tag that was asked for, if any; `rows`: rows in `data/`;
    `size`: bytes; `licence`: SPDX identifier where the source states one.
    """

    kind = "snapshot"

    uri: str
    revision: str
    requested: str | None
    rows: int
    size: int
    licence: str | None


class BaseSnapshot(Manifest):
    """A base model: config, safetensors weights and tokenizer, as `from_pretrained` reads them."""

    kind = "base"

    uri: str
    revision: str
    requested: str | None
    size: int
    licence: str | None
