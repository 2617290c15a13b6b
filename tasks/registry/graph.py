"""A picture of where a candidate comes from: sources, mixture, candidate, verdict, champion, as one SVG with links."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _PAD = 216, 62, 64, 18, 14
_LONGEST = 32


@dataclass(frozen=True)
class Node:
    """A box: `kind` in small type, `title` and `note` below, `column` from left to right, optionally a link."""

    id: str
    kind: str
    title: str
    note: str
    column: int
    after: tuple[str, ...] = field(default=())
    href: str | None = None
    mark: str = ""


def lineage_svg(nodes: Sequence[Node]) -> str:
    """Boxes in columns, each centred, joined to what they come `after`; follows the reader's colour scheme."""
    columns: dict[int, list[Node]] = {}
    for node in nodes:
        columns.setdefault(node.column, []).append(node)
    tallest = max(len(column) for column in columns.values())
    height = 2 * _PAD + tallest * _HEIGHT + (tallest - 1) * _GAP_Y
    width = 2 * _PAD + len(columns) * _WIDTH + (len(columns) - 1) * _GAP_X
    places: dict[str, tuple[float, float]] = {}
    for position, number in enumerate(sorted(columns)):
        column = columns[number]
        block = len(column) * _HEIGHT + (len(column) - 1) * _GAP_Y
        for index, node in enumerate(column):
            top = (height - block) / 2 + index * (_HEIGHT + _GAP_Y)
            places[node.id] = (_PAD + position * (_WIDTH + _GAP_X), top)
    lines = [_edge(places[before], places[node.id]) for node in nodes for before in node.after]
    boxes = [_box(node, *places[node.id]) for node in nodes]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="Lineage">{_STYLE}{"".join(lines)}{"".join(boxes)}</svg>'
    )


_STYLE = """<style>
.box{fill:#fff;stroke:#c8d0dc;stroke-width:1.2}.edge{fill:none;stroke:#a9b4c4;stroke-width:1.4}
.kind{font:600 10px system-ui,sans-serif;fill:#6b7688;letter-spacing:.06em}
.title{font:600 13px system-ui,sans-serif;fill:#1c2330}.note{font:11px ui-monospace,monospace;fill:#5a6577}
.good .box{stroke:#1f9d61;stroke-width:2}.bad .box{stroke:#d64545;stroke-width:2}
.quiet .box{stroke:#d08a1d;stroke-width:2}a .title{fill:#2f6fde}
</style>"""


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1 = start[0] + _WIDTH, start[1] + _HEIGHT / 2
    x2, y2 = end[0], end[1] + _HEIGHT / 2
    middle = (x1 + x2) / 2
    return f'<path class="edge" d="M{x1:.0f} {y1:.0f} C{middle:.0f} {y1:.0f} {middle:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"/>'


def _box(node: Node, left: float, top: float) -> str:
    text = "".join(
        f'<text class="{name}" x="{left + 12:.0f}" y="{top + down:.0f}">{escape(_short(line))}</text>'
        for name, line, down in (("kind", node.kind.upper(), 18), ("title", node.title, 35), ("note", node.note, 52))
    )
    whole = escape(f"{node.kind}: {node.title} {node.note}")
    box = (
        f'<g class="{node.mark}"><title>{whole}</title><rect class="box" x="{left:.0f}" y="{top:.0f}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>{text}</g>'
    )
    if node.href:
        return f'<a href="{escape(node.href, quote=True)}" target="_blank" rel="noopener">{box}</a>'
    return box


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
