"""A person's yes or no to a candidate that the gate would let out.

A flow run of its own, so that nothing of the night is done again: it shows the verdict's page, suspends (no process
waits, and there is no heartbeat to miss) and is taken up by a worker when somebody has filled in its form. Whoever does
not answer has said no: the server ends the run when its time is over, and the champion stays.
"""

from __future__ import annotations

from pathlib import Path

from prefect import flow
from prefect.artifacts import create_markdown_artifact
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.flow_runs import suspend_flow_run
from prefect.input import RunInput
from prefect.runtime import flow_run
from pydantic import Field

from flows.screen import log
from tasks.errors import BadInput
from tasks.evaluation import Verdict
from tasks.recipe import Recipe
from tasks.register import decline, promote
from tasks.registry import Move, Version
from tasks.store import Store

_DEPLOYMENT = "approve/data"


class Approval(RunInput):
    """The form."""

    approve: bool = Field(False, description="Let the candidate out: it becomes champion.")
    comment: str = Field("", description="Why; kept in the record of moves.")
    who: str = Field("", description="Your name, for the record.")


def waits(recipe: Recipe, verdict: Verdict, version: Version) -> str | None:
    """How a candidate that the gate lets out comes to be approved; None where nobody has to."""
    if verdict.decision != "promote" or recipe.gate.approval == "none":
        return None
    name = f"{version.model} {version.version}"
    return (
        f"{version.model} version {version.version} may be let out and waits for approval: in Prefect, where the flow "
        f"run 'approve: {name}' asks, within {recipe.gate.approval_hours:g} hours, or at any time with "
        f"nightowl promote {recipe.name} {version.version} --why '...'"
    )


def ask(recipe: Recipe, verdict: Verdict, version: Version) -> None:
    """Start the flow run that asks, once a verdict, where the server knows of it (`nightowl up`, `nightowl deploy`)."""
    parameters = {
        "version": version.model_dump(mode="json"),
        "verdict": verdict.address,
        "hours": recipe.gate.approval_hours,
    }
    key = f"approve-{version.model}-{version.version}-{verdict.address}"
    try:
        run_deployment(_DEPLOYMENT, parameters=parameters, timeout=0, idempotency_key=key)
    except ObjectNotFound:
        log.warning("  this Prefect server asks nobody (nightowl up would); the candidate waits for nightowl promote")


@flow(name="approve", flow_run_name="approve: {version.model} {version.version}")
def approve(version: Version, verdict: str, hours: float) -> Move:
    """Ask a person whether a candidate may be let out, and do as they say.

    Args:
        version: The candidate.
        verdict: Address of its verdict in the store.
        hours: How long an answer is waited for.
    """
    store = Store.open()
    judged = store.find(Verdict, verdict)
    if judged is None:
        raise BadInput("verdict", verdict[:12], f"is not in the store {store.root}", "Set NIGHTOWL_STORE to its store.")
    page = Path(store.folder(judged), "verdict.md").read_text(encoding="utf-8")
    if flow_run.run_count == 1:
        key = f"approval-{version.model}-{version.version}".lower().replace("_", "-").replace(".", "-")
        create_markdown_artifact(
            page, key=key, description=f"May {version.model} version {version.version} be let out?"
        )
    answer = suspend_flow_run(
        wait_for_input=Approval.with_initial_data(description=page), timeout=round(hours * 3600), key="approval"
    )
    who, why = answer.who or "somebody in Prefect", answer.comment or "no comment"
    move = promote(version, who=who, why=f"approved: {why}") if answer.approve else decline(version, who, why)
    log.info("%s version %d: %s", version.model, version.version, move.outcome)
    return move
