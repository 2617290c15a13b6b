"""The suite of a raw source: rows as they came, and what became of them.

Columns of its frame: `source_row` (i64), `unconvertible` (bool: no conversation could be made of the
row) and `set_aside` (bool: it is not trained on, for this or any other reason).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from expectations.rule import RowRule, expectation

COLUMNS = ("source_row", "unconvertible", "set_aside")


def suite(name: str, *, rules: Sequence[RowRule]) -> Any:
    """The expectations on a raw source's frame; `rules` are those on `unconvertible` and `set_aside`."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx.ExpectationSuite(
        name=name,
        expectations=[
            gxe.ExpectTableRowCountToBeBetween(
                min_value=1,
                severity="critical",
                description="The source yields rows (critical).",
            ),
            gxe.ExpectTableColumnsToMatchSet(
                column_set=list(COLUMNS),
                exact_match=True,
                severity="critical",
                description="The checked columns are all there (critical).",
            ),
            gxe.ExpectColumnValuesToNotBeNull(
                column="source_row",
                severity="critical",
                description="Every row has its number in the source (critical).",
            ),
            gxe.ExpectColumnValuesToBeUnique(
                column="source_row", severity="critical", description="No row is read twice (critical)."
            ),
            *(expectation(rule) for rule in rules),
        ],
    )
