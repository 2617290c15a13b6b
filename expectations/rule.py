"""A row rule as an expectation: how its column, its severity and the share that must keep it are asserted and told."""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import Any, Literal

Severity = Literal["critical", "warning", "info"]


@dataclass(frozen=True)
class RowRule:
    """A boolean column, true where a row breaks the rule, and the share of rows that must keep it.

    `bad`: what breaks it, in general; `rows`: how many rows of this table do; `example`: one of them, shortened.
    """

    name: str
    severity: Severity
    mostly: float
    explanation: str
    bad: str
    rows: int = 0
    example: str | None = None


def expectation(rule: RowRule) -> Any:
    """The rule as an expectation. Beside a description, Data Docs show neither severity nor `mostly`: it says both."""
    import great_expectations.expectations as gxe

    broken = "1 row breaks it" if rule.rows == 1 else f"{rule.rows:,} rows break it"
    bound = f"at least {rule.mostly:.1%} of the rows must keep it" if rule.mostly else "it is only reported"
    told = f"{rule.name} ({rule.severity}): {rule.explanation} {broken}; {bound}."
    told = f"{page_text(told)}<br>What breaks it: <code>{page_text(rule.bad)}</code>"
    if rule.example:
        told += f"<br>Found: <code>{page_text(rule.example)}</code>"
    return gxe.ExpectColumnValuesToBeInSet(
        column=rule.name, value_set=[False], mostly=rule.mostly, severity=rule.severity, description=told
    )


def page_text(text: str) -> str:
    """A text as Data Docs show it: they put a description into the page as it is, and fill in what follows a dollar."""
    return html.escape(text, quote=False).replace("$", "&#36;")
