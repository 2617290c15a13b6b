"""Fetch, validate and mix: from the recipe's sources to tokenised splits (pool: data)."""

from __future__ import annotations

from logging import INFO, WARNING

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.events import emit_event
from pydantic import BaseModel, ConfigDict

from flows.artifacts import show_data
from flows.screen import log, timed
from tasks.compare import remember
from tasks.conversations import Conversations
from tasks.errors import NightowlError, Refused
from tasks.evaluate import check_sets
from tasks.fetch import fetch, fetch_base
from tasks.mix import mix, mixture_inputs
from tasks.mixture import TokenisedMixture
from tasks.quality import Change, changed_rows, compared_with, trained_turns
from tasks.recipe import Base, Recipe, Source
from tasks.registry import Night, require_licences
from tasks.sources import BaseSnapshot, Snapshot
from tasks.store import Store, digest
from tasks.validate import validate


class Data(BaseModel):
    """What a night trains on and evaluates with. `changes`: of each source, since the last night that passed;
    `mixtures`: by candidate; `unmixed`: why there is none for a candidate; `seconds`: wall time by step."""

    model_config = ConfigDict(frozen=True)

    base: BaseSnapshot
    snapshots: dict[str, Snapshot]
    conversations: list[Conversations]
    changes: list[Change]
    mixtures: dict[str, TokenisedMixture]
    unmixed: dict[str, str] = {}
    seconds: dict[str, float]

    @property
    def mixture(self) -> TokenisedMixture:
        """The first candidate's; what is held out is the same in all."""
        return next(iter(self.mixtures.values()))

    def of(self, candidate: str) -> Data:
        """What one candidate is trained on."""
        return self.model_copy(update={"mixtures": {candidate: self.mixtures[candidate]}})


@task(name="fetch", task_run_name="fetch {source.name}", cache_policy=NO_CACHE)
def fetch_source(source: Source) -> Snapshot:
    snapshot = fetch(source, Store.open())
    log.info("  %-12s %6d rows at %s  %s", source.name, snapshot.rows, snapshot.revision[:12], source.uri)
    if snapshot.set_aside:
        reasons = ", ".join(f"{reason} {rows}" for reason, rows in snapshot.set_aside.items())
        log.info("  %-12s not kept, of %d: %s", "", snapshot.rows_in, reasons)
    return snapshot


@task(name="fetch base", task_run_name="fetch base {base.uri}", cache_policy=NO_CACHE)
def fetch_base_model(base: Base) -> BaseSnapshot:
    snapshot = fetch_base(base, Store.open())
    log.info("  %-12s %6.0f MB   at %s  %s", "base", snapshot.size / 1e6, snapshot.revision[:12], base.uri)
    return snapshot


@task(name="validate", task_run_name="validate {source.name}", cache_policy=NO_CACHE)
def validate_source(
    recipe: Recipe, source: Source, snapshot: Snapshot, base: BaseSnapshot
) -> tuple[Conversations, Change]:
    conversations, change = validate(recipe, source, snapshot, base, Store.open())
    reasons = ", ".join(f"{reason} {rows}" for reason, rows in conversations.set_aside.items())
    kept = f"{conversations.rows_out} of {conversations.rows_in} rows pass"
    changed = f"; changed: {changed_rows(conversations)}" if conversations.changed else ""
    log.info("  %-12s %s%s%s", source.name, kept, f"; set aside: {reasons}" if reasons else "", changed)
    whole = conversations.trained_answers == conversations.answers
    log.log(INFO if whole else WARNING, "  %-12s %s", "", trained_turns(conversations))
    log.log(WARNING if change.findings else INFO, "  %-12s %s", "", compared_with(change))
    for finding in change.findings:
        log.warning("  %-12s %s (%s): %s", "", finding.rule, finding.severity, finding.example)
    return conversations, change


@task(name="mix", cache_policy=NO_CACHE)
def mix_splits(recipe: Recipe, conversations: list[Conversations]) -> TokenisedMixture:
    mixture = mix(recipe, conversations, Store.open())
    for name, split in mixture.splits.items():
        log.info("  %-12s %6d rows, %d tokens, %d supervised", name, split.rows, split.tokens, split.supervised_tokens)
    shares = ", ".join(f"{name} {part.reached:.1%} (asked {part.asked:.0%})" for name, part in mixture.shares.items())
    log.info("  shares       %s", shares)
    return mixture


@flow(name="prepare-data", flow_run_name="prepare data: {recipe.name}", persist_result=True, result_serializer="json")
def prepare_data(recipe: Recipe, night: str, candidates: dict[str, Recipe]) -> Data:
    """Fetch every source and the base, let the data gate look at each source, and mix what passes for each candidate.

    `night`: MLflow run id of the night; `candidates`: their recipes by name. Raises Refused when the data gate stops
    the night, BadInput and WorldFailed as the stages do.
    """
    store, seconds = Store.open(), dict[str, float]()
    with Night.attach(night).stage("data") as stage:
        with timed("fetch", seconds):
            base = fetch_base_model(recipe.base)
            snapshots = {source.name: fetch_source(source) for source in recipe.sources}
            stage.inputs(snapshots=snapshots)
            require_licences(recipe, base, snapshots)

        with timed("validate", seconds):
            gated = [look_at(recipe, source, snapshots[source.name], base) for source in recipe.sources]
            if refusals := [str(refusal) for refusal in gated if isinstance(refusal, Refused)]:
                told = {"recipe": recipe.name, "reason": "\n".join(refusals)}
                resource = {"prefect.resource.id": f"nightowl.recipe.{recipe.name}"}
                emit_event(event="nightowl.gate.stopped", resource=resource, payload=told)
                raise Refused(told["reason"])
            passed = [found for found in gated if not isinstance(found, Refused)]
            conversations, since = [source for source, _ in passed], [change for _, change in passed]
            remember(recipe, conversations, since, store)
            for change in since:
                for picture in store.folder(change).glob("drift.*"):
                    stage.artifact(picture, f"drift/{change.source}")

        with timed("mix", seconds):
            mixtures, unmixed = mix_each(candidates, conversations)
            mixture = next(iter(mixtures.values()))
            stage.inputs(mixture, conversations=conversations)
            stage.made(mixture)
            for other in {one.address: one for one in mixtures.values() if one != mixture}.values():
                stage.inputs(other)
            for name, made in mixtures.items():
                for form in ("png", "svg", "html"):
                    stage.artifact(store.folder(made) / f"composition.{form}", name if made != mixture else "")
            # A set that cannot be measured on ends the night before anything is trained.
            stage.artifact(store.folder(check_sets(recipe, mixture, store)) / "docs", "data-gate/evaluation")
            show_data(recipe, snapshots, conversations, mixture, stage)
    return Data(
        base=base,
        snapshots=snapshots,
        conversations=conversations,
        changes=since,
        mixtures=mixtures,
        unmixed=unmixed,
        seconds=seconds,
    )


def mix_each(
    candidates: dict[str, Recipe], conversations: list[Conversations]
) -> tuple[dict[str, TokenisedMixture], dict[str, str]]:
    """A mixture for each candidate, those with the same settings sharing one; and why a candidate has none.

    Raises what mixing raises where no candidate has one.
    """
    by_settings, mixtures = dict[str, TokenisedMixture](), dict[str, TokenisedMixture]()
    failed = dict[str, NightowlError]()
    for name, recipe in candidates.items():
        try:
            settings = digest(mixture_inputs(recipe, conversations))
            if settings not in by_settings:
                by_settings[settings] = mix_splits(recipe, conversations)
            mixtures[name] = by_settings[settings]
        except NightowlError as error:
            failed[name] = error
            if len(failed) == len(candidates):
                raise next(iter(failed.values())) from error
            log.warning("  %s: %s", name, error)
    return mixtures, {name: str(error) for name, error in failed.items()}


def look_at(
    recipe: Recipe, source: Source, snapshot: Snapshot, base: BaseSnapshot
) -> tuple[Conversations, Change] | Refused:
    """One source through the gate; a refusal is returned, so that the night looks at every source before it stops."""
    try:
        return validate_source(recipe, source, snapshot, base)
    except Refused as refusal:
        return refusal
