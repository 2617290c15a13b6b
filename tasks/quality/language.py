"""Which language a conversation is in, told by lingua from the first words of its prose.

lingua's fast mode looks at every text; what it takes for a language that is not allowed is looked at again
by its exact mode, between that language and the allowed ones, since the fast one can be sure and wrong about
a line of names. Code, mark-up and numbers are of no language and left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import polars as pl

from tasks.errors import BadInput
from tasks.quality.text import CODE
from tasks.quality.turns import Turns

_WINDOW = 240  # characters of prose that are looked at
_FEWEST = 75  # letters below which a language is not told
_SURE, _CERTAIN = 0.8, 0.95  # confidence below which it is not told, in the fast and in the exact mode
_NO_PROSE = r"(?:https?://|www\.)\S+|\S*@\S+|\\[A-Za-z]+|[<>{}\[\]$#*_=|\\^~/]+|\d+"
_WIDE_LETTERS = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]"


def language_flags(laid: Turns, allowed: Sequence[str] | None) -> dict[str, pl.Series]:
    """Which conversations answer in a language that is not allowed, and the language of each (`_language`, ISO 639-1).

    None is at fault, and the language null, where it cannot be told. Raises BadInput for a language that the
    detector does not know.
    """
    told = pl.repeat(None, laid.rows.height, dtype=pl.String, eager=True)
    if allowed is None:
        return {"language": laid.mark(pl.Series([], dtype=pl.UInt32)), "_language": told}
    known = _codes()
    for code in allowed or ("",):
        if code not in known:
            raise BadInput("quality.languages", code, "is no language that can be told", f"Known: {' '.join(known)}.")
    prose = _prose(laid)
    languages = pl.Series([_language(text, tuple(sorted({*allowed}))) for text in prose["text"]], dtype=pl.String)
    foreign = prose["n"].filter(languages.is_not_null() & ~languages.is_in([*allowed]))
    return {"language": laid.mark(foreign), "_language": told.scatter(prose["n"], languages)}


def _prose(laid: Turns) -> pl.DataFrame:
    """n and text: the first words of the conversations with enough of them to tell a language."""
    return (
        laid.pieces.filter((pl.col("part") == 0) & (pl.col("role") == "assistant"))
        .select("n", text=pl.col("text").str.head(4 * _WINDOW))
        .with_columns(
            text=pl.when(pl.col("text").str.contains("[`<]"))
            .then(pl.col("text").str.replace_all(CODE, " "))
            .otherwise("text")
        )
        .group_by("n", maintain_order=True)
        .agg(pl.col("text").str.join("\n"))
        .with_columns(
            text=pl.col("text").str.replace_all(_NO_PROSE, " ").str.replace_all(r"\s+", " ").str.head(_WINDOW)
        )
        .with_columns(
            letters=pl.col("text").str.count_matches(r"\pL") + 3 * pl.col("text").str.count_matches(_WIDE_LETTERS)
        )
        .filter(pl.col("letters") >= _FEWEST)
    )


def _language(text: str, allowed: tuple[str, ...]) -> str | None:
    best = next(iter(_detector().compute_language_confidence_values(text)), None)
    if best is None or best.value < _SURE:
        return None
    code = _code(best.language)
    if code in allowed:
        return code
    exact = _between(frozenset({*allowed, code}))
    # One odd word can carry a text away, and a text can be of two languages: its halves have to agree.
    middle = text.find(" ", len(text) // 2)
    parts = (text, text[:middle], text[middle:]) if middle > 0 else (text,)
    told = [exact.compute_language_confidence_values(part)[0] for part in parts]
    sure = told[0].value >= _CERTAIN and not any(_code(one.language) in allowed for one in told)
    return code if sure else None


def _code(language: Any) -> str:
    return str(language.iso_code_639_1.name).lower()


@cache
def _codes() -> tuple[str, ...]:
    from lingua import Language

    return tuple(sorted(_code(one) for one in Language.all()))


@cache
def _detector() -> Any:
    from lingua import LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_all_languages().with_low_accuracy_mode().build()


@cache
def _between(codes: frozenset[str]) -> Any:
    from lingua import Language, LanguageDetectorBuilder

    return LanguageDetectorBuilder.from_languages(*(one for one in Language.all() if _code(one) in codes)).build()
