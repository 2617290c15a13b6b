"""The picture of a mixture: what was asked for and what came of it, on one page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import polars as pl

from tasks.mixture.schema import SharePart
from tasks.recipe import ShareMeasure

INK, MUTED, GRID = "#22303c", "#6b7a88", "#e3e8ec"
PALETTE = ("#2f6f9f", "#e0933c", "#4f9d69", "#b5567d", "#7a6bb0", "#8a7a5c", "#3aa6a6", "#c4574a")
KINDS = {"tool": "#2f6f9f", "reasoning": "#e0933c", "chat": "#4f9d69"}
STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlecolor": INK,
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": INK,
    "svg.hashsalt": "nightowl",
    "svg.fonttype": "none",
}


def draw_composition(
    index: pl.DataFrame,
    chosen: pl.DataFrame,
    set_aside: pl.DataFrame,
    shares: Mapping[str, SharePart],
    measure: ShareMeasure,
    folder: Path,
) -> None:
    """Write `composition.png` and `composition.svg` into a folder.

    `index`: all rows (source, kind); `chosen`: the rows of the splits (source, kind, split, tokens,
    supervised); `set_aside`: the others (source, reason).
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    colours = {name: PALETTE[i % len(PALETTE)] for i, name in enumerate(shares)}
    with rc_context(STYLE):
        figure = Figure(figsize=(12, 8.2), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 2, gridspec_kw={"hspace": 0.32, "wspace": 0.3})
        figure.subplots_adjust(left=0.09, right=0.97, top=0.86, bottom=0.08)
        _headline(figure, index, chosen, shares)
        _shares(axes[0][0], shares, measure, colours)
        _splits(axes[0][1], chosen, colours)
        _lengths(axes[1][0], chosen)
        _fate(axes[1][1], index, chosen, set_aside, colours)
        figure.savefig(folder / "composition.png", dpi=130, metadata={"Software": None})
        figure.savefig(folder / "composition.svg", metadata={"Date": None, "Creator": None})


def _headline(figure: Any, index: pl.DataFrame, chosen: pl.DataFrame, shares: Mapping[str, SharePart]) -> None:
    train = chosen.filter(split="train")
    figure.text(0.03, 0.952, "The mixture", fontsize=17, fontweight="bold")
    figure.text(
        0.03,
        0.922,
        f"{index.height:,} conversations in, {train.height:,} to train on with "
        f"{_short(int(train['supervised'].sum()))} supervised of {_short(int(train['tokens'].sum()))} tokens; "
        f"{chosen.height - train.height:,} held out, "
        f"{index.height - chosen.height:,} set aside",
        color=MUTED,
    )


def _shares(axis: Any, shares: Mapping[str, SharePart], measure: ShareMeasure, colours: Mapping[str, str]) -> None:
    axis.set_title(f"Share of the training split, in {measure.replace('_', ' ')}")
    names, unit = list(shares)[::-1], measure.replace("_", " ")
    widest = max(max(part.asked, part.reached) for part in shares.values())
    for y, name in enumerate(names):
        part = shares[name]
        axis.barh(y, part.reached, height=0.52, color=colours[name])
        axis.plot([part.asked] * 2, [y - 0.38, y + 0.38], color=INK, linewidth=2.2, solid_capstyle="butt")
        axis.text(
            max(part.asked, part.reached) + widest * 0.025,
            y,
            f"{part.reached:.1%}, asked {part.asked:.1%}\n{part.rows:,} rows, {_short(part.amount)} {unit}",
            va="center",
            fontsize=8.5,
            color=MUTED,
            linespacing=1.35,
        )
    axis.set_yticks(range(len(names)), names)
    axis.set_xlim(0, widest * 1.5)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(length=0)


def _splits(axis: Any, chosen: pl.DataFrame, colours: Mapping[str, str]) -> None:
    axis.set_title("Rows by split and source")
    order = ["test", "validation", "train"]
    counts = {(s, n): c for s, n, c in chosen.group_by("split", "source").len().iter_rows()}
    totals = {split: sum(counts.get((split, name), 0) for name in colours) for split in order}
    widest = max(totals.values())
    for y, split in enumerate(order):
        left = 0
        for name, colour in colours.items():
            rows = counts.get((split, name), 0)
            axis.barh(y, rows, left=left, height=0.56, color=colour, edgecolor="white", linewidth=0.8)
            if rows > widest * 0.07:
                axis.text(left + rows / 2, y, f"{rows:,}", ha="center", va="center", color="white", fontsize=8.5)
            left += rows
        axis.text(left + widest * 0.02, y, f"{totals[split]:,}", va="center", color=MUTED, fontsize=8.5)
    axis.set_yticks(range(len(order)), order)
    axis.set_xlim(0, widest * 1.12)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(length=0)
    from matplotlib.patches import Patch

    axis.legend(
        handles=[Patch(color=colour, label=name) for name, colour in colours.items()],
        loc="lower right",
        bbox_to_anchor=(1.0, 0.0),
        frameon=False,
        fontsize=8.5,
        labelcolor=INK,
        handlelength=1,
    )


def _lengths(axis: Any, chosen: pl.DataFrame) -> None:
    axis.set_title("Length of the training conversations, by kind")
    train = chosen.filter(split="train")
    lengths = train["tokens"].to_numpy()
    low, high = int(lengths.min()), int(lengths.max()) + 1
    # Lengths are whole numbers, so a bin narrower than one token would only show gaps.
    edges = np.unique(np.round(np.geomspace(low, high, 36)))
    tallest = 1
    for kind, colour in KINDS.items():
        tokens = train.filter(kind=kind)["tokens"].to_numpy()
        if not len(tokens):
            continue
        rows, _ = np.histogram(tokens, bins=edges)
        axis.stairs(rows, edges, fill=True, color=colour, alpha=0.28)
        axis.stairs(rows, edges, color=colour, linewidth=1.6, label=f"{kind}, median {np.median(tokens):.0f}")
        tallest = max(tallest, int(rows.max()))
    # Room above the bars for the legend, wherever they are.
    axis.set_ylim(0, tallest * 1.35)
    axis.set_xscale("log")
    ticks = [t for d in (1, 10, 100, 1_000, 10_000, 100_000) for t in (d, 2 * d, 5 * d) if low * 0.9 <= t <= high * 1.1]
    axis.set_xticks(ticks, [_short(t) for t in ticks])
    axis.minorticks_off()
    axis.set_xlabel("tokens, log scale")
    axis.set_ylabel("rows")
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.tick_params(axis="y", colors=MUTED, length=0)
    axis.legend(frameon=False, fontsize=8.5, loc="upper left", ncols=3, handlelength=1.4, columnspacing=1.2)


def _fate(
    axis: Any, index: pl.DataFrame, chosen: pl.DataFrame, set_aside: pl.DataFrame, colours: Mapping[str, str]
) -> None:
    """A waterfall from all rows, through what was set aside for each reason and held out, to the training rows."""
    axis.set_title("From all rows to the training rows")
    held_out = chosen.filter(pl.col("split") != "train").with_columns(reason=pl.lit("held out"))
    leaving = pl.concat([set_aside.select("source", "reason"), held_out.select("source", "reason")])
    by_reason = {(r, s): n for r, s, n in leaving.group_by("reason", "source").len().iter_rows()}
    reasons = [*sorted({r for r, _ in by_reason} - {"held out", "above share"}), "held out", "above share"]
    steps = [(r, sum(by_reason.get((r, s), 0) for s in colours)) for r in reasons]
    steps = [(r, n) for r, n in steps if n]
    labels = ["all rows", *(r for r, _ in steps), "train"]
    left_over = index.height
    for y, label in enumerate(labels):
        whole = label in ("all rows", "train")
        rows = left_over if whole else dict(steps)[label]
        start = 0 if whole else left_over - rows
        frame = {"all rows": index, "train": chosen.filter(split="train")}.get(label)
        per_source = dict(frame.group_by("source").len().iter_rows()) if frame is not None else {}
        at = start
        for name, colour in colours.items():
            part = per_source.get(name, 0) if whole else by_reason.get((label, name), 0)
            axis.barh(y, part, left=at, height=0.6, color=colour, alpha=1.0 if whole else 0.62)
            at += part
        left_over = left_over if whole else start
        axis.text(
            at + index.height * 0.015, y, f"{'' if whole else '−'}{rows:,}", va="center", fontsize=8.5, color=MUTED
        )
    axis.set_yticks(range(len(labels)), [fill(label, 18) for label in labels], linespacing=1.0)
    axis.invert_yaxis()
    axis.set_xlim(0, index.height * 1.14)
    axis.set_xticks([])
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(length=0)


def _short(number: float) -> str:
    for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size * 10:
            return f"{number / size:,.0f}{unit}"
        if number >= size:
            return f"{number / size:.1f}".removesuffix(".0") + unit
    return f"{number:.0f}"
