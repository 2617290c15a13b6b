"""A picture of where a candidate comes from: sources, mixture and base, candidates, version, as one SVG with links."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape

from tasks.conversations import Conversations
from tasks.evaluation import Verdict
from tasks.mixture import TokenisedMixture
from tasks.registry.lineage import Snapshots, pinned, source_names
from tasks.registry.schema import Version
from tasks.sources import BaseSnapshot
from tasks.training import Adapter

_WIDTH, _HEIGHT, _GAP_X, _GAP_Y, _PAD = 206, 86, 30, 14, 4
_LONGEST, _LONGEST_TITLE = 28, 22  # characters of a line; pointing at a box shows all of it
_SHOWN = 760  # pixels that MLflow's page of a version has for a picture, which it does not shrink


@dataclass(frozen=True)
class Rival:
    """Another candidate of the same night."""

    name: str
    adapter: Adapter
    mixture: TokenisedMixture
    verdict: Verdict


@dataclass(frozen=True)
class Node:
    """A box: `kind` in small type, `title`, `note` and `more` below, `column` from left to right.

    `href`: where the title leads; `more_href`: where the last line does.
    """

    id: str
    kind: str
    title: str
    note: str
    column: int
    after: tuple[str, ...] = field(default=())
    href: str | None = None
    mark: str = ""
    more: str = ""
    more_href: str | None = None


def lineage_graph(
    base: BaseSnapshot,
    snapshots: Snapshots,
    conversations: Sequence[Conversations],
    mixture: TokenisedMixture,
    adapter: Adapter,
    verdict: Verdict,
    version: Version | None,
    links: Mapping[str, str],
    rivals: Sequence[Rival] = (),
) -> str:
    """The graph of a candidate. `links`: as `story_links` names them, with MLflow's address; `rivals`: beside it."""
    named, gated = source_names(snapshots, conversations), {entry.source: entry for entry in conversations}
    nodes = [
        Node(
            f"source {name}",
            "source",
            name,
            _place(snapshot.uri, snapshot.revision),
            0,
            href=web_page(snapshot.uri, snapshot.revision),
            more=_gated(gated.get(name)),
            more_href=links.get(f"data gate of {name}"),
        )
        for name, snapshot in named.items()
    ]
    sources = tuple(node.id for node in nodes)
    nodes += [
        _mixture("mixture", mixture, sources, links.get("mixture")),
        Node(
            "base",
            "base model",
            base.uri.rpartition("/")[2],
            _place(base.uri, base.revision),
            1,
            href=web_page(base.uri, base.revision, models=True),
            more=base.licence or "licence not stated",
        ),
        Node(
            "candidate",
            "candidate",
            f"adapter {adapter.short}",
            f"{adapter.steps} steps, loss {adapter.loss:.3f}",
            2,
            ("mixture", "base"),
            links.get("training run"),
            more="the flow run that made it" if "flow run" in links else "",
            more_href=links.get("flow run"),
        ),
    ]
    nodes += _rivals(rivals, mixture, sources)
    promoted = verdict.decision == "promote"
    against = verdict.champion[:12] if verdict.champion else "the base"
    nodes.append(
        Node(
            "version",
            ("champion" if promoted else "challenger") if version else "verdict",
            f"{version.model} {version.version}" if version else verdict.decision,
            f"{verdict.decision}, against {against}" if version else f"against {against}",
            3,
            ("candidate",),
            links.get("version"),
            "good" if promoted else "quiet",
            "the night" if "night" in links else "",
            links.get("night"),
        )
    )
    return lineage_svg(nodes)


def _mixture(name: str, mixture: TokenisedMixture, sources: tuple[str, ...], href: str | None = None) -> Node:
    train = mixture.splits["train"]
    title, tokens = f"{train.rows} conversations", f"{train.tokens} tokens to train on"
    return Node(name, "mixture", title, tokens, 1, sources, href, more=mixture.short)


def _rivals(rivals: Sequence[Rival], own: TokenisedMixture, sources: tuple[str, ...]) -> list[Node]:
    """The night's other candidates, each on the mixture that it was trained on."""
    mixtures = {rival.mixture.address: rival.mixture for rival in rivals if rival.mixture.address != own.address}
    nodes = [_mixture(address, mixture, sources) for address, mixture in mixtures.items()]
    for rival in rivals:
        mixture = rival.mixture.address if rival.mixture.address in mixtures else "mixture"
        note = f"{rival.verdict.decision}, loss {rival.adapter.loss:.3f}"
        nodes.append(Node(rival.name, rival.name, f"adapter {rival.adapter.short}", note, 2, (mixture, "base")))
    return nodes


def _place(uri: str, revision: str) -> str:
    """Where something is, in as few letters as tell it apart: no scheme, no query, the commit's beginning."""
    place = pinned(uri.partition("?")[0], revision[:7]).partition("://")[2]
    return place if len(place) <= _LONGEST else f"…{place[1 - _LONGEST :]}"


def _gated(entry: Conversations | None) -> str:
    return f"data gate: {entry.rows_out} of {entry.rows_in} rows" if entry else ""


def web_page(uri: str, revision: str, models: bool = False) -> str | None:
    """Where a hub shows a data set, or a model, at a commit; None for what is on no hub."""
    scheme, _, rest = uri.partition("://")
    name = rest.partition("@")[0].partition("?")[0]
    if scheme == "hf":
        return f"https://huggingface.co/{'' if models else 'datasets/'}{name}/tree/{revision}"
    if scheme == "modelscope":
        return f"https://modelscope.cn/{'models' if models else 'datasets'}/{name}"
    return None


def lineage_svg(nodes: Sequence[Node]) -> str:
    """Boxes in columns, each centred, joined to what they come `after`."""
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
    shrunk = min(1.0, _SHOWN / width)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width * shrunk:.0f}" height="{height * shrunk:.0f}" '
        f'role="img" aria-label="Lineage">{_STYLE}{"".join(lines)}{"".join(boxes)}</svg>'
    )


_STYLE = """<style>
.box{fill:#fff;stroke:#c8d0dc;stroke-width:1.2}.edge{fill:none;stroke:#a9b4c4;stroke-width:1.4}
.kind{font:600 11px system-ui,sans-serif;fill:#6b7688;letter-spacing:.06em}
.title{font:600 14px system-ui,sans-serif;fill:#1c2330}
.note{font:11px ui-monospace,"DejaVu Sans Mono",monospace;fill:#5a6577}
.more{font:12px system-ui,sans-serif;fill:#5a6577}
.good .box{stroke:#1f9d61;stroke-width:2}.bad .box{stroke:#d64545;stroke-width:2}
.quiet .box{stroke:#d08a1d;stroke-width:2}a text{fill:#2f6fde}
</style>"""


def _edge(start: tuple[float, float], end: tuple[float, float]) -> str:
    x1, y1 = start[0] + _WIDTH, start[1] + _HEIGHT / 2
    x2, y2 = end[0], end[1] + _HEIGHT / 2
    middle = (x1 + x2) / 2
    return f'<path class="edge" d="M{x1:.0f} {y1:.0f} C{middle:.0f} {y1:.0f} {middle:.0f} {y2:.0f} {x2:.0f} {y2:.0f}"/>'


def _box(node: Node, left: float, top: float) -> str:
    lines = (
        ("kind", node.kind.upper(), 19, None),
        ("title", _short(node.title, _LONGEST_TITLE), 38, node.href),
        ("note", _short(node.note, _LONGEST), 56, None),
        ("more", _short(node.more, _LONGEST), 74, node.more_href),
    )
    text = "".join(
        _linked(f'<text class="{name}" x="{left + 12:.0f}" y="{top + down:.0f}">{escape(line)}</text>', href)
        for name, line, down, href in lines
        if line
    )
    whole = escape(f"{node.kind}: {node.title} {node.note} {node.more}".rstrip())
    return (
        f'<g class="{node.mark}"><title>{whole}</title><rect class="box" x="{left:.0f}" y="{top:.0f}" '
        f'width="{_WIDTH}" height="{_HEIGHT}" rx="8"/>{text}</g>'
    )


def _linked(text: str, href: str | None) -> str:
    return f'<a href="{escape(href, quote=True)}" target="_blank" rel="noopener">{text}</a>' if href else text


def _short(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
