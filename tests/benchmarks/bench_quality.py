"""What the data gate costs: rows per CPU-second with the default rules, of each detector beside them, and GX's share.

    python tests/benchmarks/bench_quality.py [ROWS]

ROWS (default 20,000) chat conversations of about 300 tokens, in memory; not run by pytest. Great Expectations is
measured on the flags of 300,000 rows: those of ROWS, over and over. Numbers of one machine mean little: read the
ratios.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.conversations import CONVERSATION, convert
from tasks.quality import Found, applied, decide, reasons, row_flags, settle
from tasks.quality.language import language_flags
from tasks.quality.sensitive import sensitive_flags
from tasks.quality.turns import Turns
from tasks.recipe import Quality, Sensitive

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *(f"<|reserved_{n}|>" for n in range(17))]
WORDS = """
the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you
were all her she there would their we him been has when who will no more if out so said what up its about into than them
can only other time new some could these two may first then do any like my now over such our man me
"""
GATED = 300_000
NOTHING = Sensitive(secret=None, email_address=None)


def conversations(rows: int) -> pl.DataFrame:
    """Prose of common English words, with a line of code, a number or an address now and then."""
    draw = np.random.Generator(np.random.PCG64(0))
    words = WORDS.split()
    asides = ["call me on 555 2368", "jo@acme-corp.com", "`x[0] = 1`", "at 12:30, room 4021", "see [1]", "a < b & c"]
    made = []
    for number in range(rows):
        drawn = [words[n] for n in draw.integers(len(words), size=int(draw.integers(100, 360)))]
        drawn.insert(60, asides[number % len(asides)] if number % 4 == 0 else "and")
        answer = ". ".join(" ".join(drawn[n : n + 14]).capitalize() for n in range(40, len(drawn), 14)) + "."
        made.append(
            [
                {"role": "user", "content": " ".join(drawn[:40]) + f" {number}?"},
                {"role": "assistant", "content": answer},
            ]
        )
    ids = [hashlib.sha256(str(number).encode()).hexdigest()[:32] for number in range(rows)]
    given = {"row_id": ids, "source": "s", "revision": "r", "source_row": range(rows), "kind": "chat", "messages": made}
    return pl.DataFrame({**given, "tools": None}, schema=CONVERSATION)


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of one pass, the best of three."""
    taken = []
    for _ in range(3):
        start = time.process_time()
        work()
        taken.append(time.process_time() - start)
    return min(taken)


def gx_seconds(found: pl.DataFrame) -> float:
    """CPU seconds of deciding on the flags of GATED rows and writing the pages about it."""
    rules = applied()
    flags = pl.concat([found] * -(-GATED // found.height)).head(GATED)
    kept = reasons(flags, rules).list.len() == 0
    counts = {rule.name: int(flags[rule.name].sum()) for rule in rules}
    rows = pl.select(source_row=pl.int_range(GATED), unconvertible=pl.repeat(False, GATED), set_aside=~kept)
    counts |= {"unconvertible": 0, "set_aside": int((~kept).sum())}
    whole = Found(rows, flags.with_columns(turns=pl.lit(2), kept=kept), counts)
    with tempfile.TemporaryDirectory() as folder:
        asked: Any = (whole, rules, Quality(), Path(folder, "pages"), Path(folder, "history"))
        decide("warm", *asked)  # imports and the project folder, which a home has once
        return seconds(lambda: decide("bench", *asked))


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 20_000
    rows = conversations(count)
    lengths = pl.Series([300] * rows.height, dtype=pl.Int32)
    rendered = rows.select("row_id", problem=pl.lit(None, pl.String)).with_columns(
        tokens=lengths, supervised_tokens=lengths
    )
    settings: dict[str, Any] = {"special_tokens": SPECIAL, "max_length": 4096}
    for name, quality in (("no detector", Quality(sensitive=NOTHING)), ("default rules", Quality())):
        taken = seconds(lambda quality=quality: row_flags(rows, rendered, **settings, quality=quality))
        print(f"{name:16} {count / taken:12,.0f} rows per CPU-second")
    raw = rows.select("source_row", "messages")
    converting = seconds(lambda: convert(raw, source="s", revision="r", kind="chat", format="openai"))
    print(f"{'conversion':16} {count / converting:12,.0f}")
    gx = gx_seconds(settle(row_flags(rows, rendered, **settings)))
    before = GATED * (taken + converting) / count
    print(f"{'GX':16} {GATED / gx:12,.0f}, {gx / (gx + before):.1%} of converting, judging and deciding")
    laid = Turns.of(rows)
    assert laid.pieces.height  # laid out before the clock runs: all rules share it
    for name in ("secret", "email_address", "phone_number", "payment_card", "bank_account", "national_id"):
        regions = ("US",) if name == "phone_number" else ()
        asked = NOTHING.model_copy(update={name: "report", "phone_regions": regions})
        taken = seconds(lambda asked=asked: sensitive_flags(laid, asked))
        print(f"{name:16} {count / taken:12,.0f} alone")
    few = Turns.of(rows.head(max(count // 10, 1)))
    print(f"{'language':16} {few.rows.height / seconds(lambda: language_flags(few, ('en',))):12,.0f} alone")


if __name__ == "__main__":
    main()
