"""Tables for a terminal: what the gate found, the candidates, the nights."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from rich.table import Table
from rich.text import Text

from tasks.conversations import Conversations, Finding
from tasks.quality import BY_NAME, Change, changed_rows, compared_with, trained_turns
from tasks.recipe import Value
from tasks.registry import Candidate, Holders, NightRecord
from tasks.reproduce import Reproduction
from tasks.search import Tried

_STYLE = {"critical": "red", "warning": "yellow", "info": "dim"}


def gate_table(gated: Conversations, change: Change | None = None) -> Table:
    """What each rule found in a source, and what has moved since the last night that passed; worst first."""
    stops = not gated.passed or (change is not None and not change.passed)
    verdict = "STOPS THE NIGHT" if stops else "passes"
    kept = f"{gated.rows_out:,} of {gated.rows_in:,} rows pass"
    title = f"{gated.source}: {kept} ({gated.row_kind}, read as {gated.format}); the source {verdict}"
    table = Table(title=title, title_justify="left")
    for name in ("rule", "severity", "rows", "share", "allowed"):
        table.add_column(name, justify="right" if name in ("rows", "share", "allowed") else "left", no_wrap=True)
    table.add_column("for example (rows count from 0)")
    findings = _worst_first(gated, change)
    for finding in findings:
        counted = (
            (f"{finding.rows:,}", f"{finding.share:.2%}", f"{1 - finding.mostly:.1%}") if finding.rows else [""] * 3
        )
        where = Text(f"row {finding.row} " if finding.row is not None else "", style="bold")
        table.add_row(
            Text(finding.rule, style="bold red" if finding.stops else ""),
            Text(finding.severity, style=_STYLE[finding.severity]),
            *(counted if finding.rows else ("", "", "")),
            where + Text(finding.example or ""),
        )
    if not findings:
        table.add_row("none")
    return table


def _worst_first(gated: Conversations, change: Change | None) -> list[Finding]:
    findings = [*gated.findings, *(change.findings if change else ())]
    return sorted(findings, key=lambda one: (not one.stops, list(_STYLE).index(one.severity), -one.rows))


def tell_gate(gated: Conversations, change: Change | None, folder: Path) -> None:
    """Below the table: what its rules ask and what to do, what was changed about rows, what the source was compared
    with, and where to read on."""
    findings = _worst_first(gated, change)
    if not findings:
        print("Every row keeps every rule.")
    for finding in findings:
        print(f"{finding.rule}: {finding.explanation}")
        if finding.rule in BY_NAME:
            print(f"  → {BY_NAME[finding.rule].way_out}")
    if gated.changed:
        print(f"changed     {changed_rows(gated)}; see {folder / 'changed.parquet'}")
    print(f"trained     {trained_turns(gated)}")
    if change:
        print(f"moved       {compared_with(change)}")
    print(f"pages       {folder / 'docs' / 'index.html'}")
    print(f"quarantine  {folder / 'quarantine.parquet'}")


def candidates_table(
    candidates: Sequence[Candidate], unfinished: Sequence[Tried], nights: Sequence[NightRecord], targets: Sequence[str]
) -> Table:
    """The candidates of all nights, versions first, then those that could not be judged."""
    started = {night.run_id: night.started[:16].replace("T", " ") for night in nights}
    table = Table(show_lines=True)
    for name in ("night (UTC)", "values", "targets and guards", "verdict"):
        table.add_column(name, overflow="fold", no_wrap=name in ("night (UTC)", "values"))
    for candidate in candidates:
        scores = _by_line({name: candidate.scores[name] for name in targets if name in candidate.scores})
        if candidate.broken is not None:
            scores += f"\nguards {', '.join(candidate.broken) or 'ok'}"
        version = " ".join(["version", str(candidate.version), *candidate.aliases])
        when = f"{started.get(candidate.night, '')}\n{candidate.name}"
        table.add_row(when, _by_line(candidate.values), scores, f"{candidate.verdict}\n{version}")
    for one in unfinished:
        said = Text(f"{one.state}\n{(one.reason or '').partition(chr(10))[0]}", style="yellow")
        table.add_row(f"{started.get(one.night, '')}\n{one.candidate}", _by_line(one.values), "", said)
    return table


def _by_line(values: Mapping[str, Value]) -> str:
    shown = {name: f"{value:.4g}" if isinstance(value, float) else value for name, value in values.items()}
    return "\n".join(f"{name} {value}" for name, value in shown.items())


def champion_table(model: str, champion: Candidate, lineage: Mapping[str, str]) -> Table:
    """The adapter that is let out, and what a person asks of it; all else is in `--json` and in MLflow.

    `lineage`: what the version carries of where it came from.
    """
    shares = json.loads(lineage.get("shares", "{}"))
    shown = {
        model: f"version {champion.version}, {', '.join(champion.aliases)}",
        "adapter": f"{champion.adapter[:12]}, {champion.name or 'candidate'} of {champion.made_at[:16]} UTC",
        "values": _by_line(champion.values),
        "base": champion.base,
        "scores": "\n".join(_score(champion, suite) for suite in champion.scores),
        "verdict": "\n".join([champion.verdict, *champion.reasons]),
        "sources": lineage.get("sources", ""),
        "shares": "\n".join(f"{name} {reached:.1%} (asked {asked:.1%})" for name, (asked, reached) in shares.items()),
        "mixture": lineage.get("mixture", "")[:12],
        "code": f"{lineage.get('code', '')}, lock {lineage.get('lock', '')[:12]}",
        "device": lineage.get("device", ""),
        "run": champion.run_id,
        "night": champion.night,
        "flow run": lineage.get("flow_run", ""),
    }
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in shown.items():
        if value:
            table.add_row(Text(name, style="bold"), Text(value))
    return table


def _score(candidate: Candidate, suite: str) -> str:
    among = candidate.intervals.get(suite)
    return f"{suite} {candidate.scores[suite]:.4g}" + (f" ({among[0]:.4g} to {among[1]:.4g})" if among else "")


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
