"""One candidate's failure is not the others'; where all fail, the night does, and the search knows of each."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from flows import train_adapter
from flows.prepare_data import Data
from tasks.errors import NightowlError, Preempted, WorldFailed
from tasks.propose import propose
from tasks.recipe import Recipe, load, resolved
from tasks.search import Trials
from tasks.store import Store
from tasks.training import Adapter

RECIPE = load("demo", ["search.vary=[{field: training.rank, low: 8, high: 32}]", "search.candidates=3"])[0]
NO_MEMORY = WorldFailed("training", "out of memory", "Lower training.rank.")


def train(
    monkeypatch: pytest.MonkeyPatch,
    ends: dict[str, NightowlError | None],
    recipe: Recipe = RECIPE,
    together: threading.Barrier | None = None,
) -> Any:
    """Train the night's candidates, each of which ends so; `candidate-3` could not even be mixed. With a barrier, none
    ends before all have begun."""

    def placed(recipe: object, flow: object, name: str, there: object) -> Any:
        def run(*_: object) -> Adapter:
            if together:
                together.wait(30)
            if error := ends[name]:
                raise error
            return Adapter.model_construct(address=f"adapter of {name}")

        return run

    monkeypatch.setattr(train_adapter, "placed", placed)
    proposals = propose(RECIPE, "night", [], Store.open())
    mixtures: Any = dict.fromkeys(ends)
    data = Data.model_construct(mixtures=mixtures, unmixed={"candidate-3": "its share cannot be reached"})
    adapters, failed = train_adapter.train_each(recipe, proposals, data, "night")
    return {name: adapter.address for name, adapter in adapters.items()}, failed


def states() -> list[tuple[str, str | None]]:
    search = resolved(RECIPE)
    assert search
    return [(one.state, one.reason) for one in Trials(RECIPE, search, Store.open()).all()]


def test_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters, failed = train(monkeypatch, {"candidate-1": NO_MEMORY, "candidate-2": None})
    assert adapters == {"candidate-2": "adapter of candidate-2"}
    assert failed == {"candidate-1": str(NO_MEMORY), "candidate-3": "its share cannot be reached"}
    assert [state for state, _ in states()] == ["running"] * 3  # until the night ends


def test_on_the_pools_all_are_trained_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated pools; that they are asked for as children of the night is tested on real workers."""
    pools = RECIPE.model_copy(update={"placement": "pools"})
    ends: dict[str, NightowlError | None] = {"candidate-1": NO_MEMORY, "candidate-2": None}
    adapters, failed = train(monkeypatch, ends, pools, threading.Barrier(2))
    assert adapters == {"candidate-2": "adapter of candidate-2"}
    assert failed["candidate-1"] == str(NO_MEMORY)


def test_where_all_fail_the_night_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorldFailed, match="out of memory"):
        train(monkeypatch, {"candidate-1": NO_MEMORY, "candidate-2": NO_MEMORY})
    assert states() == [("failed", str(NO_MEMORY))] * 2 + [("failed", "its share cannot be reached")]


def test_a_night_that_is_told_to_stop_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Preempted):
        train(monkeypatch, {"candidate-1": Preempted("training", "was told to stop"), "candidate-2": None})
    assert [state for state, _ in states()] == ["running"] * 3
