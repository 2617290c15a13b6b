"""Train one candidate (pool: gpu)."""

from __future__ import annotations

import time
from typing import cast
from uuid import UUID

from prefect import flow, task
from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.cache_policies import NO_CACHE

from flows.prepare_data import Data
from flows.screen import log, progress
from tasks.recipe import Recipe
from tasks.registry import Night
from tasks.store import Store
from tasks.train import train
from tasks.training import Adapter, Progress

CANDIDATE = "candidate-1"
ARTIFACT_SECONDS = 2
"""Least time between two updates of the progress artifact: each is a request to the server."""


@task(name="train", cache_policy=NO_CACHE)
def train_candidate(recipe: Recipe, data: Data, night: str) -> Adapter:
    artifact = cast(UUID, create_progress_artifact(0.0, key="training", description="Waiting for the first step"))
    last = 0.0
    with Night.attach(night).stage("train", CANDIDATE) as stage, progress("training") as advance:
        stage.inputs(data.mixture, data.snapshots, data.conversations)
        stage.params({f"training.{name}": value for name, value in recipe.training})

        def on_progress(now: Progress) -> None:
            nonlocal last
            left = (now.steps - now.step) * now.seconds / max(now.step, 1)
            note = f"loss {now.loss:.3f}, {now.tokens_per_second:.0f} tokens/s"
            advance(now.step, now.steps, note)
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


@flow(name="train-adapter", flow_run_name="train: {recipe.name}", persist_result=True, result_serializer="json")
def train_adapter(recipe: Recipe, data: Data, night: str) -> Adapter:
    """Train the recipe's candidate on a mixture, in a process of its own. `night`: its MLflow run id."""
    adapter = train_candidate(recipe, data, night)
    figures = f"{adapter.steps} steps, loss {adapter.loss:.3f}, peak memory {adapter.peak_memory / 1e9:.1f} GB"
    log.info("  adapter %s: %s", adapter.short, figures)
    return adapter
