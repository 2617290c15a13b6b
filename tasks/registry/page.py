"""The report as one self-contained HTML page: no script, no link to anything that must load."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from tasks.conversations import Conversations
from tasks.evaluation import Scores, Verdict
from tasks.mixture import TokenisedMixture
from tasks.quality import Change, changed_rows, compared_with, trained_turns
from tasks.recipe import Recipe
from tasks.registry import plots
from tasks.registry.card import score_table
from tasks.registry.figures import SuiteRow, items_of
from tasks.registry.graph import Rival, lineage_graph
from tasks.registry.lineage import Snapshots, code_tags, pinned, source_names
from tasks.registry.schema import Version
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.training import Adapter

_TEMPLATE = Path(__file__).with_name("page.html")
_LONGEST = 600  # characters of a prompt or an answer that are shown


@dataclass(frozen=True)
class Story:
    """All that a report tells of.

    `links`: as `story_links` names them; `changes`: of the sources since the last night that passed; `rivals`: the
    night's other candidates.
    """

    recipe: Recipe
    base: BaseSnapshot
    snapshots: Snapshots
    conversations: Sequence[Conversations]
    mixture: TokenisedMixture
    adapter: Adapter
    scores: Mapping[str, Scores]
    rows: Sequence[SuiteRow]
    verdict: Verdict
    version: Version | None
    links: Mapping[str, str]
    changes: Sequence[Change] = ()
    rivals: Sequence[Rival] = ()


def page(story: Story, store: Store) -> str:
    """The page's HTML; everything that came out of data or a model is escaped."""
    from jinja2 import Environment

    recipe, verdict, adapter, mixture = story.recipe, story.verdict, story.adapter, story.mixture
    against = "champion" if verdict.champion else "base"
    differences = plots.differences_plot(story.rows)
    loss = plots.loss_plot(store.folder(adapter) / "progress.jsonl")
    composition = store.folder(mixture) / "composition.png"
    template = Environment(autoescape=True).from_string(_TEMPLATE.read_text(encoding="utf-8"))
    return template.render(
        title=f"{recipe.name}: {verdict.decision}",
        recipe=recipe.name,
        decision=verdict.decision,
        subtitle=_subtitle(story),
        reasons=verdict.reasons,
        table=score_table(story.rows),
        scores_png=_inline(plots.scores_plot(story.rows)),
        differences_png=_inline(differences) if differences else None,
        loss_png=_inline(loss) if loss else None,
        composition_png=_inline(composition.read_bytes()) if composition.exists() else None,
        training=_training(adapter),
        mixture=_mixture(mixture),
        against=against,
        confidence=f"{100 * recipe.gate.confidence:g}",
        items=telling_items(story.scores[against], story.scores["candidate"], story.rows, store),
        findings=findings(story.conversations, story.changes),
        drift=[
            (f"{change.source}: {compared_with(change)}", _inline((store.folder(change) / "drift.png").read_bytes()))
            for change in story.changes
            if change.before
        ],
        conservation=" ".join(_conserved(entry) for entry in story.conversations),
        graph=graph(story),
        lineage=lineage_rows(story),
    )


def telling_items(
    reference: Scores, candidate: Scores, rows: Sequence[SuiteRow], store: Store, most: int = 10
) -> list[dict[str, str]]:
    """The items that say most: where the two differ most, losses and wins in equal parts, over all suites."""
    signs = pl.DataFrame(
        {"suite": [row.name for row in rows], "sign": [1 if row.higher_is_better else -1 for row in rows]}
    )
    columns = ["suite", "item_id", "score", "prompt", "output", "expected"]
    both = (
        items_of(candidate, store)
        .select(columns)
        .join(
            items_of(reference, store).select("suite", "item_id", "score", "output"),
            on=["suite", "item_id"],
            suffix="_before",
        )
        .join(signs, on="suite")
        .with_columns(gain=(pl.col("score") - pl.col("score_before")) * pl.col("sign"))
        .filter(pl.col("gain").abs() > 1e-9)
        # Rank within a suite first, so that no suite crowds the others out; ids make the choice repeatable.
        .sort(pl.col("gain").abs(), "item_id", descending=[True, False])
        .with_columns(place=pl.int_range(pl.len()).over("suite", pl.col("gain") > 0))
        .sort("place", "suite")
    )
    lost, won = both.filter(pl.col("gain") < 0), both.filter(pl.col("gain") > 0)
    half = most // 2
    take_lost = min(lost.height, max(half, most - won.height))
    chosen = pl.concat([lost.head(take_lost), won.head(most - take_lost)])
    return [
        {
            "suite": item["suite"],
            "item_id": str(item["item_id"]),
            "result": "won" if item["gain"] > 0 else "lost",
            "prompt": _clip(item["prompt"], tail=True),
            "expected": _clip(item["expected"]),
            "reference": _clip(item["output_before"]),
            "candidate": _clip(item["output"]),
        }
        for item in chosen.to_dicts()
    ]


def findings(conversations: Sequence[Conversations], changes: Sequence[Change] = ()) -> list[dict[str, object]]:
    """What the data gate found, by source; rules that nothing broke are left out. What has moved has no rows."""
    entries: list[Conversations | Change] = [*conversations, *changes]
    return [
        {
            "source": entry.source,
            "rule": finding.rule,
            "severity": finding.severity,
            "rows": finding.rows or "",
            "share": f"{100 * finding.share:.1f} %" if finding.rows else "",
            "stops": finding.stops,
            "explanation": finding.explanation,
            "example": _clip(finding.example, 120),
        }
        for entry in entries
        for finding in entry.findings
        if finding.rows or isinstance(entry, Change)
    ]


def lineage_rows(story: Story) -> list[tuple[str, str]]:
    """Everything a person needs to find a byte's way back, as name and value."""
    named = source_names(story.snapshots, story.conversations)
    code = code_tags()
    rows = [(f"source {name}", f"{pinned(s.uri, s.revision)} ({s.rows} rows)") for name, s in named.items()]
    rows += [(f"split {name}", f"{s.digest} ({s.rows} rows)") for name, s in story.mixture.splits.items()]
    rows += [
        ("base", pinned(story.base.uri, story.base.revision)),
        ("mixture", story.mixture.address),
        ("adapter", story.adapter.address),
        ("verdict", story.verdict.address),
        ("code", code["nightowl.code"]),
        ("lock", code["nightowl.lock"]),
        ("device", story.adapter.device),
        ("environment", ", ".join(f"{key} {value}" for key, value in story.adapter.environment.items())),
    ]
    return rows + [(name, url) for name, url in story.links.items()]


def graph(story: Story) -> str:
    """The lineage graph of a story."""
    return lineage_graph(
        story.base,
        story.snapshots,
        story.conversations,
        story.mixture,
        story.adapter,
        story.verdict,
        story.version,
        story.links,
        story.rivals,
    )


def _subtitle(story: Story) -> str:
    where = f"{story.version.model} version {story.version.version}, " if story.version else ""
    against = f"adapter {story.verdict.champion[:12]}" if story.verdict.champion else "the base model"
    return f"{where}adapter {story.adapter.short} against {against}, {story.verdict.made_at[:16].replace('T', ' ')} UTC"


def _training(adapter: Adapter) -> str:
    validation = f", validation {adapter.validation_loss:.3f}" if adapter.validation_loss is not None else ""
    return (
        f"{adapter.steps} steps in {adapter.seconds:.0f} s on {adapter.device}, at most "
        f"{adapter.peak_memory / 1e9:.1f} GB; loss {adapter.loss:.3f}{validation} nats per supervised token."
    )


def _mixture(mixture: TokenisedMixture) -> str:
    splits = ", ".join(f"{name} {split.rows} rows" for name, split in mixture.splits.items())
    shares = ", ".join(
        f"{name} {100 * part.reached:.1f} % (asked {100 * part.asked:.1f})" for name, part in mixture.shares.items()
    )
    return f"{splits}. Shares of {mixture.measure.replace('_', ' ')}: {shares}."


def _conserved(entry: Conversations) -> str:
    aside = sum(entry.set_aside.values())
    changed = f" ({changed_rows(entry)})" if entry.changed else ""
    rows = f"{entry.rows_in} rows in, {entry.rows_out} out{changed}, {aside} set aside"
    return f"{entry.source}: {rows}. {trained_turns(entry)}"


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _clip(text: object, most: int = _LONGEST, tail: bool = False) -> str:
    whole = "" if text is None else str(text)
    if len(whole) <= most:
        return whole
    return "… " + whole[-most:] if tail else whole[:most] + " …"
