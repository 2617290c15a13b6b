"""From flags and measures to findings: Great Expectations decides on narrow frames of them, and writes it up.

Its outcomes are held against our own counts, so that a check that was lost is not taken for one that passed.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from tasks.conversations import Finding
from tasks.errors import WorldFailed
from tasks.quality.drift import Measure
from tasks.quality.examples import shown
from tasks.quality.judgement import required_share
from tasks.quality.rules import ALL_ROWS, Rule
from tasks.recipe import Quality
from tasks.store import home

if TYPE_CHECKING:
    from expectations import Outcome, RowRule, Table

_, SET_ASIDE = ALL_ROWS
SEVERITIES = ("critical", "warning", "info")


@dataclass(frozen=True)
class Found:
    """What was found of a source's rows.

    `source_rows`: source_row, unconvertible and set_aside of every row; `flagged`: row_id, turns, kept (bool) and the
    flag of each rule, of those that could be converted; `counts`, `examples` (row number and text) by rule.
    """

    source_rows: pl.DataFrame
    flagged: pl.DataFrame
    counts: Mapping[str, int]
    examples: Mapping[str, tuple[int, str]] = field(default_factory=dict)


def decide(
    name: str,
    found: Found,
    rules: Sequence[Rule],
    quality: Quality,
    pages: Path,
    history: Path | None = None,
) -> list[Finding]:
    """What breaks the rules on rows, worst first; the pages about it, `index.html` the first, go to `pages`.

    `name`: of night and source; `history`: folder of the pages of all nights, null: the home's. Raises WorldFailed
    where Great Expectations could not decide.
    """
    from expectations import RowRule, Table, conversations, raw

    asked = {
        rule.name: RowRule(
            name=rule.name,
            severity=rule.severity,
            mostly=required_share(rule, quality.max_set_aside),
            explanation=rule.explanation,
            bad=shown(rule.bad),
            rows=found.counts[rule.name],
            example="row {}, {}".format(*found.examples[rule.name]) if rule.name in found.examples else None,
        )
        for rule in (*ALL_ROWS, *rules)
    }
    flagged = found.flagged.select(
        "row_id",
        pl.col("turns").cast(pl.Int64),
        pl.col("kept").cast(pl.Int8),
        *(rule.name for rule in rules),
    )
    tables = [
        Table(
            found.source_rows.to_pandas(),
            raw.suite(f"{name}-raw", rules=[asked[rule.name] for rule in ALL_ROWS]),
        ),
        Table(
            flagged.to_pandas(),
            conversations.suite(
                f"{name}-conversations",
                min_rows=quality.min_rows,
                rules=[asked[rule.name] for rule in rules],
            ),
        ),
    ]
    outcomes = _checked(name, tables, pages, history)
    findings = _findings(outcomes, asked, found)
    _write_index(pages, f"{name}-conversations.html", _verdict(f"{name}-raw.html", findings))
    return findings


def decide_change(
    name: str, measures: Sequence[Measure], picture: Path, pages: Path, history: Path | None = None
) -> None:
    """Check measures against their bounds and write the pages about it, `index.html` with the picture (SVG) above.

    Raises WorldFailed as `decide` does.
    """
    from expectations import Bound, Table, changes

    bounds = [
        Bound(
            column=measure.column,
            low=measure.low,
            high=measure.high,
            severity=measure.severity,
            told=f"{measure.rule} ({measure.severity}): {measure.told()}.",
        )
        for measure in measures
    ]
    frame = pl.DataFrame({measure.column: [float(measure.value)] for measure in measures})
    outcomes = _checked(name, [Table(frame.to_pandas(), changes.suite(f"{name}-changes", bounds))], pages, history)
    drawn = picture.read_text(encoding="utf-8").partition("<svg")[2]
    shown_above = f'<figure style="margin: 0"><svg style="width: 100%; height: auto; background: white"{drawn}</figure>'
    _write_index(pages, f"{name}-changes.html", shown_above)
    said = {outcome.column: outcome.success for outcome in outcomes if outcome.column}
    for measure in measures:
        if said.get(measure.column, True) != measure.holds:
            raise _at_odds(name, measure.column, measure.holds, said[measure.column])


def _write_index(pages: Path, page: str, above: str) -> None:
    """`index.html`: one of the pages with something above it."""
    text = (pages / page).read_text(encoding="utf-8")
    whole = re.sub(r"<body[^>]*>", lambda body: body.group() + above, text, count=1)
    (pages / "index.html").write_text(whole, encoding="utf-8")


def _verdict(raw: str, findings: Sequence[Finding]) -> str:
    """What the source's two tables come to, as HTML: each of them says only how it did itself."""
    stopped = [finding.rule for finding in findings if finding.stops]
    lead = f"The night stops: {', '.join(stopped)}" if stopped else "The source passes"
    cells = [
        (one.rule, one.severity, f"{one.rows:,}" if one.rows else "", "yes" if one.stops else "", one.explanation)
        for one in findings
    ]
    lines = [f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in cells]
    head = "<tr><th>Rule</th><th>Severity</th><th>Rows</th><th>Stops</th><th>What it asks</th></tr>"
    table = f"<table>{head}{''.join(lines)}</table>" if lines else "<p>Every row keeps every rule.</p>"
    more = f'<p>Below: each rule, with what breaks it. <a href="{html.escape(raw)}">The source as a whole</a>.</p>'
    return f'<section style="padding-top: 1rem"><h2>{html.escape(lead)}</h2>{table}{more}</section>'


def _checked(name: str, tables: Sequence[Table], pages: Path, history: Path | None) -> list[Outcome]:
    from expectations import CheckFailed, check

    try:
        return check(tables, history=history or home() / "expectations", night=name, pages=pages)
    except CheckFailed as error:
        raise WorldFailed(
            f"the data gate of sources.{name}",
            f"could not decide ({error})",
            "Nothing is known about the data, so the night stops; nothing was stored.",
        ) from error


def _at_odds(table: str, what: str, ours: object, theirs: object) -> WorldFailed:
    return WorldFailed(
        f"the data gate of {table}",
        f"{what} is {ours} as Nightowl counts, and {theirs} as Great Expectations does",
        "This is a fault of one of the two, not of the data.",
    )


def _findings(outcomes: Sequence[Outcome], asked: Mapping[str, RowRule], found: Found) -> list[Finding]:
    findings = []
    rows_in = found.source_rows.height
    for outcome in outcomes:
        rule = asked.get(outcome.column or "")
        if rule and outcome.rows != rule.rows:
            raise _at_odds(outcome.table, f"the number of rows that break {rule.name}", rule.rows, outcome.rows)
        if rule and rule.rows:
            row, example = found.examples.get(rule.name, (None, None))
            findings.append(
                Finding(
                    rule=rule.name,
                    severity=rule.severity,
                    rows=rule.rows,
                    share=rule.rows / rows_in,
                    mostly=rule.mostly,
                    stops=not outcome.success and rule.severity == "critical",
                    explanation=rule.explanation,
                    row=row,
                    example=example,
                )
            )
        elif not outcome.success:
            # An expectation on the table as a whole: its size, its columns, their types.
            findings.append(
                Finding(
                    rule="min_rows" if outcome.column == "kept" else outcome.expectation.removeprefix("expect_"),
                    severity="critical",
                    rows=outcome.rows,
                    share=outcome.rows / rows_in if rows_in else 0.0,
                    mostly=1.0,
                    stops=True,
                    explanation=outcome.description,
                )
            )
    return sorted(findings, key=lambda one: (not one.stops, SEVERITIES.index(one.severity), -one.rows))
