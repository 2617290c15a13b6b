"""The picture of what has moved: a source on the last night that passed and on this one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.quality.drift import Measure
from tasks.quality.profile import LENGTHS, Profile, edge

THEN, NOW, BAD, INK, MUTED, GRID = "#8a94a6", "#2f6f9f", "#d64545", "#22303c", "#6b7a88", "#e3e8ec"
STYLE: dict[str, Any] = {
    "font.size": 9.5,
    "font.family": "DejaVu Sans",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 12,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "text.color": INK,
    "svg.hashsalt": "nightowl",
    "svg.fonttype": "none",
}


def draw_drift(source: str, before: Profile, now: Profile, measures: Sequence[Measure], folder: Path) -> None:
    """Write `drift.png` and `drift.svg` into a folder: lengths, and the shares of kinds, roles and languages."""
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with rc_context(STYLE):
        figure = Figure(figsize=(12, 7.6), facecolor="white")
        FigureCanvasAgg(figure)
        axes = figure.subplots(2, 2, gridspec_kw={"hspace": 0.5, "wspace": 0.2})
        figure.subplots_adjust(left=0.07, right=0.97, top=0.83, bottom=0.08)
        broken = sorted({measure.rule for measure in measures if not measure.holds})
        figure.text(0.03, 0.945, f"{source}: last night and this night", fontsize=17, fontweight="bold")
        said = f"out of bounds: {', '.join(broken)}" if broken else "nothing is out of bounds"
        figure.text(0.03, 0.908, f"{before.rows:,} rows then, {now.rows:,} now; {said}", color=BAD if broken else MUTED)
        for axis, name in zip(axes.flat, LENGTHS, strict=False):
            _lengths(axis, name, getattr(before, name), getattr(now, name), measures)
        _shares(axes[1][1], before, now, broken)
        figure.savefig(folder / "drift.png", dpi=130, metadata={"Software": None})
        figure.savefig(folder / "drift.svg", metadata={"Date": None, "Creator": None})


def _lengths(
    axis: Any, name: str, before: Mapping[int, int], now: Mapping[int, int], measures: Sequence[Measure]
) -> None:
    found = [measure for measure in measures if measure.rule == f"{name}_moved"]
    told = ", ".join(f"{one.statistic} {one.value:.2f} of {one.high:.2f}" for one in found) or "not compared"
    axis.set_title(f"{name.capitalize()} per conversation")
    moved = any(not measure.holds for measure in found)
    axis.text(1, 1.04, told, transform=axis.transAxes, ha="right", color=BAD if moved else MUTED)
    if not (before and now):
        return
    bins = range(min([*before, *now]), max([*before, *now]) + 1)
    edges = [edge(bin) if bin else 0.5 for bin in (*bins, bins[-1] + 1)]
    for counts, colour, label, filled in ((now, NOW, "this night", True), (before, THEN, "last night", False)):
        shares = [counts.get(bin, 0) / sum(counts.values()) for bin in bins]
        if filled:
            axis.stairs(shares, edges, fill=True, color=colour, alpha=0.35)
        axis.stairs(shares, edges, color=colour, linewidth=1.8, label=label)
    axis.set_xscale("log")
    ticks = [t * 10**power for power in range(9) for t in (1, 2, 5) if edges[0] * 0.9 <= t * 10**power <= edges[-1]]
    axis.set_xticks(ticks[:: len(ticks) // 10 + 1], [f"{tick:,}" for tick in ticks[:: len(ticks) // 10 + 1]])
    axis.minorticks_off()
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:.0%}")
    axis.set_ylabel("share of rows")
    axis.grid(axis="y", color=GRID, linewidth=0.8)
    axis.set_axisbelow(True)
    axis.legend(frameon=False, fontsize=8.5)


def _shares(axis: Any, before: Profile, now: Profile, broken: Sequence[str]) -> None:
    """A pair of bars for each kind, set of roles and language: then above, now below."""
    axis.set_title("Kinds, roles and languages")
    names: list[tuple[str, str, float, float]] = []
    for group in ("kinds", "roles", "languages"):
        one, other = getattr(before, group), getattr(now, group)
        most = sorted({*one, *other}, key=lambda name: -one.get(name, 0) - other.get(name, 0))[:4]
        names += [
            (
                group,
                name,
                one.get(name, 0) / max(sum(one.values()), 1),
                other.get(name, 0) / max(sum(other.values()), 1),
            )
            for name in most
        ]
    for y, (_, _, then, later) in enumerate(names):
        axis.barh(y - 0.2, then, height=0.36, color=THEN)
        axis.barh(y + 0.2, later, height=0.36, color=NOW)
        axis.text(max(then, later) + 0.015, y, f"{then:.0%} → {later:.0%}", va="center", fontsize=8.5, color=MUTED)
    axis.set_yticks(range(len(names)), [f"{name or '(none)'}" for _, name, _, _ in names])
    for label, (group, _, _, _) in zip(axis.get_yticklabels(), names, strict=True):
        label.set_color(BAD if f"{group}_moved" in broken or (group == "kinds" and "kind_vanished" in broken) else INK)
    axis.invert_yaxis()
    axis.set_xlim(0, 1.2)
    axis.set_xticks([])
    axis.set_xlabel("S system, U user, A assistant, T tool", loc="left")
    axis.spines["bottom"].set_visible(False)
    axis.tick_params(length=0)
