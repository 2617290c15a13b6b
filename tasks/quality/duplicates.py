"""Duplicates: which conversations say what another one, of a better-ranked source, says already.

Exact duplicates are found on an index frame, one row a conversation, best-ranked row first. The three
kinds of exact duplicate are told apart, since they call for different cures:

* `duplicate`: the same content, by row_id.
* `duplicate apart from whitespace`: the same prompt (as `prompt_key` normalises it) and the same turns
  once whitespace is collapsed.
* `same prompt, other answer`: everything the user asks is the same, and the answer is not. Such a pair
  teaches the model to hedge and makes held-out items dependent; which answer is right cannot be told
  here, so the best-ranked one is kept, unless the recipe keeps all. Conversations of another kind are
  no rivals: a prompt answered with thinking and without is how both modes are kept alive.
"""

from __future__ import annotations

import polars as pl

DUPLICATE = "duplicate"
RESPACED = "duplicate apart from whitespace"
OTHER_ANSWER = "same prompt, other answer"
_FIELD, _TURN = "\x1f", "\x1e"


def said(rows: pl.DataFrame) -> pl.DataFrame:
    """What a conversation holds, for measures of overlap: `all` (string: everything but the system's turns) and
    `turns` (list of string: what the user says, turn by turn)."""
    turn = pl.element().struct
    calls = turn.field("tool_calls").list.eval(
        pl.concat_str(pl.element().struct.field("name"), pl.element().struct.field("arguments"), separator=" ")
    )
    parts = [turn.field("thinking"), turn.field("content"), calls.list.join(" ")]
    whole = pl.concat_str(*(part.fill_null("") for part in parts), separator=" ")
    return rows.select(
        all=pl.col("messages").list.eval(whole.filter(turn.field("role") != "system")).list.join(" "),
        turns=pl.col("messages").list.eval(turn.field("content").filter(turn.field("role") == "user").fill_null("")),
    )


def fingerprints(rows: pl.DataFrame, prompt_key: pl.Series) -> pl.DataFrame:
    """What conversations are compared by: `prompt` (string), `said` and `asked` (128-bit, as structs of two u64).

    `rows` needs `kind`, `messages` (tasks.conversations MESSAGES) and `tools`. The two hashes serve to compare
    rows within one process; they are not the same for every version of Polars and must not be stored.
    """
    turn = pl.element().struct
    calls = (
        turn.field("tool_calls")
        .list.eval(pl.concat_str(pl.element().struct.field("name"), pl.element().struct.field("arguments")))
        .list.join(_FIELD)
    )
    texts = rows.select(
        "kind",
        prompt=prompt_key,
        said=pl.col("messages")
        .list.eval(
            pl.concat_str(
                turn.field("role"),
                # What is asked is in the prompt's key already, where case and spacing do not count.
                pl.when(turn.field("role").is_in(["system", "user"]))
                .then(pl.lit(""))
                .otherwise(turn.field("content").fill_null("").str.strip_chars()),
                turn.field("thinking").fill_null("").str.strip_chars(),
                calls.fill_null(""),
                separator=_FIELD,
            )
        )
        .list.join(_TURN)
        .str.replace_all(r"\s+", " "),
        asked=pl.col("messages")
        .list.eval(turn.field("content").filter(turn.field("role") == "user").fill_null(""))
        .list.join(_TURN)
        .str.to_lowercase()
        .str.replace_all(r"\s+", " "),
        tools=pl.col("tools").fill_null(""),
    )

    def fingerprint(*columns: str) -> pl.Expr:
        joined = pl.struct(*columns)
        return pl.struct(joined.hash(1).alias("a"), joined.hash(2).alias("b"))

    return texts.select(
        "prompt",
        said=fingerprint("prompt", "kind", "said", "tools"),
        asked=fingerprint("prompt", "kind", "asked"),
    )


def exact_duplicates(index: pl.DataFrame, *, keep_other_answers: bool = False) -> pl.DataFrame:
    """The rows of an index to set aside, as (`row`, `twin`: u32 positions in the index, `reason`).

    `index` needs row_id and the columns of `fingerprints`, best-ranked row first: the first of each
    group of twins stays. A row that several reasons fit is set aside under the first of them, and its
    twin is always a row that stays.
    """
    left = index.select("row_id", "said", "asked").with_row_index("row")
    found = []
    for reason, key in ((DUPLICATE, "row_id"), (RESPACED, "said"), (OTHER_ANSWER, "asked")):
        if reason == OTHER_ANSWER and keep_other_answers:
            continue
        twins = left.select("row", twin=pl.col("row").first().over(key)).filter(pl.col("row") != pl.col("twin"))
        found.append(twins.with_columns(reason=pl.lit(reason)))
        left = left.join(twins, on="row", how="anti", maintain_order="left")
    removed = pl.concat(found)
    return _follow(removed).sort("row")


def _follow(removed: pl.DataFrame) -> pl.DataFrame:
    """Replace a twin that a later reason removed by that row's own twin; each pass climbs one reason."""
    higher = removed.select(twin="row", higher="twin")
    for _ in range(3):
        removed = removed.join(higher, on="twin", how="left", maintain_order="left").select(
            "row", pl.coalesce("higher", "twin").alias("twin"), "reason"
        )
    return removed
