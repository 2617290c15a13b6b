"""Train the candidates, each in a flow run of its own (pool: gpu).

Here they run one after the other. On the pools all are asked for at once, and the pool runs as many as its concurrency
limit and its workers allow: a Job with a GPU each on Kubernetes, elsewhere a worker a GPU, with CUDA_VISIBLE_DEVICES.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from pathlib import Path
from threading import Thread
from typing import cast
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from flows.placement import placed
from flows.prepare_data import Data
from flows.screen import libraries, log, progress
from tasks.errors import NightowlError, Preempted
from tasks.propose import tell
from tasks.recipe import Recipe
from tasks.registry import Night
from tasks.search import Proposal
from tasks.store import Store
from tasks.train import adapter_inputs, log_file, train
from tasks.training import Adapter, Progress

LOG_BYTES = 65_536
"""Most that is passed on at once of what the training libraries print."""
ARTIFACT_SECONDS = 2
"""Least time between two updates of the progress artifact: each is a request to the server."""


@task(name="train", cache_policy=NO_CACHE)
def train_candidate(proposal: Proposal, data: Data, night: str) -> Adapter:
    recipe = proposal.recipe
    artifact = cast(UUID, create_progress_artifact(0.0, key="training", description="Waiting for the first step"))
    last = 0.0
    with Night.attach(night).stage("train", proposal.name) as stage, progress("training") as advance:
        stage.inputs(data.mixture, data.snapshots, data.conversations)
        stage.params({f"training.{name}": value for name, value in recipe.training})
        stage.params({f"search.{field}": value for field, value in proposal.values.items()})

        pass_on = _reader(log_file(recipe, data.mixture, data.base, Store.open()))

        def on_progress(now: Progress) -> None:
            nonlocal last
            left = (now.steps - now.step) * now.seconds / max(now.step, 1)
            note = f"loss {now.loss:.3f}, {now.tokens_per_second:.0f} tokens/s"
            advance(now.step, now.steps, note)
            pass_on()
            figures = now.model_dump(exclude={"step", "steps"}, exclude_none=True)
            stage.metrics(figures, step=now.step)
            if time.monotonic() - last >= ARTIFACT_SECONDS or now.step == now.steps:
                last = time.monotonic()
                text = f"Step {now.step} of {now.steps}: {note}, {left:.0f} s left"
                update_progress_artifact(artifact, 100 * now.step / now.steps, description=text)

        adapter = train(recipe, data.mixture, data.base, Store.open(), on_progress)
        stage.made(adapter)
    update_progress_artifact(artifact, 100.0, description=f"Trained: adapter {adapter.short}")
    return adapter


def _reader(path: Path) -> Callable[[], None]:
    """Passes on to the run's log what the training libraries print from now on, but progress bars."""
    said = path.stat().st_size if path.exists() else 0

    def pass_on() -> None:
        nonlocal said
        if not path.exists():
            return
        with open(path, "rb") as file:
            file.seek(said)
            new = file.read(LOG_BYTES)
        whole, end, rest = new.rpartition(b"\n")
        # A line that fills the bound is no line that a person reads.
        said += len(whole) + len(end) + (len(rest) if len(rest) == LOG_BYTES else 0)
        for line in whole.decode(errors="replace").split("\n"):
            if line.strip() and "\r" not in line:
                libraries.info("%s", line.rstrip())

    return pass_on


@flow(
    name="train-adapter",
    flow_run_name="train: {proposal.recipe.name} {proposal.name}",
    persist_result=True,
    result_serializer="json",
)
def train_adapter(proposal: Proposal, data: Data, night: str) -> Adapter:
    """Train one candidate on its mixture, in a process of its own. `night`: its MLflow run id."""
    adapter = train_candidate(proposal, data, night)
    figures = f"{adapter.steps} steps, loss {adapter.loss:.3f}, peak memory {adapter.peak_memory / 1e9:.1f} GB"
    log.info("  adapter %s: %s", adapter.short, figures)
    return adapter


def train_each(
    recipe: Recipe, proposals: Sequence[Proposal], data: Data, night: str
) -> tuple[dict[str, Adapter], dict[str, str]]:
    """The candidates' adapters by name, and why a candidate has none: one that fails does not end the others' night.

    Raises what training raised where no candidate has one.
    """
    adapters, failed = dict[str, Adapter](), dict(data.unmixed)
    last: NightowlError | None = None
    mixed = [proposal for proposal in proposals if proposal.name not in failed]
    for proposal, made in _trained(recipe, mixed, data, night):
        if isinstance(made, Adapter):
            adapters[proposal.name] = made
        else:
            last, failed[proposal.name] = made, str(made)
            log.warning("  %s: %s", proposal.name, made)
    if last and not adapters:
        tell(recipe, proposals, {}, {}, failed, Store.open())
        raise last
    return adapters, failed


def _trained(
    recipe: Recipe, proposals: Sequence[Proposal], data: Data, night: str
) -> Iterator[tuple[Proposal, Adapter | NightowlError]]:
    """Each candidate with its adapter or with what its training raised, in their order. Raises Preempted."""
    store = Store.open()

    def trained(proposal: Proposal) -> Adapter | NightowlError:
        if proposal.values:
            log.info("  %s: %s", proposal.name, ", ".join(f"{name} {v}" for name, v in proposal.values.items()))
        try:
            own = data.of(proposal.name)

            def there() -> bool:
                inputs = adapter_inputs(proposal.recipe, own.mixture, own.base)
                return store.find(Adapter, Store.address(Adapter, inputs)) is not None

            flow = placed(recipe, train_adapter, proposal.name, there)
            return flow(proposal, own, night)
        except Preempted:
            raise
        except NightowlError as error:
            return error

    if recipe.placement == "here" or len(proposals) < 2:
        yield from ((proposal, trained(proposal)) for proposal in proposals)
        return
    asked = [(proposal, Future[Adapter | NightowlError]()) for proposal in proposals]

    def answer(proposal: Proposal, to: Future[Adapter | NightowlError]) -> None:
        try:
            to.set_result(trained(proposal))
        except BaseException as error:
            to.set_exception(error)

    for one in asked:
        # As a child of this flow run, which the context knows; a night that is told to stop waits for none of them.
        Thread(target=copy_context().run, args=(answer, *one), daemon=True).start()
    yield from ((proposal, to.result()) for proposal, to in asked)
