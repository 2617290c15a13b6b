"""What the data gate found of a source, in words: why it stopped the night, and the whole of it as Markdown."""

from __future__ import annotations

from pathlib import Path

from tasks.conversations import Conversations, Finding
from tasks.quality.drift import Change
from tasks.quality.rules import BY_NAME

WORST = 3


def refusal(gated: Conversations, change: Change, pages: Path) -> str:
    """Why a source stopped the night: the worst rules with counts and examples, what to do, and where to read on."""
    findings = [*gated.findings, *change.findings]
    stopping = [finding for finding in findings if finding.stops]
    lines = [f"sources.{gated.source}: {'; '.join(_why(finding) for finding in stopping)}."]
    for finding in worst(findings):
        lines.append(f"  {finding.rule}{_counted(finding)} {finding.explanation}")
        if finding.example:
            lines.append(f"    {_example(finding)}")
        if finding.rule in BY_NAME:
            lines.append(f"    {BY_NAME[finding.rule].way_out}")
    lines.append(f"  See {pages / 'docs' / 'index.html'} and {pages / 'quarantine.parquet'}.")
    return "\n".join(lines)


def worst(findings: list[Finding]) -> list[Finding]:
    """The worst rules: those that stop the night, then warnings; the sum of all (set_aside) is none of them."""
    named = [one for one in findings if one.severity != "info" and one.rule != "set_aside"]
    return sorted(named, key=lambda one: (not one.stops, -one.rows))[:WORST]


def markdown(gated: Conversations, change: Change, pages: Path) -> str:
    """What the gate found: findings, what was changed about rows, and what has moved since the last night."""
    goes_on = gated.passed and change.passed
    lines = [
        f"**{gated.source}**: {gated.rows_out} of {gated.rows_in} rows pass; "
        + ("the night goes on." if goes_on else "**the night stops.**"),
        "",
        "| rule | severity | rows | share | stops | example | what to do |",
        "|---|---|---:|---:|---|---|---|",
    ]
    for one in (*gated.findings, *change.findings):
        way_out = BY_NAME[one.rule].way_out if one.rule in BY_NAME else ""
        counted = (str(one.rows), f"{one.share:.1%}") if one.rows else ("", "")
        cells = (one.rule, one.severity, *counted, "yes" if one.stops else "", _example(one), way_out)
        lines.append(f"| {' | '.join(_cell(cell) for cell in cells)} |")
    if gated.changed:
        lines += ["", f"Changed as the recipe asks: {changed_rows(gated)} (`{pages / 'changed.parquet'}`)."]
    lines += ["", trained_turns(gated)]
    lines += ["", compared_with(change)]
    lines += ["", f"Pages: `{pages / 'docs' / 'index.html'}`"]
    return "\n".join(lines)


def changed_rows(gated: Conversations) -> str:
    """How many rows were changed, and how."""
    return ", ".join(f"{what} {rows} row{'s' if rows != 1 else ''}" for what, rows in gated.changed.items())


def trained_turns(gated: Conversations) -> str:
    """How many of the assistant's turns are trained, and the way to train the others."""
    share = f"{gated.trained_answers:,} of {gated.answers:,} assistant turns are trained"
    if gated.trained_answers == gated.answers:
        return f"{share}."
    return (
        f"{share}: the chat template writes the others otherwise than inference asks for them. A template that keeps "
        "earlier turns trains them (deployments/recipes/qwen3-hybrid.jinja for Qwen3, in base.chat_template_file)."
    )


def compared_with(change: Change) -> str:
    """What a source was held against, and how many measures are out of bounds."""
    if change.before is None:
        return "No earlier night to compare with."
    broken = sum(not measure.holds for measure in change.measures)
    moved = f"{broken} of {len(change.measures)} measures out of bounds" if broken else "nothing has moved"
    return f"Against the last night that passed with other rows ({change.before_made_at} UTC): {moved}."


def _why(finding: Finding) -> str:
    if finding.rows:
        bound = f"at most {1 - finding.mostly:.1%} may" if finding.mostly < 1 else "none may"
        return f"{finding.rule}: {finding.rows} rows ({finding.share:.1%}), and {bound}"
    return f"{finding.rule}: {finding.explanation.rstrip('.')}"


def _counted(finding: Finding) -> str:
    return f": {finding.rows} rows ({finding.share:.1%})." if finding.rows else ":"


def _example(finding: Finding) -> str:
    where = f"row {finding.row}, " if finding.row is not None else ""
    return f"{where}{finding.example or ''}".rstrip(", ")


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")
