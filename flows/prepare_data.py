"""Fetch, validate and mix: from the recipe's sources to tokenised splits (pool: data)."""

from __future__ import annotations

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from pydantic import BaseModel, ConfigDict

from flows.record import recording
from flows.screen import log
from tasks.conversations import Conversations
from tasks.errors import Refused
from tasks.fetch import fetch, fetch_base
from tasks.mix import mix
from tasks.mixture import TokenisedMixture
from tasks.recipe import Base, Recipe, Source
from tasks.sources import BaseSnapshot, Snapshot
from tasks.store import Store
from tasks.validate import validate


class Data(BaseModel):
    """What a night trains on and evaluates with."""

    model_config = ConfigDict(frozen=True)

    base: BaseSnapshot
    snapshots: dict[str, Snapshot]
    conversations: dict[str, Conversations]
    mixture: TokenisedMixture


@task(name="fetch", task_run_name="fetch {source.name}", cache_policy=NO_CACHE)
def fetch_source(source: Source) -> Snapshot:
    snapshot = fetch(source, Store.open())
    log.info("  %-12s %6d rows at %s  %s", source.name, snapshot.rows, snapshot.revision[:12], source.uri)
    return snapshot


@task(name="fetch base", task_run_name="fetch base {base.uri}", cache_policy=NO_CACHE)
def fetch_base_model(base: Base) -> BaseSnapshot:
    snapshot = fetch_base(base, Store.open())
    log.info("  %-12s %6.0f MB   at %s  %s", "base", snapshot.size / 1e6, snapshot.revision[:12], base.uri)
    return snapshot


@task(name="validate", task_run_name="validate {source.name}", cache_policy=NO_CACHE)
def validate_source(recipe: Recipe, source: Source, snapshot: Snapshot, base: BaseSnapshot) -> Conversations:
    conversations = validate(recipe, source, snapshot, base, Store.open())
    reasons = ", ".join(f"{reason} {rows}" for reason, rows in conversations.set_aside.items())
    kept = f"{conversations.rows_out} of {conversations.rows_in} rows pass"
    log.info("  %-12s %s%s", source.name, kept, f"; set aside: {reasons}" if reasons else "")
    return conversations


@task(name="mix", cache_policy=NO_CACHE)
def mix_splits(recipe: Recipe, conversations: list[Conversations]) -> TokenisedMixture:
    mixture = mix(recipe, conversations, Store.open())
    for name, split in mixture.splits.items():
        log.info("  %-12s %6d rows, %d tokens, %d supervised", name, split.rows, split.tokens, split.supervised_tokens)
    shares = ", ".join(f"{name} {part.reached:.1%} (asked {part.asked:.0%})" for name, part in mixture.shares.items())
    log.info("  shares       %s", shares)
    return mixture


@flow(name="prepare-data", flow_run_name="prepare data: {recipe.name}", validate_parameters=False)
def prepare_data(recipe: Recipe, night: str | None = None) -> Data:
    """Fetch every source and the base, let the data gate look at each source, and mix what passes.

    `night`: MLflow run id of the night, None to record nothing there. Raises Refused when the data
    gate stops the night, BadInput and WorldFailed as the stages do.
    """
    with recording(night, "data") as stage:
        log.info("fetch")
        base = fetch_base_model(recipe.base)
        snapshots = {source.name: fetch_source(source) for source in recipe.sources}
        stage.sources(snapshots, base)

        log.info("validate")
        conversations: dict[str, Conversations] = {}
        refusals: list[Refused] = []
        for source in recipe.sources:
            try:
                conversations[source.name] = validate_source(recipe, source, snapshots[source.name], base)
            except Refused as refusal:
                # Every source is looked at before the night stops: one report, not one a night.
                refusals.append(refusal)
        if refusals:
            raise Refused("\n".join(str(refusal) for refusal in refusals))

        log.info("mix")
        mixture = mix_splits(recipe, list(conversations.values()))
        stage.mixture(mixture, conversations)
    return Data(base=base, snapshots=snapshots, conversations=conversations, mixture=mixture)
