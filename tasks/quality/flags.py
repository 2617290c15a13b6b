"""All rules on a source: a boolean column a rule, true where the row breaks it.

Rows are looked at slice by slice (`row_flags`), so that memory is bounded; rules that compare a row
with its source are settled when all slices are in (`settle`). `flags` does both on one frame.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from tasks.quality.calls import call_flags
from tasks.quality.judgement import DEFAULT
from tasks.quality.language import language_flags
from tasks.quality.profile import traits
from tasks.quality.rules import RULES
from tasks.quality.sensitive import sensitive_flags
from tasks.quality.text import endings, text_flags
from tasks.quality.turns import Turns, order_flags, thinking_flags
from tasks.recipe import Quality

# A source has a habit when at least this share of the rows it concerns, and at least so many, show it.
ENDS_SENTENCES, ANSWERS_CALLS, HABIT_ROWS = 0.75, 0.9, 20
# A source that ends this share of its sentences leaves none open by choice. In one that ends fewer, what is open is
# taken to be cut off where at least CUT of it ends on a joint: text that is cut anywhere does, titles and notes do not.
ENDS_ALL, CUT = 0.9, 0.2


def flags(
    rows: pl.DataFrame,
    rendered: pl.DataFrame,
    *,
    special_tokens: Sequence[str],
    max_length: int,
    quality: Quality = DEFAULT,
) -> pl.DataFrame:
    """row_id and one Boolean column a rule, in the rows' order.

    `rows`: schema CONVERSATION. `rendered`: row by row the same conversations as `Renderer.render` gives
    them (row_id, problem, tokens, supervised_tokens). Lengths are in tokens. `quality` says which languages are
    allowed and which sensitive texts are looked for; a rule that it does not ask for is kept by every row. No cell
    is null.
    """
    return settle(row_flags(rows, rendered, special_tokens=special_tokens, max_length=max_length, quality=quality))


def row_flags(
    rows: pl.DataFrame,
    rendered: pl.DataFrame,
    *,
    special_tokens: Sequence[str],
    max_length: int,
    quality: Quality = DEFAULT,
) -> pl.DataFrame:
    """Flags of the rules that need no other row, how each row ends, and what its source's profile is made of.

    To be settled.
    """
    if not rows["row_id"].equals(rendered["row_id"]):
        raise ValueError("the rendered rows are not the rows, in their order")
    laid = Turns.of(rows)
    columns = {
        **order_flags(laid),
        **thinking_flags(laid),
        **call_flags(laid),
        **text_flags(laid, special_tokens),
        **sensitive_flags(laid, quality.sensitive),
        **language_flags(laid, quality.languages),
        "render_problem": rendered["problem"].is_not_null(),
        # A row that could not be rendered has no mask that could be empty.
        "empty_loss_mask": rendered["problem"].is_null() & (rendered["supervised_tokens"].fill_null(0) == 0),
        "over_length": rendered["tokens"].fill_null(0) > max_length,
        **{f"_{name}": column for name, column in endings(laid).items()},
        **traits(laid),
    }
    whole = {
        name: column.fill_null(False) if column.dtype == pl.Boolean else column for name, column in columns.items()
    }
    return pl.DataFrame({"row_id": rows["row_id"], **whole})


def settle(found: pl.DataFrame) -> pl.DataFrame:
    """The flags of a whole source, from the row flags of all its slices in order."""
    spoken = pl.col("_open") | pl.col("_closed")
    closes, all_open, answers_calls = found.select(
        _habit(pl.col("_closed"), spoken, ENDS_SENTENCES),
        all_open=_habit(pl.col("_closed"), spoken, ENDS_ALL) | (pl.col("_joint").sum() >= CUT * pl.col("_open").sum()),
        on_call=_habit(~pl.col("_on_call"), pl.col("_calls"), ANSWERS_CALLS),
    ).row(0)
    settled = found.with_columns(
        truncated_ending=(pl.col("_open") if all_open else pl.col("_joint")) & closes,
        unanswered_final_call=pl.col("_on_call") & answers_calls,
        exact_duplicate=~pl.col("row_id").is_first_distinct(),
    )
    return settled.select("row_id", *(rule.name for rule in RULES))


def _habit(shown: pl.Expr, among: pl.Expr, share: float) -> pl.Expr:
    """Whether a source has a habit: enough of the rows it concerns, and at least this share of them, show it."""
    return (among.sum() >= HABIT_ROWS) & ((shown & among).sum() >= share * among.sum())
