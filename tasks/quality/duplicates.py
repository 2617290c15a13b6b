"""Duplicates: which conversations say what another one, of a better-ranked source, says already.

Exact duplicates are found on an index frame, one row a conversation, best-ranked row first. The three
kinds of exact duplicate are told apart, since they call for different cures:

* `duplicate`: the same content, by row_id.
* `duplicate apart from whitespace`: the same prompt (as `normal` has it) and the same turns when white space
  is left out.
* `same prompt, other answer`: everything that system and user say is the same, and so are the tools, and the
  answer is not. Such a pair teaches the model to hedge and makes held-out items dependent; which answer is
  right cannot be told here, so the best-ranked one is kept, unless the recipe keeps all. Conversations of
  another kind are no rivals: a prompt answered with thinking and without is how both modes are kept alive.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable
from hashlib import blake2b

import numpy as np
import polars as pl

DUPLICATE = "duplicate"
RESPACED = "duplicate apart from whitespace"
OTHER_ANSWER = "same prompt, other answer"
_FIELD, _TURN = "\x1f", "\x1e"
_SPACE = b" \t\n\r\v\f"


def _parts() -> tuple[pl.Expr, pl.Expr]:
    """What a turn holds beside its content: thinking, and calls with their arguments."""
    turn = pl.element().struct
    call = pl.element().struct
    calls = turn.field("tool_calls").list.eval(
        pl.concat_str(call.field("name"), call.field("arguments"), separator=" ")
    )
    return turn.field("thinking").fill_null(""), calls.list.join(" ").fill_null("")


def said(rows: pl.DataFrame) -> pl.Series:
    """What each conversation holds, for measures of overlap: a list of its turns but for the system's, each of them
    (text: string, user: whether the user says it). A conversation without any has one that is empty."""
    turn = pl.element().struct
    thinking, calls = _parts()
    text = pl.concat_str(thinking, turn.field("content").fill_null(""), calls, separator=" ")
    turns = pl.struct(text=text, user=turn.field("role") == "user").filter(turn.field("role") != "system")
    nothing = pl.lit([{"text": "", "user": False}], pl.List(pl.Struct({"text": pl.String, "user": pl.Boolean})))
    listed = rows.select(turns=pl.col("messages").list.eval(turns))
    return listed.select(pl.when(pl.col("turns").list.len() > 0).then("turns").otherwise(nothing)).to_series()


def normal(text: str) -> bytes:
    """A prompt as it is compared: case-folded, in Unicode's form NFC, without white space, as UTF-8."""
    folded = text.casefold()
    if not folded.isascii():
        folded = "".join(unicodedata.normalize("NFC", folded).split())
    return folded.encode().translate(None, _SPACE)


def normals(texts: list[str]) -> list[bytes]:
    """Prompts as they are compared (see `normal`). Those of plain ASCII are worked on as one text: a quarter of the
    time."""
    whole = "\0".join(texts)
    if whole.isascii() and whole.count("\0") == len(texts) - 1:
        return whole.lower().encode().translate(None, _SPACE).split(b"\0")
    plain = [text for text in texts if text.isascii() and "\0" not in text]
    if len(plain) in (0, len(texts)):
        return [normal(text) for text in texts]
    told = iter(normals(plain))
    return [next(told) if text.isascii() and "\0" not in text else normal(text) for text in texts]


def hashes(texts: Iterable[bytes], salt: bytes = b"") -> np.ndarray:
    """BLAKE2b of each text under a salt of up to 16 bytes, as u64; the same on every machine."""
    raw, begun = [], blake2b(digest_size=8, salt=salt).copy
    for text in texts:
        one = begun()
        one.update(text)
        raw.append(one.digest())
    return np.frombuffer(b"".join(raw), ">u8").astype(np.uint64)


def fingerprints(rows: pl.DataFrame) -> pl.DataFrame:
    """What prompts are compared by, as hashes (u64): `question` and `asked`.

    `question`: see `questions`. `asked` adds the system's turns, tools and kind. `rows` needs `kind`, `messages`
    (tasks.conversations MESSAGES) and `tools`.
    """
    question = questions(rows)
    system = _repeated_hashes(_said_by("system", rows), normals)
    tools, kind = (_repeated_hashes(rows[name].fill_null(""), _encoded) for name in ("tools", "kind"))
    return pl.DataFrame({"question": question, "asked": _combined(question, system, tools, kind)})


def questions(rows: pl.DataFrame) -> np.ndarray:
    """BLAKE2b (u64), with the salt "split", of what the user says as `normal` has it (of a conversation in which no
    user speaks: of the system's turns and the others): the same on every machine."""
    asking = normals(_said_by("user", rows).to_list())
    if silent := [at for at, text in enumerate(asking) if not text]:
        others = rows[silent]
        system = normals(_said_by("system", others).to_list())
        for at, prompt, text in zip(silent, system, _answers(others), strict=True):
            asking[at] = prompt + text
    return hashes(asking, b"split")


def _said_by(role: str, rows: pl.DataFrame) -> pl.Series:
    turn = pl.element().struct
    content = turn.field("content").fill_null("").filter(turn.field("role") == role)
    return rows.select(pl.col("messages").list.eval(content).list.join(" ")).to_series()


def answers(rows: pl.DataFrame) -> pl.Series:
    """A hash (u64) of all that is said to a prompt, white space left out."""
    return pl.Series("answer", hashes(_answers(rows)))


def _answers(rows: pl.DataFrame) -> list[bytes]:
    turn = pl.element().struct
    thinking, calls = _parts()
    # What system and user say is in the prompt already, where case and spacing do not count.
    prompting = turn.field("role").is_in(["system", "user"])
    content = pl.when(prompting).then(pl.lit("")).otherwise(turn.field("content").fill_null(""))
    turns = pl.concat_str(turn.field("role"), content, thinking, calls, separator=_FIELD)
    texts = rows.select(pl.col("messages").list.eval(turns).list.join(_TURN)).to_series()
    return [text.encode().translate(None, _SPACE) for text in texts.to_list()]


def _repeated_hashes(texts: pl.Series, written: Callable[[list[str]], list[bytes]]) -> np.ndarray:
    """The hashes of texts, of which many are the same, as they are `written`."""
    distinct = texts.unique()
    known = pl.Series(hashes(written(distinct.to_list())), dtype=pl.UInt64)
    return texts.replace_strict(distinct, known).to_numpy()


def _encoded(texts: list[str]) -> list[bytes]:
    return [text.encode() for text in texts]


def _combined(*hashes: np.ndarray) -> np.ndarray:
    """One hash (u64) of several, in which their order counts."""
    whole = np.zeros(len(hashes[0]), np.uint64)
    for one in hashes:
        whole = (whole ^ one) * np.uint64(0x9E3779B97F4A7C15)
        whole ^= whole >> np.uint64(32)
    return whole


def exact_duplicates(index: pl.DataFrame, *, keep_other_answers: bool = False) -> pl.DataFrame:
    """The rows of an index to set aside, as (`row`, `twin`: u32 positions in the index, `reason`).

    `index` needs row_id, `asked` and `answer` (which may be null where no other row has the same `asked`), best-ranked
    row first: the first of each group of twins stays. A row that several reasons fit is set aside under the first of
    them, and its twin is always a row that stays.
    """
    left = index.select("row_id", "asked", "answer").with_row_index("row")
    found = []
    for reason, *key in ((DUPLICATE, "row_id"), (RESPACED, "asked", "answer"), (OTHER_ANSWER, "asked")):
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
