"""Register the candidate with its lineage, and move the champion alias if the gate said so (pool: data)."""

from __future__ import annotations

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.approve import ask, waits
from flows.prepare_data import Data
from flows.screen import console, log
from tasks.evaluation import Scores, Verdict
from tasks.recipe import Recipe
from tasks.register import promote, register, rollback
from tasks.registry import Move, Night, Version
from tasks.report import report, terminal
from tasks.store import Store
from tasks.training import Adapter


@task(name="register", cache_policy=NO_CACHE)
def register_candidate(
    recipe: Recipe, data: Data, candidate: Adapter, scores: dict[str, Scores], verdict: Verdict, night: Night
) -> Version:
    return register(
        recipe,
        night,
        candidate,
        data.mixture,
        data.snapshots,
        data.conversations,
        data.base,
        scores,
        verdict,
        Store.open(),
    )


@task(name="report", cache_policy=NO_CACHE)
def report_verdict(
    recipe: Recipe,
    data: Data,
    candidate: Adapter,
    scores: dict[str, Scores],
    verdict: Verdict,
    version: Version,
    night: Night,
) -> str:
    """Path of the report's page."""
    store = Store.open()
    console.print(terminal(recipe, scores, verdict, store))
    told = report(
        recipe,
        candidate,
        data.mixture,
        data.snapshots,
        data.conversations,
        data.base,
        scores,
        verdict,
        store,
        version,
        night,
        data.changes,
    )
    return str(store.folder(told) / "report.html")


@flow(name="promote", flow_run_name="promote: {recipe.name}", persist_result=True, result_serializer="json")
def promote_candidate(
    recipe: Recipe, data: Data, candidate: Adapter, scores: dict[str, Scores], verdict: Verdict, night: str
) -> tuple[Version, str]:
    """Register the candidate whatever the verdict, make it champion if that is `promote`, and write the report.

    Where the recipe asks for approval, it waits as challenger.

    Returns the version and the path of the report's page.
    """
    record = Night.attach(night)
    version = register_candidate(recipe, data, candidate, scores, verdict, record)
    outcome = "challenger"
    if waiting := waits(recipe, verdict, version):
        ask(recipe, verdict, version)
        log.warning("  %s", waiting)
    elif verdict.decision == "promote":
        outcome = promote(version).outcome
    log.info("  %s version %d: %s", version.model, version.version, outcome)
    return version, report_verdict(recipe, data, candidate, scores, verdict, version, record)


@flow(name="rollback", flow_run_name="roll back: {model}")
def roll_back(model: str, to: int | None = None, why: str = "") -> Move:
    """Make an earlier champion the champion again.

    Args:
        model: Registered model in MLflow.
        to: Version to go back to; the previous champion where not given.
        why: Why; kept in the record of moves.
    """
    moved = rollback(model, to=to, why=why)
    log.info("%s: %s", model, moved.outcome)
    return moved
