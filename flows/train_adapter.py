"""Train one candidate (pool: gpu)."""

from __future__ import annotations

import time

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from flows.record import recording
from flows.screen import log, progress
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot, Snapshot
from tasks.store import Store
from tasks.train import train
from tasks.training import Adapter, Progress

ARTIFACT_SECONDS = 2
"""Least time between two updates of the progress artifact: each is a request to the server."""


@task(name="train", cache_policy=NO_CACHE)
def train_candidate(
    recipe: Recipe, mixture: TokenisedMixture, base: BaseSnapshot, snapshots: dict[str, Snapshot], night: str | None
) -> Adapter:
    artifact = create_progress_artifact(0.0, key="training", description="Waiting for the first step")
    last = 0.0
    with recording(night, "train") as stage, progress("training") as advance:
        stage.training(recipe, mixture, base, snapshots)

        def on_progress(now: Progress) -> None:
            nonlocal last
            left = (now.steps - now.step) * now.seconds / max(now.step, 1)
            note = f"loss {now.loss:.3f}, {now.tokens_per_second:.0f} tokens/s"
            advance(now.step, now.steps, note)
            stage.progress(now)
            if time.monotonic() - last >= ARTIFACT_SECONDS or now.step == now.steps:
                last = time.monotonic()
                text = f"Step {now.step} of {now.steps}: {note}, {left:.0f} s left"
                update_progress_artifact(artifact, 100 * now.step / now.steps, description=text)

        adapter = train(recipe, mixture, base, Store.open(), on_progress)
        stage.adapter(adapter)
    update_progress_artifact(artifact, 100.0, description=f"Trained: adapter {adapter.short}")
    return adapter


@flow(name="train-adapter", flow_run_name="train: {recipe.name}", validate_parameters=False)
def train_adapter(
    recipe: Recipe,
    mixture: TokenisedMixture,
    base: BaseSnapshot,
    snapshots: dict[str, Snapshot],
    night: str | None = None,
) -> Adapter:
    """Train the recipe's candidate on a mixture, in a process of its own."""
    log.info("train")
    adapter = train_candidate(recipe, mixture, base, snapshots, night)
    log.info("  adapter %s: %d steps, loss %.3f, peak memory %.1f GB", adapter.short, adapter.steps, adapter.loss,
             adapter.peak_memory / 1e9)  # fmt: skip
    return adapter
