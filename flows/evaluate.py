"""Score base, champion and candidates on the same items, and let the gate compare them (pool: gpu)."""

from __future__ import annotations

from collections.abc import Sequence

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from flows.prepare_data import Data
from flows.screen import log, progress
from tasks.evaluate import evaluate, is_evaluated
from tasks.evaluation import Scores, Verdict
from tasks.gate import gate
from tasks.recipe import Recipe
from tasks.register import champion_adapter
from tasks.registry import Champion, Night, nights
from tasks.store import Store
from tasks.training import Adapter


@task(name="evaluate", cache_policy=NO_CACHE)
def score_models(recipe: Recipe, data: Data, models: dict[str, Adapter | None], night: str) -> dict[str, Scores]:
    """Scores by role; `models`: the adapter in each role, None for the base itself."""
    store = Store.open()
    adapters = list({adapter.address: adapter for adapter in models.values() if adapter}.values())
    with Night.attach(night).stage("evaluate") as stage, progress("evaluating") as advance:
        stage.inputs(data.mixture)
        found = evaluate(
            recipe, data.mixture, data.base, adapters, store, lambda what, done, total: advance(done, total, what)
        )
        scores = {role: found[adapter.address if adapter else None] for role, adapter in models.items()}
        for role, score in scores.items():
            stage.metrics({f"{role}/{name}": suite.mean for name, suite in score.suites.items()})
            items = store.folder(score) / "items.parquet"
            stage.artifact(items, f"items/{role}")
            stage.table(items, f"items/{role}.json")
    return scores


@task(name="gate", cache_policy=NO_CACHE)
def judge(recipe: Recipe, scores: dict[str, Scores], candidates: Sequence[str]) -> dict[str, Verdict]:
    """Verdicts by candidate, in the order of their proposal: each is one more hypothesis of the year, and which level
    one gets must not depend on how it did."""
    reference, known = scores.get("champion", scores["base"]), nights(recipe.name)
    return {
        name: gate(recipe, scores["base"], reference, scores[name], Store.open(), known)
        for name in candidates
        if scores[name].adapter != reference.adapter
    }


@flow(name="evaluate", flow_run_name="evaluate: {recipe.name}", persist_result=True, result_serializer="json")
def evaluate_candidates(
    recipe: Recipe, data: Data, candidates: dict[str, Adapter], champion: Champion | None, night: str
) -> tuple[dict[str, Scores], dict[str, Verdict]]:
    """Evaluate what has not been evaluated yet, and judge each candidate against the champion (or the base).

    Returns the scores by role (`base`, `champion` where there is one, and the candidates' names) and the verdicts of
    the candidates that are not champion themselves.
    """
    models = _models(candidates, champion, Store.open())
    scores = score_models(recipe, data, models, night)
    for role, score in scores.items():
        log.info("  %-12s %s", role, ", ".join(f"{name} {suite.mean:.3f}" for name, suite in score.suites.items()))
    return scores, judge(recipe, scores, list(candidates))


def scored(recipe: Recipe, data: Data, candidates: dict[str, Adapter], champion: Champion | None, store: Store) -> bool:
    """Whether every model has met every item already. Raises as the evaluation itself does."""
    adapters = [adapter for adapter in _models(candidates, champion, store).values() if adapter]
    return is_evaluated(recipe, data.mixture, data.base, adapters, store)


def _models(candidates: dict[str, Adapter], champion: Champion | None, store: Store) -> dict[str, Adapter | None]:
    """The adapter in each role, None for the base itself."""
    reigning = {"champion": champion_adapter(champion, store)} if champion else {}
    return {"base": None, **reigning, **candidates}
