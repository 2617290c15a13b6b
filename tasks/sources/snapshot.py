"""What a fetched source leaves in the store."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from tasks.store import Manifest


class Snapshot(Manifest):
    """The files of a data source at one commit. Files lie under `data/`, as the source wrote them.

    `uri`: as in the recipe; `revision`: the commit, or for sources without commits a digest that
    stands for one; `requested`: the branch or tag that was asked for, if any; `rows`: rows in `data/`;
    `size`: bytes; `licence`: SPDX identifier where the source states one. `watermark`: of a stream, the cursor of
    its last row, as JSON. `rows_in`: where rows may be left out, the rows looked at when this was made; those that
    are not in `data/` are in `set_aside`, by reason. `oldest`: of files, least time of a row, in microseconds since
    1970, where the recipe says which column that is.
    """

    kind = "snapshot"

    uri: str
    revision: str
    requested: str | None
    rows: int
    size: int
    licence: str | None
    watermark: str | None = None
    rows_in: int | None = None
    oldest: int | None = None
    set_aside: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _conserves_rows(self) -> Self:
        if self.rows_in is not None and self.rows_in != self.rows + sum(self.set_aside.values()):
            raise ValueError(f"{self.rows_in} rows were looked at, {self.rows} kept and {self.set_aside} set aside")
        return self


class BaseSnapshot(Manifest):
    """A base model: config, safetensors weights and tokenizer, as `from_pretrained` reads them."""

    kind = "base"

    uri: str
    revision: str
    requested: str | None
    size: int
    licence: str | None
