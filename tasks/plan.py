"""Plan: what a night would do, and whether it fits this machine, without doing any of it.

Each stage's address follows from its inputs, so the store tells what a night would find done. Where an
input is not known yet (rows of a source that has not been fetched), what follows is to do as well.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.conversations import Conversations
from tasks.doctor import GIB, MIN_FREE_DISK, MIN_FREE_MEMORY, free_memory
from tasks.errors import BadInput
from tasks.evaluation import Verdict
from tasks.fetch import base_inputs, source_inputs
from tasks.gate import year
from tasks.mix import mixture_inputs
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe, Source
from tasks.sources import STREAMS, BaseSnapshot, Snapshot, parse_uri
from tasks.store import Store, home
from tasks.train import adapter_inputs, calibration
from tasks.training import Adapter, estimate, fitting, longest, shape_of, steps
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


def plan(recipe: Recipe, store: Store, device_memory: str | None = None, calibrate: bool = False) -> Plan:
    """What a night of this recipe would do now; with `device_memory`, such as "24GB", on a GPU of that size.

    Asks each source what it points at; fetches and writes nothing, and trains nothing but, with `calibrate`, a few
    steps that are thrown away. Raises BadInput and WorldFailed as `fetch` does for a source that cannot be resolved,
    and BadInput for a calibration of what is not in the store yet.
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
        gated.append(_gated(recipe, source, snapshot, base, store))
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
    needs = [_disk(), _memory(recipe, base, mixture, adapter, store, device_memory)]
    if calibrate and not (mixture and base):
        raise BadInput("--calibrate", "a mixture", "is not in the store yet", "Run `nightowl mix` first.")
    if mixture and base and not adapter and device_memory is None:
        needs.append(_time(recipe, base, mixture, store, calibrate))
    return Plan(stages=tuple(stages), needs=tuple(needs))


def prepared(recipe: Recipe, store: Store) -> TokenisedMixture | None:
    """The mixture of what the sources are now, where the store has it and all that it is made of.

    Asks each source what it points at, and raises as `fetch` does for one that cannot be resolved. None where one is a
    stream: it would have to be read to tell, and then once more to be kept.
    """
    if any(parse_uri(source.uri, field=f"sources.{source.name}.uri").scheme in STREAMS for source in recipe.sources):
        return None
    base = store.find(BaseSnapshot, Store.address(BaseSnapshot, base_inputs(recipe.base)))
    gated: list[Conversations] = []
    for source in recipe.sources:
        snapshot = store.find(Snapshot, Store.address(Snapshot, source_inputs(source, store)))
        found = _gated(recipe, source, snapshot, base, store)
        if found is None or not found.passed:
            return None
        gated.append(found)
    return store.find(TokenisedMixture, Store.address(TokenisedMixture, mixture_inputs(recipe, gated)))


def _gated(
    recipe: Recipe, source: Source, snapshot: Snapshot | None, base: BaseSnapshot | None, store: Store
) -> Conversations | None:
    """What the data gate has made of a source, where the store has it."""
    if snapshot is None or base is None:
        return None
    inputs = conversations_inputs(source, snapshot, recipe.base, base, recipe.quality)
    return store.find(Conversations, Store.address(Conversations, inputs))


def _stage(name: str, found: object | None, detail: str) -> Stage:
    return Stage(name=name, state="in the store" if found else "to do", detail=detail)


def _after(recipe: Recipe, mixture: TokenisedMixture | None, adapter: Adapter | None, store: Store) -> Iterator[Stage]:
    """The stages from mixing on."""
    rows = f"{mixture.splits['train'].rows} rows to train on" if mixture else "splits and shares"
    yield _stage("mix", mixture, rows)
    method: str = recipe.training.method
    method += f", rank {recipe.training.rank}" * (method != "full")
    yield _stage("train", adapter, f"{method}, {adapter.steps} steps" if adapter else method)
    judged = [verdict for verdict in store.all(Verdict) if adapter and verdict.candidate == adapter.address]
    suites = ", ".join(f"{suite.name} ({suite.role})" for suite in recipe.evaluation.suites)
    said = f"{judged[-1].decision}: {suites}" if judged else f"{suites}; {year(recipe, store)}"
    yield _stage("evaluate and gate", judged or None, said)


def _disk() -> Need:
    disk = shutil.disk_usage(home()).free
    detail = f"{MIN_FREE_DISK / GIB:.0f} GiB, {disk / GIB:.0f} GiB are free"
    return Need(name="disk", fits=disk >= MIN_FREE_DISK, detail=detail)


def _memory(
    recipe: Recipe,
    base: BaseSnapshot | None,
    mixture: TokenisedMixture | None,
    adapter: Adapter | None,
    store: Store,
    device_memory: str | None,
) -> Need:
    """Training's memory as estimated from the base's config, against what is free on the device; and what would fit."""
    gpu, memory = _device(device_memory)
    sharing = 1 if gpu else recipe.training.processes  # of a machine without GPU, all take from the same memory
    memory //= sharing
    free = f"{memory / GIB:.1f} GiB are {'there' if device_memory else 'free'}{' for each process' * (sharing > 1)}"
    if adapter and device_memory is None:
        return Need(name="memory", fits=memory >= MIN_FREE_MEMORY, detail="nothing is left to train")
    if base is None:
        detail = f"unknown until the base is fetched; {free}"
        return Need(name="memory", fits=memory >= MIN_FREE_MEMORY, detail=detail)
    training = recipe.training
    try:
        shape = shape_of(store.folder(base), training)
    except (OSError, ValueError, AttributeError) as error:
        detail = f"cannot be told from this base's config ({error}); {free}"
        return Need(name="memory", fits=memory >= MIN_FREE_MEMORY, detail=detail)
    length = _longest_row(store, mixture) if mixture else recipe.base.max_length
    micro = fitting(shape, training, length=length, memory=memory, gpu=gpu)
    needed = estimate(shape, training, length=length, micro=micro or 1, gpu=gpu)
    parts = ", ".join(f"{name} {size / GIB:.1f}" for name, size in needed.model_dump().items() if size > 0.05 * GIB)
    rows = f"{micro or 1} row{'s' * (micro > 1)} of {'' if mixture else 'up to '}{length} tokens a pass"
    said = f"about {needed.total / GIB:.1f} GiB for {rows} ({parts}); {free}"
    passes = training.batch_size // (training.processes * training.nodes * micro) if micro else 0
    if not micro:
        most = longest(shape, training, memory=memory, gpu=gpu)
        said += f"; base.max_length up to {most} would fit" if most else "; no row would fit"
        said += ", or method qlora" * (training.method != "qlora")
        together = training.processes * training.nodes > 1
        said += ", or training.sharding base" * (
            gpu and together and training.sharding == "none" and training.method != "full"
        )
    elif passes > 1:
        said += f"; training.micro_batch_size {micro} takes {passes} passes a step"
    peaks = [known.peak_memory for known in store.all(Adapter) if known.base == base.address]
    if peaks and device_memory is None:
        said += f"; earlier nights took up to {max(peaks) / GIB:.1f} GiB"
    if gpu:
        said += "; an account of tensors that was never measured on a GPU"
    return Need(name="memory", fits=micro > 0, detail=said)


def _device(stated: str | None) -> tuple[bool, int]:
    """Whether training would run on a GPU, and the bytes that it may take there."""
    if stated is not None:
        size = re.fullmatch(r"(\d+(?:\.\d+)?) ?(GB|GiB)", stated)
        if size is None:
            raise BadInput("--device-memory", stated, "is not a size", "For example --device-memory 24GB.")
        return True, int(float(size[1]) * (GIB if size[2] == "GiB" else 10**9))
    import torch

    if torch.cuda.is_available():
        return True, torch.cuda.mem_get_info()[0]
    return False, free_memory()


def _longest_row(store: Store, mixture: TokenisedMixture) -> int:
    """Tokens of the longest row to train on."""
    import polars as pl

    rows = pl.scan_parquet(store.folder(mixture) / "train.parquet")
    return int(rows.select(pl.col("input_ids").list.len().max()).collect().item())


def _time(recipe: Recipe, base: BaseSnapshot, mixture: TokenisedMixture, store: Store, calibrate: bool) -> Need:
    """Training's time, at the speed of a few steps now or of the latest night on this base and device."""
    training, split = recipe.training, mixture.splits["train"]
    total = steps(split.rows, batch_size=training.batch_size, epochs=training.epochs, max_steps=training.max_steps)
    tokens = split.tokens * min(training.epochs, total * training.batch_size / split.rows)
    if calibrate:
        found = calibration(recipe, mixture, base, store)
        minutes = (tokens / found.tokens_per_second + found.around_seconds) / 60
        detail = f"training takes about {minutes:.0f} minutes, {total} steps at {found.tokens_per_second:.0f} tokens/s"
        detail += (
            f" as measured over {found.steps} steps now, and {found.around_seconds:.0f} s around them; peak memory "
        )
        detail += f"of these {found.peak_memory / GIB:.1f} GiB, {found.micro_batch_size} rows a pass"
        return Need(name="time", fits=True, detail=detail)
    nights = [known for known in store.all(Adapter) if known.base == base.address and known.seconds > 0]
    if not nights:
        unknown = f"{total} steps; how long they take is not known before a first night: --calibrate trains a few now"
        return Need(name="time", fits=True, detail=unknown)
    speed = nights[-1].tokens / nights[-1].seconds
    detail = f"training takes about {tokens / speed / 60:.0f} minutes at the {speed:.0f} tokens/s of the latest night"
    return Need(name="time", fits=True, detail=f"{detail} on this base, {total} steps")
