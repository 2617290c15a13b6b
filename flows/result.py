"""What came of a night, for the command line and for whoever reads Prefect's result."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

from flows.bill import Bill
from flows.screen import console
from tasks.evaluation import Comparison
from tasks.registry import NightOutcome, Version


class NightResult(BaseModel):
    """`seconds`: wall time by stage; `run_id`: the night's run in MLflow; `report`: path of its page."""

    model_config = ConfigDict(frozen=True)

    recipe: str
    outcome: NightOutcome
    reason: str
    run_id: str
    seconds: dict[str, float]
    bill: Bill
    comparisons: tuple[Comparison, ...] = ()
    version: Version | None = None
    report: str | None = None


def tell(result: NightResult) -> None:
    """Close the story of a night in the terminal; the report has printed its table and reasons."""
    spent = ", ".join(f"{stage} {seconds:.0f} s" for stage, seconds in result.seconds.items())
    version = f", {result.version.model} version {result.version.version}" if result.version else ""
    said = "" if result.comparisons else f": {result.reason}"
    console.print(f"[bold]{result.outcome}[/bold]{version}{said}", soft_wrap=True)
    bill = result.bill
    cost = f"; {bill.cost:.2f} {bill.currency}" if bill.cost is not None else ""
    console.print(f"took {sum(result.seconds.values()):.0f} s ({spent}){cost}", style="dim")
    if result.report:
        console.print(f"report    {result.report}", soft_wrap=True)
    console.print("see it in Prefect and MLflow:  nightowl up", soft_wrap=True)
