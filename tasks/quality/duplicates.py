"""Duplicates: which conversations say what another one, of a better-ranked source, says already.

Exact duplicates are found on an index frame, one row a conversation, best-ranked row first. The three
kinds of exact duplicate are told apart, since they call for different cures:

* `duplicate`: the same content, by row_id.
* `duplicate apart from whitespace`: the same prompt (as `prompt_key` normalises it) and the same turns
  when white space is left out.
* `same prompt, other answer`: everything the user asks is the same, and the answer is not. Such a pair
  teaches the model to hedge and makes held-out items dependent; which answer is right cannot be told
  here, so the best-ranked one is kept, unless the recipe keeps all. Conversations of another kind are
  no rivals: a prompt answered with thinking and without is how both modes are kept alive.
"""

from __future__ import annotations

from hashlib import blake2b

import polars as pl

DUPLICATE = "duplicate"
RESPACED = "duplicate apart from whitespace"
OTHER_ANSWER = "same prompt, other answer"
_FIELD, _TURN = "\x1f", "\x1e"
_SPACE = b" \t\n\r\v\f"


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
    """What conversations are compared by: `prompt`, `said` and `asked` (the last two are hashes of 32 hex characters).

    `rows` needs `kind`, `messages` (tasks.conversations MESSAGES) and `tools`.
    """
    turn = pl.element().struct
    calls = (
        turn.field("tool_calls")
        .list.eval(pl.concat_str(pl.element().struct.field("name"), pl.element().struct.field("arguments")))
        .list.join(_FIELD)
    )
    # What is asked is in the prompt's key already, where case and spacing do not count.
    answered = pl.when(turn.field("role").is_in(["system", "user"])).then(pl.lit("")).otherwise(turn.field("content"))
    parts = [turn.field("role"), *(part.fill_null("") for part in (answered, turn.field("thinking"), calls))]
    asked = turn.field("content").filter(turn.field("role") == "user").fill_null("").str.to_lowercase()
    texts = rows.select(
        "kind",
        prompt=prompt_key,
        said=pl.col("messages").list.eval(pl.concat_str(*parts, separator=_FIELD)).list.join(_TURN),
        asked=pl.col("messages").list.eval(asked).list.join(_TURN),
        tools=pl.col("tools").fill_null(""),
    )

    def hashed(*columns: str) -> pl.Series:
        joined = texts.select(pl.concat_str(*columns, separator=_TURN)).to_series().to_list()
        # Bytes without white space, since a regular expression over every text would cost more than all the rest.
        spaceless = (text.encode().translate(None, _SPACE) for text in joined)
        return pl.Series([blake2b(text, digest_size=16).hexdigest() for text in spaceless], dtype=pl.String)

    return texts.select(
        "prompt", said=hashed("prompt", "kind", "said", "tools"), asked=hashed("prompt", "kind", "asked")
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
