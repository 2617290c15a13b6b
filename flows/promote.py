"""Register the candidates with their lineage, and move the champion alias if the gate said so (pool: data)."""

from __future__ import annotations

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from flows.approve import ask, waits
from flows.prepare_data import Data
from flows.screen import console, log
from tasks.evaluation import Scores, Verdict
from tasks.gate import best_last
from tasks.recipe import Recipe, Value
from tasks.register import promote, register, rollback
from tasks.registry import Move, Night, Rival, Version
from tasks.report import report, terminal
from tasks.search import Proposal
from tasks.store import Store
from tasks.training import Adapter


@task(name="register", cache_policy=NO_CACHE)
def register_candidate(
    recipe: Recipe,
    data: Data,
    adapter: Adapter,
    scores: dict[str, Scores],
    verdict: Verdict,
    night: Night,
    name: str,
    values: dict[str, Value],
) -> Version:
    return register(
        recipe,
        night,
        adapter,
        data.mixture,
        data.snapshots,
        data.conversations,
        data.base,
        scores,
        verdict,
        Store.open(),
        name,
        values,
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
    rivals: list[Rival],
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
        rivals,
    )
    return str(store.folder(told) / "report.html")


class Judged(BaseModel):
    """A candidate that is registered: its version, and the path of its report's page."""

    model_config = ConfigDict(frozen=True)

    candidate: str
    version: Version
    report: str


@flow(name="promote", flow_run_name="promote: {recipe.name}", persist_result=True, result_serializer="json")
def promote_candidates(
    recipe: Recipe,
    proposals: list[Proposal],
    data: Data,
    adapters: dict[str, Adapter],
    scores: dict[str, Scores],
    verdicts: dict[str, Verdict],
    night: str,
) -> list[Judged]:
    """Register the candidates that have a verdict, whatever it says, make the best of those that are let out champion,
    and write their reports.

    Where the recipe asks for approval, the best waits as challenger. Returns them with the best at the end.
    """
    record, recipes = Night.attach(night), {proposal.name: proposal.recipe for proposal in proposals}
    values = {proposal.name: proposal.values for proposal in proposals}
    rivals = {name: Rival(name, adapters[name], data.mixtures[name], verdict) for name, verdict in verdicts.items()}
    judged = []
    ordered = best_last(verdicts)
    for name in ordered:
        own, adapter, verdict = data.of(name), adapters[name], verdicts[name]
        version = register_candidate(recipes[name], own, adapter, scores, verdict, record, name, values[name])
        outcome = "challenger"
        if name != ordered[-1]:
            outcome = f"{verdict.decision}, behind {ordered[-1]}"
        elif waiting := waits(recipe, verdict, version):
            ask(recipe, verdict, version)
            log.warning("  %s", waiting)
        elif verdict.decision == "promote":
            outcome = promote(version).outcome
        log.info("  %s version %d: %s", version.model, version.version, outcome)
        others = [rival for other, rival in rivals.items() if other != name]
        page = report_verdict(recipes[name], own, adapter, scores, verdict, version, record, others)
        judged.append(Judged(candidate=name, version=version, report=page))
    return judged


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
