"""What a source looks like as a whole, small enough to keep for ever and to hold against another night's.

Lengths are counted in bins that are the same for every source and night, four to a doubling, so that two
profiles can be compared bin by bin without the rows that they were made of.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import polars as pl
from pydantic import BaseModel, ConfigDict

from tasks.quality.turns import Turns
from tasks.recipe import Kind

PER_DOUBLING = 4
LENGTHS = ("characters", "tokens", "turns")


class Profile(BaseModel):
    """The rows of a source that the gate kept, counted; and the columns of the raw source, in their order.

    `kinds`: by what they show (see `traits`); `roles`: by the letters of the roles that speak in them (S, U, A,
    T); `languages`: ISO 639-1, empty where the recipe names none; `characters`, `tokens`, `turns`: by bin (`bins`).
    `tokenizer`: digest of what counted the tokens.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int
    columns: tuple[str, ...]
    kinds: dict[str, int]
    roles: dict[str, int]
    languages: dict[str, int]
    characters: dict[int, int]
    tokens: dict[int, int]
    turns: dict[int, int]
    tokenizer: str


def traits(laid: Turns) -> dict[str, pl.Series]:
    """What a profile counts of each conversation: `_characters`, `_roles` and `_shows`, the kind that it shows.

    That is tool where tools are declared or called, else reasoning where the assistant thinks, else chat.
    """
    letters = laid.rows["letters"]
    characters = laid.pieces.group_by("n").agg(pl.col("text").str.len_chars().sum().cast(pl.UInt32))
    none = pl.repeat(0, laid.rows.height, dtype=pl.UInt32, eager=True)
    roles = pl.concat_str(
        [pl.when(pl.col("letters").str.contains(sign, literal=True)).then(pl.lit(sign)) for sign in "SUAT?"],
        ignore_nulls=True,
    )
    thinks = laid.where((pl.col("role") == "assistant") & pl.col("thought"))
    tools = laid.rows["tools"].fill_null("[]") != "[]"
    calls = tools | laid.mark(laid.calls["n"].unique())
    shows = pl.when(calls).then(pl.lit("tool")).when(thinks).then(pl.lit("reasoning")).otherwise(pl.lit("chat"))
    return {
        "_characters": none.scatter(characters["n"], characters["text"]),
        "_roles": letters.to_frame().select(roles=roles)["roles"],
        "_shows": letters.to_frame().select(shows=shows)["shows"],
    }


def main_kind(rows: pl.DataFrame) -> Kind:
    """The kind that most conversations (schema CONVERSATION) show."""
    shown = traits(Turns.of(rows))["_shows"].value_counts(sort=True)
    return cast(Kind, shown.item(0, 0)) if shown.height else "chat"


def profile_of(kept: pl.DataFrame, columns: Sequence[str], tokenizer: str) -> Profile:
    """The profile of kept rows (`tokens`, `turns`, and what `traits` says of them, where there are any)."""
    if kept.is_empty():
        nothing: dict[str, Any] = {name: {} for name in ("kinds", "roles", "languages", *LENGTHS)}
        return Profile(rows=0, columns=tuple(columns), tokenizer=tokenizer, **nothing)
    counted = {
        field: dict(kept[column].drop_nulls().value_counts().sort(column).iter_rows())
        for field, column in (("kinds", "_shows"), ("roles", "_roles"), ("languages", "_language"))
    }
    lengths = {
        name: dict(kept.select(bin=bins(pl.col(column)))["bin"].value_counts().sort("bin").iter_rows())
        for name, column in zip(LENGTHS, ("_characters", "tokens", "turns"), strict=True)
    }
    given: dict[str, Any] = {"rows": kept.height, "columns": tuple(columns), "tokenizer": tokenizer}
    return Profile(**given, **counted, **lengths)


def bins(length: pl.Expr) -> pl.Expr:
    """The bin of a length: 0 for none, then a quarter of a doubling each (`edge` is where a bin begins)."""
    quarters = (length.cast(pl.Float64).log(2) * PER_DOUBLING + 1e-9).floor().cast(pl.Int32) + 1
    return pl.when(length.fill_null(0) > 0).then(quarters).otherwise(0)


def edge(bin: int) -> float:
    """The least length in a bin."""
    return float(2 ** ((bin - 1) / PER_DOUBLING)) if bin else 0.0
