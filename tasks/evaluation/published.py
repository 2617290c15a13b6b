"""Benchmarks by name or by their place on a hub: pinned, checked and kept in the store as any source is."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from tasks.sources import HUBS, Permission, Unreachable, parse_uri, resolve, write_data
from tasks.store import Manifest, Store

_log = logging.getLogger(__name__)
# Where their makers publish what a score on them is usually taken on.
NAMES: Mapping[str, str] = {
    "gsm8k": "hf://openai/gsm8k?subset=main&split=test",
    "ifeval": "hf://google/IFEval",
    "mmlu": "hf://cais/mmlu?subset=all&split=test",
}


class Benchmark(Manifest):
    """A published benchmark at one commit. Files lie under `data/`, as they are on the hub."""

    kind = "benchmark"

    uri: str
    revision: str
    requested: str | None
    rows: int
    size: int
    licence: str | None


def address(place: str) -> str | None:
    """The hub's address of what a recipe names; None for what is on this machine."""
    named = NAMES.get(place)
    if named and not Path(place).exists():
        return named
    return place if place.startswith(tuple(f"{scheme}://" for scheme in HUBS)) else None


@cache  # mixing and evaluating one night look at one commit
def fetched(place: str, field: str, root: Path) -> Path:
    """The folder of a benchmark's files at what its hub's address points at now, in the store at `root`.

    Where the hub cannot be reached, the latest that the store has. Raises BadInput and WorldFailed as sources do.
    """
    store, uri = Store(root), parse_uri(place, field=field)
    try:
        pin = resolve(uri)
    except Unreachable as error:
        kept = [one for one in store.all(Benchmark) if one.uri == place]
        if not kept:
            raise
        _log.warning("%s Going on with commit %s of it.", error, kept[-1].revision)
        return store.folder(kept[-1]) / "data"

    def build(work: Path) -> dict[str, Any]:
        fields = write_data(uri, pin, work, Permission(), None, None)
        return {name: value for name, value in fields.items() if name in Benchmark.model_fields}

    return store.folder(store.make(Benchmark, {"uri": place, "revision": pin.revision}, build)[0]) / "data"
