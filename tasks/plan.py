"""Plan: what a night would do, and whether it fits this machine, without doing any of it.

Each stage's address follows from its inputs, so the store tells what a night would find done. Where an
input is not known yet (rows of a source that has not been fetched), what follows is to do as well.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.conversations import Conversations
from tasks.doctor import GIB, MIN_FREE_DISK, MIN_FREE_MEMORY, free_memory
from tasks.evaluation import Verdict
from tasks.fetch import base_inputs, source_inputs
from tasks.gate import year
from tasks.mix import mixture_inputs
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot, Snapshot
from tasks.store import Store, home
from tasks.train import adapter_inputs
from tasks.training import Adapter
from tasks.validate import conversations_inputs


class Stage(BaseModel):
    """One step of a night: whether the store has its output, and what it is."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: Literal["in the store", "to do"]
    detail: str


class Need(BaseModel):
    """Something the night takes from this machine, estimated, and whether it is there."""

    model_config = ConfigDict(frozen=True)

    name: str
    fits: bool
    detail: str


class Plan(BaseModel):
    """What a night would do."""

    model_config = ConfigDict(frozen=True)

    stages: tuple[Stage, ...]
    needs: tuple[Need, ...]


def plan(recipe: Recipe, store: Store) -> Plan:
    """What a night of this recipe would do now.

    Asks each source what it points at; fetches, trains and writes nothing. Raises BadInput and WorldFailed
    as `fetch` does for a source that cannot be resolved.
    """
    base_pinned = base_inputs(recipe.base)
    base = store.find(BaseSnapshot, Store.address(BaseSnapshot, base_pinned))
    stages = [_stage("fetch base", base, f"{recipe.base.uri} at {base_pinned['revision'][:12]}")]
    gated: list[Conversations | None] = []
    for source in recipe.sources:
        pinned = source_inputs(source, store)
        snapshot = store.find(Snapshot, Store.address(Snapshot, pinned))
        rows = f", {snapshot.rows} rows" if snapshot else ""
        stages.append(_stage(f"fetch {source.name}", snapshot, f"{source.uri} at {pinned['revision'][:12]}{rows}"))
        found = None
        if snapshot and base:
            inputs = conversations_inputs(source, snapshot, recipe.base, base, recipe.quality)
            found = store.find(Conversations, Store.address(Conversations, inputs))
        gated.append(found)
    for source, passed in zip(recipe.sources, gated, strict=True):
        detail = f"{passed.rows_out} of {passed.rows_in} rows pass" if passed else "the data gate"
        stages.append(_stage(f"validate {source.name}", passed, detail))
    mixture = adapter = None
    known = [found for found in gated if found and found.passed]
    if len(known) == len(gated):
        mixture = store.find(TokenisedMixture, Store.address(TokenisedMixture, mixture_inputs(recipe, known)))
    if mixture and base:
        adapter = store.find(Adapter, Store.address(Adapter, adapter_inputs(recipe, mixture, base)))
    stages += _after(recipe, mixture, adapter, store)
    return Plan(stages=tuple(stages), needs=tuple(_needs(base, adapter, store)))


def _stage(name: str, found: object | None, detail: str) -> Stage:
    return Stage(name=name, state="in the store" if found else "to do", detail=detail)


def _after(recipe: Recipe, mixture: TokenisedMixture | None, adapter: Adapter | None, store: Store) -> Iterator[Stage]:
    """The stages from mixing on."""
    rows = f"{mixture.splits['train'].rows} rows to train on" if mixture else "splits and shares"
    yield _stage("mix", mixture, rows)
    method = f"{recipe.training.method}, rank {recipe.training.rank}"
    yield _stage("train", adapter, f"{method}, {adapter.steps} steps" if adapter else method)
    judged = [verdict for verdict in store.all(Verdict) if adapter and verdict.candidate == adapter.address]
    suites = ", ".join(f"{suite.name} ({suite.role})" for suite in recipe.evaluation.suites)
    said = f"{judged[-1].decision}: {suites}" if judged else f"{suites}; {year(recipe, store)}"
    yield _stage("evaluate and gate", judged or None, said)


def _needs(base: BaseSnapshot | None, adapter: Adapter | None, store: Store) -> Iterator[Need]:
    """Disk and memory, against what is free here; training's memory as earlier nights on this base measured it."""
    disk = shutil.disk_usage(home()).free
    yield Need(
        name="disk", fits=disk >= MIN_FREE_DISK, detail=f"{MIN_FREE_DISK / GIB:.0f} GiB, {disk / GIB:.0f} GiB are free"
    )
    memory = free_memory()
    if adapter:
        yield Need(name="memory", fits=memory >= MIN_FREE_MEMORY, detail="nothing is left to train")
        return
    peaks = [known.peak_memory for known in store.all(Adapter) if base and known.base == base.address]
    if not peaks:
        detail = f"unknown until a first night on this base has measured it; {memory / GIB:.1f} GiB are free"
        yield Need(name="memory", fits=memory >= MIN_FREE_MEMORY, detail=detail)
        return
    detail = f"training took {max(peaks) / GIB:.1f} GiB on earlier nights, {memory / GIB:.1f} GiB are free"
    yield Need(name="memory", fits=memory >= max(peaks), detail=detail)
