"""The verdict on one page, for somebody who was not there: what was asked, what was found, how sure that is."""

from __future__ import annotations

from collections.abc import Sequence

from tasks.evaluation.schema import Comparison, Decision, Reason
from tasks.evaluation.verdict import amount
from tasks.evaluation.year import Budget

_SAYS = {
    "promote": "The candidate is better on every target and holds every guard. It may replace {reference}.",
    "keep": "The candidate is worse where it counts. {Reference} stays.",
    "cannot tell": "The evidence does not suffice, either way. {Reference} stays. This is not a finding that the "
    "candidate is no better: the page says how large a difference would have been seen.",
}


def explain(
    decision: Decision, champion: str | None, comparisons: Sequence[Comparison], why: Sequence[Reason], left: Budget
) -> str:
    """Markdown, one page."""
    reference = "the champion" if champion else "the base model"
    says = _SAYS[decision].format(reference=reference, Reference=reference[:1].upper() + reference[1:])
    parts = [
        f"# {decision.capitalize()}",
        says,
        "## What was found",
        "| suite | must be | reference | candidate | difference | finding |\n|---|---|---:|---:|---:|---|\n"
        + "\n".join(map(_row, comparisons)),
        "\n".join(f"- {reason.text}" for reason in why),
        "## How sure this is",
        "\n".join(f"- {line}" for line in _sureness(comparisons, left, _confidence(why))),
    ]
    return "\n\n".join(parts) + "\n"


def _row(c: Comparison) -> str:
    asked = "better" if c.role == "target" else f"within {amount(c.margin, c.unit)}"
    factor, sign = (100, " %") if c.unit == "share" else (1, "")
    values = " | ".join(f"{factor * value:.3g}{sign}" for value in (c.reference, c.candidate))
    gain = f"{'+' if c.difference > 0 else ''}{factor * c.difference:.3g}"
    return f"| {c.suite} | {asked} | {values} | {gain} | {c.outcome} |"


def _confidence(why: Sequence[Reason]) -> float:
    return next((reason.numbers["confidence"] for reason in why if "confidence" in reason.numbers), 0.95)


def _sureness(comparisons: Sequence[Comparison], left: Budget, confidence: float) -> list[str]:
    lines = [
        f"Both models answered the same questions. Tonight's evidence had to be so strong that chance alone brings it "
        f"about once in {1 / comparisons[0].level:,.0f} nights."
        if comparisons[0].level
        else "",
        f"At most {left.year_error:.0%} of all years see any promotion of a candidate that is no better; "
        f"{left.hypotheses} {'candidate was' if left.hypotheses == 1 else 'candidates were'} judged in the last 365 "
        f"days, and {left.left:.0%} of what may be saved up for a night is left.",
    ]
    for c in comparisons:
        if c.detectable is None:
            lines.append(f"{c.suite}: {c.items} items are too few to say anything.")
        elif c.role == "target":
            seen = amount(c.detectable, c.unit)
            lines.append(f"{c.suite}: with {c.items} items this gate sees a gain of {seen} 8 nights in 10.")
        else:
            lines.append(
                f"{c.suite}: with {c.items} items a candidate that is {amount(c.margin, c.unit)} worse is let through "
                f"in at most 1 of {2 / (1 - confidence):.0f} cases; one that is exactly as good passes 8 times in 10 "
                f"if the margin is {amount(c.detectable, c.unit)} or more."
            )
    return [line for line in lines if line]
