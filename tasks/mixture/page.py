"""The mixture as one HTML page that opens anywhere: its picture and the numbers behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import polars as pl

from tasks.mixture.schema import SharePart

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #22303c; background: #fff; margin: 2rem auto; max-width: 72rem; }
body { padding: 0 1.5rem; } svg { width: 100%; height: auto; }
h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; } th, td { padding: .35rem .8rem .35rem 0; text-align: left; }
th, td { border-bottom: 1px solid #e3e8ec; vertical-align: top; }
td:last-child { overflow-wrap: anywhere; } td:not(:last-child) { white-space: nowrap; }
th { color: #6b7a88; font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
"""


def write_page(
    name: str,
    shares: Mapping[str, SharePart],
    measure: str,
    chosen: pl.DataFrame,
    set_aside: pl.DataFrame,
    folder: Path,
) -> None:
    """Write `composition.html` into a folder that has `composition.svg`; it loads nothing from anywhere.

    `chosen`: the rows of the splits (source, split, tokens, supervised, repeat); `set_aside`: the others (source,
    reason, detail).
    """
    picture = (folder / "composition.svg").read_text(encoding="utf-8")
    unit = measure.replace("_", " ")
    parts = [
        (source, f"{part.asked:.2%}", f"{part.reached:.2%}", f"{part.amount:,}", f"{part.rows:,}", f"{part.epochs:.2f}")
        for source, part in shares.items()
    ]
    splits = (
        chosen.group_by("split", "source", maintain_order=True)
        .agg(pl.len(), pl.col("tokens", "supervised").sum())
        .sort(pl.col("split").replace_strict({"train": 0, "validation": 1, "test": 2}), "source")
    )
    reasons = (
        set_aside.group_by("reason", "source")
        .agg(pl.len(), pl.col("detail").first())
        .sort("len", "reason", "source", descending=[True, False, False])
    )
    body = [
        picture[picture.index("<svg") :],
        "<h2>Shares of the training split</h2>",
        _table(("source", "asked", "reached", unit, "rows", "epochs"), parts, numbers=range(1, 6)),
        "<h2>Splits</h2>",
        _table(
            ("split", "source", "rows", "tokens", "supervised tokens"),
            [(split, source, *(f"{n:,}" for n in counts)) for split, source, *counts in splits.iter_rows()],
            numbers=range(2, 5),
        ),
        "<h2>Set aside</h2>",
        _table(
            ("reason", "source", "rows", "for example"),
            [(reason, source, f"{rows:,}", detail) for reason, source, rows, detail in reasons.iter_rows()],
            numbers=(2,),
        )
        if reasons.height
        else "<p>Nothing.</p>",
    ]
    title = escape(f"{name}: the mixture")
    head = f'<meta charset="utf-8"><title>{title}</title><style>{_STYLE}</style>'
    page = f'<!doctype html>\n<html lang="en"><head>{head}</head><body>\n{"".join(body)}\n</body></html>\n'
    (folder / "composition.html").write_text(page, encoding="utf-8")


def _table(head: Sequence[str], rows: Iterable[Sequence[str]], numbers: Iterable[int]) -> str:
    right = set(numbers)

    def line(cells: Sequence[str], tag: str) -> str:
        places = (' class="number"' if n in right else "" for n in range(len(cells)))
        return "".join(f"<{tag}{place}>{escape(cell)}</{tag}>" for cell, place in zip(cells, places, strict=True))

    lines = [line(head, "th"), *(line(row, "td") for row in rows)]
    return f"<table>{''.join(f'<tr>{one}</tr>' for one in lines)}</table>"
