"""The story of a night, top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from prefect import flow
from prefect.runtime import flow_run

from flows.approve import waits
from flows.artifacts import show_bill, show_night
from flows.bill import bill
from flows.evaluate import evaluate_candidate
from flows.placement import placed
from flows.prepare_data import prepare_data
from flows.promote import promote_candidate
from flows.result import NightResult
from flows.screen import timed
from flows.train_adapter import train_adapter
from tasks.recipe import Recipe, Setting, settings_of
from tasks.register import registered
from tasks.registry import Night, NightOutcome, champion
from tasks.store import Manifest, Store

OUTCOMES: Mapping[str, NightOutcome] = {"promote": "promoted", "keep": "kept", "cannot tell": "cannot tell"}


@flow(name="nightly", flow_run_name="{recipe.name}")
def nightly(recipe: Recipe, settings: Sequence[Setting] = ()) -> NightResult:
    """Fetch, validate, mix, train, evaluate, gate, register and report; what has not moved is not done again.

    `settings` says where the recipe's values come from, where the command line knows. Raises Refused when the data
    gate stops the night, BadInput and WorldFailed as the stages do; MLflow has the reason however the night ends.
    """
    started, seconds, made = datetime.now(UTC), dict[str, float](), list[Manifest]()

    def end(outcome: NightOutcome, reason: str, **more: object) -> NightResult:
        spent = bill(recipe, seconds, started, made, Store.open())
        night.metrics(spent.metrics)
        show_bill(recipe, spent)
        night.finish(outcome, reason)
        told = {"recipe": recipe.name, "outcome": outcome, "reason": reason, "run_id": night.id, "bill": spent}
        return NightResult.model_validate({**told, "seconds": seconds, **more})

    with Night.start(recipe, settings or settings_of(recipe), flow_run.get_flow_run_ui_url()) as night:
        show_night(recipe, night)
        data = placed(recipe, prepare_data)(recipe, night.id)
        seconds.update(data.seconds)
        made += [data.base, *data.snapshots.values()]

        with timed("train", seconds):
            candidate = placed(recipe, train_adapter)(recipe, data, night.id)
            made.append(candidate)

        reigning = champion(recipe)
        if reigning and reigning.adapter == candidate.address:
            return end("skipped", f"nothing moved: the candidate is the champion, version {reigning.version}.")

        with timed("evaluate", seconds):
            scores, verdict = placed(recipe, evaluate_candidate)(recipe, data, candidate, reigning, night.id)
            made += scores.values()
        if verdict.decision != "promote" and (judged := registered(recipe, verdict)):
            return end("skipped", f"nothing moved: the candidate is version {judged.version}, {verdict.decision}.")

        with timed("register", seconds):
            version, page = placed(recipe, promote_candidate)(recipe, data, candidate, scores, verdict, night.id)
        waiting = waits(recipe, verdict, version)
        return end(
            "kept" if waiting else OUTCOMES[verdict.decision],
            " ".join([*([waiting] if waiting else ()), *verdict.reasons]),
            comparisons=verdict.comparisons,
            version=version,
            report=page,
        )
