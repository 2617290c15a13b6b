"""The report's pictures, as PNG bytes; drawn without pyplot, so that threads and servers can draw too."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tasks.registry.figures import SuiteRow, is_share
from tasks.registry.schema import Candidate

COLOURS = {"base": "#8a94a6", "champion": "#d08a1d", "candidate": "#2f6fde"}
_GOOD, _BAD, _QUIET = "#1f9d61", "#d64545", "#8a94a6"
_INK = "#1c2330"


def scores_plot(rows: Sequence[SuiteRow]) -> bytes:
    """Each model's mean on each suite with its 95 % interval: shares on one panel, losses on another."""
    panels = _panels(rows)
    figure, axes = _figure(8.4, 1.3 + 0.75 * max(len(panel) for panel in panels), _ratios(panels))
    for axis, panel in zip(axes, panels, strict=True):
        shares = is_share(panel[0].unit)
        factor = 100 if shares else 1
        for index, row in enumerate(panel):
            for offset, (role, mean) in enumerate(row.means.items()):
                y = index + 0.22 * (offset - (len(row.means) - 1) / 2)
                axis.plot([factor * mean.low, factor * mean.high], [y, y], color=COLOURS[role], lw=2, alpha=0.55)
                axis.plot(
                    [factor * mean.value], [y], "o", color=COLOURS[role], ms=7, label=role if index == 0 else None
                )
        axis.set_yticks(range(len(panel)), [row.name for row in panel])
        axis.set_ylim(len(panel) - 0.5, -0.5)
        axis.set_xlabel("% of items" if shares else f"{panel[0].unit} (lower is better)")
        if shares:
            axis.set_xlim(-3, 103)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=3, frameon=False, fontsize=9)
    return _png(figure, top=0.88)


def differences_plot(rows: Sequence[SuiteRow]) -> bytes | None:
    """Candidate minus reference on each suite, paired, with the gate's interval; a guard's margin is shaded.

    None where no suite was compared.
    """
    panels = _panels([row for row in rows if row.comparison])
    if not panels:
        return None
    figure, axes = _figure(8.4, 1.1 + 0.55 * max(len(panel) for panel in panels), _ratios(panels))
    for axis, panel in zip(axes, panels, strict=True):
        factor = 100 if is_share(panel[0].unit) else 1
        for index, row in enumerate(panel):
            found: Any = row.comparison
            colour = {"better": _GOOD, "not worse": _GOOD, "worse": _BAD}.get(found.outcome, _QUIET)
            if found.role == "guard":
                axis.barh(index, factor * found.margin, left=-factor * found.margin, height=0.5, color="#e9edf4")
            axis.plot([factor * found.low, factor * found.high], [index, index], color=colour, lw=2.5)
            axis.plot([factor * found.difference], [index], "o", color=colour, ms=8)
        axis.axvline(0, color=_INK, lw=0.8)
        axis.set_yticks(range(len(panel)), [row.name for row in panel])
        axis.set_ylim(len(panel) - 0.5, -0.5)
        axis.set_xlabel(f"{'points' if factor == 100 else panel[0].unit} better than the reference")
    return _png(figure)


def loss_plot(progress: Path) -> bytes | None:
    """Training and validation loss by step, from the training process's own report; None without any."""
    lines = [json.loads(line) for line in progress.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not lines:
        return None
    # A resumed attempt repeats steps: the last word on a step counts.
    by_step = {line["step"]: line for line in lines}
    steps = sorted(by_step)
    losses = [by_step[step]["loss"] for step in steps]
    figure, axes = _figure(5.4, 3.2, [1])
    axis = axes[0]
    axis.plot(steps, losses, color=COLOURS["candidate"], lw=1, alpha=0.35)
    axis.plot(steps, list(_smoothed(losses)), color=COLOURS["candidate"], lw=2, label="training (smoothed)")
    seen = [
        (step, by_step[step]["validation_loss"]) for step in steps if by_step[step].get("validation_loss") is not None
    ]
    if seen:
        axis.plot(*zip(*seen, strict=True), "o-", color=COLOURS["champion"], lw=1.5, ms=5, label="validation")
    axis.set_xlabel("optimiser step")
    axis.set_ylabel("nats per token")
    axis.set_ylim(bottom=0)
    axis.legend(frameon=False, fontsize=9)
    return _png(figure)


def search_plot(
    candidates: Sequence[Candidate], field: str, targets: Sequence[str], log: bool = False, form: str = "png"
) -> bytes:
    """Scores of candidates on each target against the value of a field, with their 95 % intervals, as PNG or SVG.

    `candidates`: those in which the field varied; `log`: of the field's axis.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _figure(1 + 4.2 * len(targets), 3.6, [1] * len(targets))
    values = [candidate.values[field] for candidate in candidates]
    numbers = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)
    names = sorted({str(value) for value in values})
    colours = {"promote": _GOOD, "keep": _BAD}
    for axis, target in zip(axes, targets, strict=True):
        for candidate, value in zip(candidates, values, strict=True):
            if (score := candidate.scores.get(target)) is None:
                continue
            x = value if numbers else names.index(str(value))
            colour = colours.get(candidate.verdict, _QUIET)
            axis.plot([x, x], candidate.intervals.get(target, (score, score)), color=colour, lw=2, alpha=0.55)
            axis.plot([x], [score], "o", color=colour, ms=7)
        if not numbers:
            axis.set_xticks(range(len(names)), names)
        elif log:
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_locator(NullLocator())
        axis.set_xlabel(field)
        axis.set_ylabel(target)
    dots = [axes[0].plot([], [], "o", color=colour)[0] for colour in (_GOOD, _BAD, _QUIET)]
    figure.legend(dots, ["promote", "keep", "cannot tell"], loc="upper center", ncols=3, frameon=False, fontsize=9)
    return _png(figure, top=0.92, form=form)


def _panels(rows: Sequence[SuiteRow]) -> list[list[SuiteRow]]:
    """Suites that are measured in the same unit share an axis."""
    panels: dict[str, list[SuiteRow]] = {}
    for row in rows:
        panels.setdefault("share" if is_share(row.unit) else row.unit, []).append(row)
    return list(panels.values())


def _ratios(panels: Sequence[Sequence[SuiteRow]]) -> list[int]:
    return [3 if is_share(panel[0].unit) else 2 for panel in panels]


def _smoothed(values: Iterable[float], keep: float = 0.8) -> Iterable[float]:
    """Exponential average without the bias towards its start (Kingma and Ba 2015, section 3)."""
    average, weight = 0.0, 0.0
    for value in values:
        average, weight = keep * average + (1 - keep) * value, keep * weight + (1 - keep)
        yield average / weight


def _figure(width: float, height: float, ratios: Sequence[int]) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=160, facecolor="white")
    axes = figure.subplots(1, len(ratios), squeeze=False, gridspec_kw={"width_ratios": list(ratios)})[0]
    for axis in axes:
        axis.grid(axis="x", color="#e9edf4", lw=0.8)
        axis.set_axisbelow(True)
        axis.tick_params(length=0, labelsize=9, colors=_INK)
        axis.xaxis.label.set_size(9)
        axis.yaxis.label.set_size(9)
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
        axis.spines["bottom"].set_color("#c8d0dc")
    return figure, list(axes)


def _png(figure: Any, top: float = 1.0, form: str = "png") -> bytes:
    figure.tight_layout(rect=(0, 0, 1, top))
    buffer = io.BytesIO()
    figure.savefig(buffer, format=form)
    return buffer.getvalue()
