"""The story of a night, top to bottom."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from prefect import flow
from prefect.runtime import flow_run

from flows.approve import waits
from flows.artifacts import show_bill, show_night, show_report
from flows.bill import bill
from flows.evaluate import evaluate_candidates, scored
from flows.placement import placed
from flows.prepare_data import prepare_data
from flows.promote import promote_candidates
from flows.result import NightResult
from flows.screen import log, timed
from flows.train_adapter import train_each
from tasks.plan import prepared
from tasks.propose import propose, tell
from tasks.recipe import Recipe, Setting, settings_of
from tasks.register import registered
from tasks.registry import Night, NightOutcome, champion, nights
from tasks.store import Manifest, Store
from tasks.train import adapter_inputs
from tasks.training import Adapter

OUTCOMES: Mapping[str, NightOutcome] = {"promote": "promoted", "keep": "kept", "cannot tell": "cannot tell"}


@flow(name="nightly", flow_run_name="{recipe.name}")
def nightly(recipe: Recipe, settings: Sequence[Setting] = ()) -> NightResult:
    """Propose, fetch, validate, mix, train, evaluate, gate, register and report; what has not moved is not done again.

    `settings` says where the recipe's values come from, where the command line knows. Raises Refused when the data
    gate stops the night, BadInput and WorldFailed as the stages do; MLflow has the reason however the night ends.
    """
    log.info("%s on %s: %s", recipe.name, recipe.base.uri, ", ".join(source.uri for source in recipe.sources))
    started, seconds, made = datetime.now(UTC), dict[str, float](), list[Manifest]()

    def end(outcome: NightOutcome, reason: str, **more: object) -> NightResult:
        spent = bill(recipe, seconds, started, made, store)
        night.metrics(spent.metrics)
        show_bill(recipe, spent)
        night.finish(outcome, reason)
        told = {"recipe": recipe.name, "outcome": outcome, "reason": reason, "run_id": night.id, "bill": spent}
        return NightResult.model_validate({**told, "seconds": seconds, **more})

    with Night.start(recipe, settings or settings_of(recipe), flow_run.get_flow_run_ui_url()) as night:
        store = Store.open()
        show_night(recipe, night)
        proposals = propose(recipe, night.id, nights(recipe.name) if recipe.search else (), store)
        prepare = placed(recipe, prepare_data, there=lambda: recipe.search is None and bool(prepared(recipe, store)))
        data = prepare(recipe, night.id, {one.name: one.recipe for one in proposals})
        seconds.update(data.seconds)
        made += [data.base, *data.snapshots.values()]

        reigning = champion(recipe)
        would_be = Store.address(Adapter, adapter_inputs(recipe, data.mixture, data.base))
        if reigning and recipe.search is None and reigning.adapter == would_be:
            return end("skipped", f"nothing moved: the candidate is the champion, version {reigning.version}.")

        with timed("train", seconds):
            adapters, failed = train_each(recipe, proposals, data, night.id)
            made += adapters.values()

        with timed("evaluate", seconds):
            judging = placed(recipe, evaluate_candidates, there=lambda: scored(recipe, data, adapters, reigning, store))
            scores, verdicts = judging(recipe, data, adapters, reigning, night.id)
            made += scores.values()
        known = {name: version for name, one in verdicts.items() if (version := registered(recipe, one))}
        new = {name: one for name, one in verdicts.items() if one.decision == "promote" or name not in known}
        if not new:
            tell(recipe, proposals, scores, verdicts, failed, store)
            said = [f"{name} is version {known[name].version}, {one.decision}" for name, one in verdicts.items()]
            return end("skipped", f"nothing moved: {'; '.join(said) or 'the candidate is the champion'}.")

        with timed("register", seconds):
            judged = placed(recipe, promote_candidates)(recipe, proposals, data, adapters, scores, new, night.id)
        # Not before: a night that dies goes on with the same candidates.
        tell(recipe, proposals, scores, verdicts, failed, store)
        best, verdict = judged[-1], new[judged[-1].candidate]
        waiting = waits(recipe, verdict, best.version)
        show_report(recipe, night, best.version, best.report)
        return end(
            "kept" if waiting else OUTCOMES[verdict.decision],
            " ".join([*([waiting] if waiting else ()), *verdict.reasons]),
            comparisons=verdict.comparisons,
            version=best.version,
            report=best.report,
        )
