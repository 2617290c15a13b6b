"""The suite of what has changed about a source since the last night that passed.

Its frame is one row, with a column of numbers for each measure: a ratio of rows, a count of columns, a statistic.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from expectations.rule import Severity, page_text


@dataclass(frozen=True)
class Bound:
    """A measure's column, between which values it must lie (None: no bound), and what to say of it."""

    column: str
    low: float | None
    high: float | None
    severity: Severity
    told: str


def suite(name: str, bounds: Sequence[Bound]) -> Any:
    """The expectations on a frame of measures."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx.ExpectationSuite(
        name=name,
        expectations=[
            gxe.ExpectTableRowCountToEqual(
                value=1, severity="critical", description="The two nights were compared once (critical)."
            ),
            *(
                gxe.ExpectColumnValuesToBeBetween(
                    column=bound.column,
                    min_value=bound.low,
                    max_value=bound.high,
                    severity=bound.severity,
                    description=page_text(bound.told),
                )
                for bound in bounds
                if (bound.low, bound.high) != (None, None)
            ),
        ],
    )
