"""The suites of a mixture: its splits as they were written, and the shares that they came to.

Columns of the splits' frame, one line a written row: `split`, `source`, `kind`, `tokens`, `supervised` and `repeat`
(i64), `again` (bool: the row is elsewhere in the splits, under the same number of repetition) and `leak` (bool: a
training row that has a twin which is held out, or a validation row that has one in the test split). Columns of the
shares' frame, one line a source: `source`, `asked`, `reached` (fractions) and `off` (how far they are apart).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

COLUMNS = ("split", "source", "kind", "tokens", "supervised", "repeat", "again", "leak")
SHARE_COLUMNS = ("source", "asked", "reached", "off")


def suite(
    name: str, *, splits: Sequence[str], sources: Sequence[str], rows: int, repeats: int, max_length: int | None
) -> Any:
    """The expectations on the splits' frame.

    `splits`: those that there should be (an empty validation split is a warning); `rows`: how many were to be written;
    `repeats`: how often one may come; `max_length`: in tokens, None for no bound.
    """
    import great_expectations as gx
    import great_expectations.expectations as gxe

    longest = "of any length" if max_length is None else f"at most {max_length:,} tokens long"
    return gx.ExpectationSuite(
        name=name,
        expectations=[
            gxe.ExpectTableRowCountToEqual(
                value=rows, severity="critical", description=f"All {rows:,} rows that were chosen are there (critical)."
            ),
            gxe.ExpectTableColumnsToMatchSet(
                column_set=list(COLUMNS),
                exact_match=True,
                severity="critical",
                description="The checked columns are all there (critical).",
            ),
            *(
                gxe.ExpectColumnDistinctValuesToContainSet(
                    column="split",
                    value_set=[split],
                    severity=severity,
                    description=f"The {split} split is not empty ({severity}).",
                )
                for split in splits
                for severity in ["warning" if split == "validation" else "critical"]
            ),
            gxe.ExpectColumnDistinctValuesToEqualSet(
                column="source",
                value_set=list(sources),
                severity="critical",
                description=f"Every source is in it: {', '.join(sources)} (critical).",
            ),
            gxe.ExpectColumnValuesToBeInSet(
                column="leak",
                value_set=[False],
                severity="critical",
                description="No training row has an exact or near twin in the test or validation split, and no "
                "validation row one in the test split (critical).",
            ),
            gxe.ExpectColumnValuesToBeInSet(
                column="again", value_set=[False], severity="critical", description="No row is in it twice (critical)."
            ),
            gxe.ExpectColumnMaxToBeBetween(
                column="repeat",
                min_value=1,
                max_value=repeats,
                severity="critical",
                description=f"No row comes more often than mixture.repeats, {repeats} (critical).",
            ),
            gxe.ExpectColumnMaxToBeBetween(
                column="tokens",
                min_value=1,
                max_value=max_length,
                severity="critical",
                description=f"Every conversation is {longest} (critical).",
            ),
            gxe.ExpectColumnMinToBeBetween(
                column="supervised",
                min_value=1,
                severity="warning",
                description="Every conversation has tokens that the loss is computed on (warning).",
            ),
        ],
    )


def shares(name: str, *, tolerance: float, measure: str) -> Any:
    """The expectations on the shares' frame, in a measure and within a tolerance (a fraction)."""
    import great_expectations as gx
    import great_expectations.expectations as gxe

    return gx.ExpectationSuite(
        name=name,
        expectations=[
            gxe.ExpectTableColumnsToMatchSet(
                column_set=list(SHARE_COLUMNS),
                exact_match=True,
                severity="critical",
                description="The checked columns are all there (critical).",
            ),
            gxe.ExpectColumnSumToBeBetween(
                column="reached",
                min_value=1 - 1e-6,
                max_value=1 + 1e-6,
                severity="critical",
                description="The shares reached add up to 1 (critical).",
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="off",
                min_value=0,
                max_value=tolerance,
                severity="critical",
                description=f"Each source has its share of the {measure.replace('_', ' ')} in the training split, to "
                f"within {tolerance:.0%} (critical).",
            ),
        ],
    )
