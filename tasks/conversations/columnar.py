"""The plain rows of a format, read as columns: many times faster than one by one.

A row is plain where these expressions give what the format's row reader gives, which is the definition; whatever
is not text in its usual place (typed parts, calls, unknown roles, missing fields) is left to the reader.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from tasks.conversations.answer import THINK, THINK_END
from tasks.conversations.canonical import Unconvertible, canonical_tools
from tasks.conversations.plain_formats import NO_SOLUTION
from tasks.conversations.schema import MESSAGES
from tasks.conversations.turns import CALL, MARK, NOT_LEARNT, ROLES

# What Python's str.strip takes off; Polars' own notion of white space lacks four control characters of it.
_WHITE = "".join(character for character in map(chr, range(0x3001)) if character.isspace())
_CALLS = pl.List(pl.Struct({"name": pl.String, "arguments": pl.String}))
_PARTS = '[{"'  # how JSON text of typed parts begins
_THOUGHTS = ("reasoning_content", "reasoning", "thinking")


class Plain(NamedTuple):
    """`which`: whether each row of a table is plain; `rows`: source_row, messages and tools of those that are."""

    which: pl.Series
    rows: pl.DataFrame


class _Pairs(NamedTuple):
    """A question and its answer as expressions; `fits`: rows that they hold for."""

    question: pl.Expr
    answer: pl.Expr
    fits: pl.Expr
    thinking: pl.Expr | None = None
    system: str | None = "system"


def _stripped(text: pl.Expr) -> pl.Expr:
    return text.str.strip_chars(_WHITE)


def _or_null(text: pl.Expr) -> pl.Expr:
    return pl.when(text != "").then(text)


def _is_text(name: str) -> pl.Expr:
    return pl.col(name).is_not_null() & ~pl.col(name).str.starts_with(_PARTS) & ~_marked(pl.col(name))


def _marked(text: pl.Expr) -> pl.Expr:
    return text.str.contains(MARK, literal=True)


def _said(text: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """Content and thinking of an assistant's text, as `turns.assistant` finds them."""
    text = _stripped(text)
    thinks = text.str.starts_with(THINK) & text.str.contains(THINK_END, literal=True)
    halves = text.str.strip_prefix(THINK).str.splitn(THINK_END, 2)
    content = pl.when(thinks).then(_stripped(halves.struct.field("field_1"))).otherwise(text)
    return content, pl.when(thinks).then(_or_null(_stripped(halves.struct.field("field_0"))))


def alpaca(table: pl.DataFrame) -> _Pairs:
    asked = [pl.col(name) for name in ("instruction", "input") if table.schema.get(name) == pl.String]
    parts = [pl.when(_stripped(text) != "").then(text) for text in asked]
    begins = [text.str.starts_with(_PARTS).fill_null(False) for text in asked]
    content, thinking = _said(pl.col("output"))
    return _Pairs(
        pl.concat_str(parts, separator="\n\n", ignore_nulls=True),
        content,
        _is_text("output")
        & ~pl.any_horizontal(begins)
        & _is_empty(table, "history")
        & (pl.lit(len(asked) == 2) | _is_empty(table, "input")),
        thinking,
    )


def alpaca_system(table: pl.DataFrame) -> _Pairs:
    content, thinking = _said(pl.col("output"))
    fits = _is_text("output") & _is_text("input") & _is_empty(table, "history")
    return _Pairs(pl.col("input"), content, fits, thinking, "instruction")


def pairs(question: str, answer: str, table: pl.DataFrame) -> _Pairs:
    content, thinking = _said(pl.col(answer))
    return _Pairs(pl.col(question), content, _is_text(question) & _is_text(answer), thinking)


def worked_out(table: pl.DataFrame) -> _Pairs:
    plain = pairs("problem", "generated_solution", table)
    solution = pl.col("generated_solution")
    lacking = _stripped(solution).str.to_lowercase().is_in(NO_SOLUTION)
    return plain._replace(fits=plain.fits & ~lacking & ~solution.str.contains(CALL, literal=True))


def asked(table: pl.DataFrame) -> _Pairs:
    plain = pairs("question", "answer", table)
    fits = plain.fits & _is_empty(table, "history")
    if table.schema.get("thinking") != pl.String:
        return plain._replace(fits=fits & _is_empty(table, "thinking"))
    given = _or_null(_stripped(pl.col("thinking")))
    # Space alone is a thought to the row reader, which then looks for no other in the answer.
    blank = (pl.col("thinking") != "") & given.is_null()
    return plain._replace(
        answer=pl.when(given.is_null()).then(plain.answer).otherwise(_stripped(pl.col("answer"))),
        thinking=pl.coalesce(given, plain.thinking),
        fits=fits & ~(blank | pl.col("thinking").str.starts_with(_PARTS)).fill_null(False),
    )


def solved(shown: bool, table: pl.DataFrame) -> _Pairs:
    """GSM8K's answers; `shown`: the solution is text, not thinking."""
    split = pl.col("answer").str.extract_groups(r"(?s)\A(.*)####(.*)\z").struct
    solution = _stripped(split.field("1").str.replace_all(r"<<[^<>]*>>", ""))
    answer = _stripped(split.field("2"))
    # Tags in a solution are the row reader's to make sense of.
    fits = _is_text("question") & _is_text("answer") & (answer != "") & ~pl.col("answer").str.contains(THINK)
    if shown:
        return _Pairs(pl.col("question"), _stripped(pl.concat_str(solution, pl.lit("\n\nAnswer: "), answer)), fits)
    return _Pairs(pl.col("question"), answer, fits, _or_null(solution))


def of_pairs(make: Callable[[pl.DataFrame], _Pairs], needs: Sequence[str], table: pl.DataFrame) -> Plain | None:
    """Plain rows of a format of text columns; None for a table whose columns hold something else."""
    if any(table.schema[name] != pl.String for name in needs):
        return None
    made = make(table)
    system = made.system if made.system in table.columns else None
    if system and table.schema[system] not in (pl.String, pl.Null):
        return None
    prompt = pl.col(system).cast(pl.String) if system else pl.lit(None, pl.String)
    read = table.select(
        "source_row",
        question=made.question,
        answer=made.answer,
        thinking=made.thinking if made.thinking is not None else pl.lit(None, pl.String),
        system=pl.when(_stripped(prompt) != "").then(prompt),
        fits=made.fits.fill_null(False) & ~prompt.str.starts_with(_PARTS).fill_null(False),
    )
    which = read["fits"]
    read = read.filter(which)
    height = read.height
    flat = pl.DataFrame(
        {
            "role": pl.concat([pl.repeat(role, height, eager=True) for role in ("system", "user", "assistant")]),
            "content": pl.concat([read["system"], read["question"], read["answer"]]),
            "thinking": pl.concat([pl.repeat(None, 2 * height, dtype=pl.String, eager=True), read["thinking"]]),
        }
    )
    with_system = read["system"].is_not_null().to_numpy()
    order = (np.arange(height)[:, None] + np.array([0, height, 2 * height]))[
        np.stack([with_system, *[np.ones(height, bool)] * 2], axis=1)
    ]
    messages = _lists(flat[order], with_system + 2)
    return Plain(which, _rows(read["source_row"], messages, None))


def _lists(flat: pl.DataFrame, lengths: np.ndarray) -> pl.Series:
    """Messages of all rows, one under the other, as lists of `lengths`."""
    calls, call_id = pl.lit(None, _CALLS).alias("tool_calls"), pl.lit(None, pl.String).alias("tool_call_id")
    structs = flat.select(pl.struct("role", "content", "thinking", calls, call_id)).to_series()
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    lists = pa.LargeListArray.from_arrays(pa.array(offsets), structs.to_arrow(compat_level=pl.CompatLevel.newest()))
    return pl.Series("messages", pl.from_arrow(lists))


def of_messages(column: str, role: str, content: str, tool_columns: Sequence[str], table: pl.DataFrame) -> Plain | None:
    """Plain rows of a format whose column is a list of messages; None for a table that keeps them in another way."""
    dtype = table.schema[column]
    if not (isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct)):
        return None
    fields = {field.name: field.dtype for field in dtype.inner.fields}
    if fields.get(role) != pl.String or fields.get(content) != pl.String:
        return None
    element = pl.element().struct
    ours, text = element.field(role).replace_strict(ROLES, default=None), element.field(content)
    thoughts = [name for name in _THOUGHTS if role == "role" and name in fields]
    if any(fields[name] not in (pl.String, pl.Null) for name in thoughts):
        return None
    fits = ours.is_in(["system", "user", "assistant", "tool"])
    fits &= ~(text.str.starts_with(_PARTS) | _marked(text)).fill_null(False)
    for name in NOT_LEARNT:
        if fields.get(name, pl.Null()) != pl.Null:
            fits &= _is_learnt(element.field(name), fields[name])
    for name in ("tool_calls", "function_call") if role == "role" else ():
        if name in fields:
            fits &= _no_calls(element.field(name), fields[name])
    text = text.fill_null("")
    is_assistant = ours == "assistant"
    inside, thinking = _said(text)
    if thoughts:
        given = pl.coalesce(_or_null(element.field(name).cast(pl.String)) for name in thoughts)
        fits &= ~((_stripped(given) == "") | given.str.starts_with(_PARTS)).fill_null(False)
        inside = pl.when(given.is_null()).then(inside).otherwise(_stripped(text))
        thinking = pl.when(given.is_null()).then(thinking).otherwise(_stripped(given))
    call_id = element.field("tool_call_id") if role == "role" and fields.get("tool_call_id") == pl.String else None
    message = pl.struct(
        role=ours,
        content=pl.when(is_assistant).then(inside).otherwise(text),
        thinking=pl.when(is_assistant).then(thinking),
        tool_calls=pl.lit(None, _CALLS),
        tool_call_id=pl.lit(None, pl.String) if call_id is None else pl.when(ours == "tool").then(call_id),
    )
    tools, declared = _tools(table, tool_columns)
    whole = pl.col(column)
    read = table.select(
        "source_row",
        messages=whole.list.eval(message),
        fits=(whole.list.len() > 0) & whole.list.eval(fits.fill_null(False)).list.all() & _is_empty(table, "system"),
    )
    which = read["fits"].fill_null(False) & declared
    read = read.filter(which)
    return Plain(which, _rows(read["source_row"], read["messages"], tools.filter(which)))


def _is_learnt(said: pl.Expr, dtype: Any) -> pl.Expr:
    return (said != 0).fill_null(True) if dtype.is_numeric() or dtype == pl.Boolean else said.is_null()


def _no_calls(calls: pl.Expr, dtype: object) -> pl.Expr:
    if isinstance(dtype, pl.List):
        return calls.is_null() | (calls.list.len() == 0)
    return calls.is_null() | calls.is_in(["", "[]"]) if dtype == pl.String else calls.is_null()


def _is_empty(table: pl.DataFrame, name: str) -> pl.Expr:
    """Whether a column that may be absent holds nothing."""
    dtype = table.schema.get(name, pl.Null())
    if isinstance(dtype, pl.List):
        return pl.col(name).is_null() | (pl.col(name).list.len() == 0)
    if dtype == pl.String:
        return pl.col(name).is_null() | (_stripped(pl.col(name)) == "")
    return pl.lit(dtype == pl.Null) if name not in table.columns else pl.col(name).is_null()


def _tools(table: pl.DataFrame, columns: Sequence[str]) -> tuple[pl.Series, pl.Series]:
    """Declared tools of the first of the columns that has some, and whether they could be read."""
    given = [name for name in columns if name in table.columns and table.schema[name] != pl.Null]
    if not given:
        return pl.repeat(None, table.height, dtype=pl.String, eager=True), pl.repeat(True, table.height, eager=True)
    if any(table.schema[name] != pl.String for name in given):
        empty = table.select(pl.all_horizontal(_is_empty(table, name) for name in given)).to_series()
        return pl.repeat(None, table.height, dtype=pl.String, eager=True), empty
    texts = table.select(pl.coalesce(_or_null(pl.col(name)) for name in given).alias("tools")).to_series()
    known: dict[str, str | None] = {}
    for text in texts.unique().drop_nulls():
        try:
            known[text] = canonical_tools(text)
        except Unconvertible:
            continue
    if not known:
        return pl.repeat(None, table.height, dtype=pl.String, eager=True), texts.is_null()
    names = pl.Series(list(known), dtype=pl.String)
    return (
        texts.replace_strict(names, pl.Series(list(known.values()), dtype=pl.String), default=None),
        texts.is_null() | texts.is_in(names.implode()),
    )


def _rows(source_row: pl.Series, messages: pl.Series, tools: pl.Series | None) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "source_row": source_row,
            "messages": messages.cast(MESSAGES),
            "tools": pl.repeat(None, len(messages), dtype=pl.String, eager=True) if tools is None else tools,
        }
    )


READERS: dict[str, Callable[[pl.DataFrame], Plain | None]] = {
    "alpaca": partial(of_pairs, alpaca, ("instruction", "output")),
    "alpaca_system": partial(of_pairs, alpaca_system, ("instruction", "input", "output")),
    "prompt_completion": partial(of_pairs, partial(pairs, "prompt", "completion"), ("prompt", "completion")),
    "question_answer": partial(of_pairs, asked, ("question", "answer")),
    "open_math_reasoning": partial(of_pairs, worked_out, ("problem", "generated_solution")),
    "gsm8k": partial(of_pairs, partial(solved, False), ("question", "answer")),
    "gsm8k_direct": partial(of_pairs, partial(solved, True), ("question", "answer")),
    "openai": partial(of_messages, "messages", "role", "content", ("tools", "functions")),
    "sharegpt": partial(of_messages, "conversations", "from", "value", ("tools",)),
}
