"""The suite of a source's conversations: its schema, its size, and one expectation a row rule.

Columns of its frame: `row_id`, `turns` (i64), `kept` (0 or 1) and one boolean column a rule.
Nulls pass every expectation, so the flags are of a type that cannot hold one (numpy's bool).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expectations.rule import RowRule, expectation

COLUMNS = ("row_id", "turns", "kept")


def suite(name: str, *, min_rows: int, rules: Sequence[RowRule]) -> Any:
    """The expectations on a frame of conversations; at least `min_rows` of them must be kept."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    columns = [*COLUMNS, *(rule.name for rule in rules)]
    return gx.ExpectationSuite(
        name=name,
        expectations=[
            # An empty frame keeps every rule, so how much is kept has an expectation of its own.
            gxe.ExpectColumnSumToBeBetween(
                column="kept",
                min_value=min_rows,
                severity="critical",
                description=f"quality.min_rows: at least {min_rows:,} rows are kept (critical).",
            ),
            gxe.ExpectTableColumnsToMatchSet(
                column_set=columns,
                exact_match=True,
                severity="critical",
                description="Every rule was computed (critical).",
            ),
            gxe.ExpectColumnValuesToMatchRegex(
                column="row_id",
                regex="^[0-9a-f]{32}$",
                severity="critical",
                description="row_id is 32 hexadecimal digits of the content's sha256 (critical).",
            ),
            gxe.ExpectColumnValuesToNotBeNull(
                column="row_id", severity="critical", description="Every row has a row_id (critical)."
            ),
            gxe.ExpectColumnValuesToNotBeNull(
                column="turns", severity="critical", description="Every conversation is a list of turns (critical)."
            ),
            *(expectation(rule) for rule in rules),
        ],
    )
