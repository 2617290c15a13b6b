"""Rules on the order of turns, on empty turns and on thinking: regular expressions over turns as rows.

`Turns` lays a frame of conversations out flat, once: a row a turn and a row a call, each with `n`, the
position of its conversation. A rule is then one expression over columns, whatever the nesting.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import polars as pl

# One letter a role; an unknown role becomes ? and so breaks the order.
LETTERS = {"system": "S", "user": "U", "assistant": "A", "tool": "T"}
# What may follow what; a conversation that ends too early is the business of ends_on_assistant.
ORDER = r"^S?U(A(T+A)*U)*(A(T+A)*T*)?$"
TAG = r"</?think>"


@dataclass(frozen=True)
class Turns:
    """Conversations laid flat.

    `rows`: n, kind, tools, letters (of its turns' roles); `turns`: n, turn, role, letter, content, thinking, thought
    (whether there is any), calls (how many), and whether it is the first or the last one; `calls`: n, turn, role, name,
    arguments.
    """

    rows: pl.DataFrame
    turns: pl.DataFrame
    calls: pl.DataFrame

    @classmethod
    def of(cls, conversations: pl.DataFrame) -> Turns:
        """Lay conversations (schema CONVERSATION) flat; their order gives `n`."""
        rows = conversations.select("kind", "tools", "messages").with_row_index("n")
        letter = pl.element().struct.field("role").replace_strict(LETTERS, default="?", return_dtype=pl.String)
        letters = pl.col("messages").list.eval(letter.fill_null("?")).list.join("").fill_null("")
        turns = (
            rows.select("n", "messages")
            .explode("messages", empty_as_null=False, keep_nulls=False)
            .unnest("messages")
            .with_columns(
                turn=pl.int_range(pl.len(), dtype=pl.UInt32),
                letter=pl.col("role").replace_strict(LETTERS, default="?", return_dtype=pl.String).fill_null("?"),
                calls=pl.col("tool_calls").list.len().fill_null(0),
                content=pl.col("content").fill_null(""),
                thought=~blank("thinking"),
                first=(pl.col("n") != pl.col("n").shift(1)).fill_null(True),
                last=(pl.col("n") != pl.col("n").shift(-1)).fill_null(True),
            )
        )
        calls = (
            turns.filter(pl.col("calls") > 0)
            .select("n", "turn", "role", "tool_calls")
            .explode("tool_calls", empty_as_null=False, keep_nulls=False)
            .unnest("tool_calls")
        )
        return cls(rows.select("n", "kind", "tools", letters=letters), turns, calls)

    @cached_property
    def pieces(self) -> pl.DataFrame:
        """Every text that is not empty: n, turn, role, part (0 content, 1 thinking, 2 a call's arguments), text."""
        parts = [
            self.turns.select("n", "turn", "role", part=pl.lit(0, pl.UInt8), text="content"),
            self.turns.select("n", "turn", "role", part=pl.lit(1, pl.UInt8), text="thinking"),
            self.calls.select("n", "turn", "role", part=pl.lit(2, pl.UInt8), text="arguments"),
        ]
        return pl.concat(parts).filter(pl.col("text") != "")

    @cached_property
    def angled(self) -> pl.DataFrame:
        """The pieces with a `<`: all that tags, most special tokens and many placeholders can be in."""
        return self.pieces.filter(pl.col("text").str.contains("<", literal=True))

    def where(self, condition: pl.Expr, among: pl.DataFrame | None = None) -> pl.Series:
        """Which conversations have a turn (or a row of `among`, by its `n`) that meets the condition; null is no."""
        hits = (self.turns if among is None else among).filter(condition)["n"].unique()
        return self.mark(hits)

    def mark(self, hits: pl.Series) -> pl.Series:
        """A boolean a conversation, true at the positions given."""
        marks = pl.repeat(False, self.rows.height, dtype=pl.Boolean, eager=True)
        return marks.scatter(hits, True) if len(hits) else marks


def blank(column: str) -> pl.Expr:
    """Whether a text is null, empty or white space only (U+3000 and U+00A0 included)."""
    return pl.col(column).is_null() | ~pl.col(column).str.contains(r"\S")


def order_flags(laid: Turns) -> dict[str, pl.Series]:
    """Flags of the rules that look at turns."""
    letters = laid.rows["letters"]
    role = pl.col("role")
    return {
        "turn_order": ~letters.str.contains(ORDER),
        "ends_on_assistant": ~letters.str.ends_with("A"),
        "empty_answer": laid.where((role == "assistant") & (pl.col("calls") == 0) & blank("content")),
        "empty_question": laid.where((role == "user") & blank("content")),
    }


def thinking_flags(laid: Turns) -> dict[str, pl.Series]:
    """Flags of the rules that look at thinking.

    A well-formed block has been moved into `thinking` when the row was converted, so that every tag
    still in the text is a malformed one.
    """
    with_tags = laid.angled.filter((pl.col("part") < 2) & pl.col("text").str.contains(TAG))["turn"].unique()
    tagged = laid.turns.filter(pl.col("turn").is_in(with_tags.implode())).with_columns(
        opened=pl.col("content").str.count_matches("<think>"),
        closed=pl.col("content").str.count_matches("</think>"),
        tags=pl.col("content").str.extract_all(TAG).list.join(""),
    )
    role, opened, closed, tags = pl.col("role"), pl.col("opened"), pl.col("closed"), pl.col("tags")
    assistant = role == "assistant"
    nested = tags.str.contains("<think><think>", literal=True) & (closed > 0)
    thought = pl.col("thought")
    kind = laid.rows["kind"]
    answers = laid.turns.filter(assistant)
    last_answers = answers.filter((pl.col("n") != pl.col("n").shift(-1)).fill_null(True))
    return {
        "think_unclosed": laid.where(assistant & (opened > closed), tagged),
        "think_unopened": laid.where(assistant & (closed > opened), tagged),
        "think_nested": laid.where(
            assistant & (nested | pl.col("thinking").str.contains(TAG).fill_null(False)), tagged
        ),
        "think_repeated": laid.where(assistant & (opened > 0) & (opened == closed) & ~nested, tagged),
        "think_outside_assistant": laid.where(~assistant, tagged) | laid.where(~assistant & thought),
        "thinking_forbidden": (kind == "chat") & laid.where(assistant & thought),
        "thinking_missing": (kind == "reasoning") & ~laid.where(thought, last_answers),
    }
