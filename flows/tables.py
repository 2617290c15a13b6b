"""Tables for a terminal: what the gate found, the candidates, the nights."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tasks.conversations import Conversations
from tasks.registry import Candidate, Holders, NightRecord
from tasks.reproduce import Reproduction

_STYLE = {"critical": "red", "warning": "yellow", "info": "dim"}


def gate_table(source: Conversations) -> Table:
    """What each rule found in a source, worst first."""
    verdict = "passes" if source.passed else "STOPS THE NIGHT"
    title = f"{source.source}: {source.rows_out} of {source.rows_in} rows ({source.format}); the source {verdict}"
    table = Table(title=title, title_justify="left")
    for name in ("rule", "severity", "rows", "share", "allowed", "what it asks", "example"):
        table.add_column(name, justify="right" if name in ("rows", "share", "allowed") else "left")
    for finding in source.findings:
        table.add_row(
            Text(finding.rule, style="bold red" if finding.stops else ""),
            Text(finding.severity, style=_STYLE[finding.severity]),
            str(finding.rows),
            f"{finding.share:.2%}",
            f"{1 - finding.mostly:.1%}",
            Text(finding.explanation),
            Text(finding.example or ""),
        )
    return table


def candidates_table(candidates: Sequence[Candidate]) -> Table:
    """Versions of a registered model with their scores."""
    suites = sorted({suite for candidate in candidates for suite in candidate.scores})
    table = Table()
    for name in ("version", "alias", "made", "verdict", *suites):
        table.add_column(name, justify="right" if name in suites else "left")
    for candidate in candidates:
        scores = [f"{candidate.scores[suite]:.3f}" if suite in candidate.scores else "" for suite in suites]
        aliases = ", ".join(candidate.aliases)
        table.add_row(str(candidate.version), aliases, candidate.made_at[:16], candidate.verdict, *scores)
    return table


def nights_table(nights: Sequence[NightRecord]) -> Table:
    """The history of a recipe's nights."""
    table = Table()
    for name in ("night (UTC)", "outcome", "minutes", "reason"):
        table.add_column(name, justify="right" if name == "minutes" else "left")
    for night in nights:
        minutes = f"{night.seconds / 60:.1f}" if night.seconds is not None else ""
        table.add_row(night.started[:16], night.outcome or night.status, minutes, Text(night.reason or ""))
    return table


def reproduction_table(made: Reproduction) -> Table:
    """What was compared when a version was made again."""
    table = Table(box=None)
    for name in ("part", "state", "found"):
        table.add_column(name, no_wrap=name != "found")
    for parts, style in ((made.circumstances, "yellow"), (made.outcome, "bold red")):
        for part in parts:
            table.add_row(part.name, Text(part.state, style="" if part.state == "same" else style), Text(part.told))
    return table


def holders_table(found: Holders) -> Table:
    """What contains a source or a row: versions first, since they are what may be in use."""
    table = Table(title=f"contains {found.asked}", title_justify="left")
    for head in ("what", "which", "since", "detail"):
        table.add_column(head)
    for version in found.versions:
        reigns = ", ".join(f"champion {r.since[:16]} to {(r.until or 'now')[:16]}" for r in version.reigns)
        style = "bold red" if "champion" in version.aliases else ""
        name = Text(f"{version.model} {version.version}", style=style)
        detail = f"adapter {version.adapter[:12]}; {reigns or 'never champion'}"
        table.add_row("version", name, ", ".join(version.aliases), detail)
    for adapter in found.adapters:
        table.add_row("adapter", adapter.address[:12], adapter.made_at[:16], f"mixture {adapter.mixture[:12]}")
    for mixture in found.mixtures:
        where = f"splits {', '.join(mixture.splits)}; " if mixture.splits else ""
        table.add_row("mixture", mixture.address[:12], mixture.made_at[:16], f"{where}{len(mixture.runs)} runs")
    if not table.rows:
        table.add_row("nothing", "", "", "no mixture, adapter or version contains it")
    return table
