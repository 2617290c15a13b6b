"""The suite of an evaluation set: the items of one suite, before any model is asked.

Columns of its frame, one line an item: `row_id`, `no_prompt` (bool: there is nothing to ask), `no_answer` (bool: what
the measure compares with is not there) and `asked_before` (bool: an item further up asks the same).
"""

from __future__ import annotations

from typing import Any

COLUMNS = ("row_id", "no_prompt", "no_answer", "asked_before")


def suite(name: str, *, most: int, needs: str) -> Any:
    """The expectations on the frame of a set of at most `most` items; `needs`: what its measure compares with."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx.ExpectationSuite(
        name=name,
        expectations=[
            # An empty frame keeps every other expectation.
            gxe.ExpectTableRowCountToBeBetween(
                min_value=1,
                max_value=most,
                severity="critical",
                description=f"There is an item, and at most {most:,} (critical).",
            ),
            gxe.ExpectTableColumnsToMatchSet(
                column_set=list(COLUMNS),
                exact_match=True,
                severity="critical",
                description="The checked columns are all there (critical).",
            ),
            gxe.ExpectColumnValuesToNotBeNull(
                column="row_id", severity="critical", description="Every item has a row_id (critical)."
            ),
            gxe.ExpectColumnValuesToBeUnique(
                column="row_id", severity="critical", description="No item is there twice (critical)."
            ),
            gxe.ExpectColumnValuesToBeInSet(
                column="no_prompt",
                value_set=[False],
                severity="critical",
                description="Every item has a prompt (critical).",
            ),
            gxe.ExpectColumnValuesToBeInSet(
                column="no_answer",
                value_set=[False],
                severity="critical",
                description=f"Every item has {needs} (critical).",
            ),
            # Scores of items that ask the same are compared as a cluster, so it costs certainty and misleads nobody.
            gxe.ExpectColumnValuesToBeInSet(
                column="asked_before",
                value_set=[False],
                severity="warning",
                description="No prompt is there twice (warning).",
            ),
        ],
    )
