"""One candidate's failure is not the others'; where all fail, the night does, and the search knows of each."""

from __future__ import annotations

from typing import Any

import pytest

from flows import train_adapter
from flows.prepare_data import Data
from tasks.errors import NightowlError, Preempted, WorldFailed
from tasks.propose import propose
from tasks.recipe import load, resolved
from tasks.search import Trials
from tasks.store import Store

RECIPE = load("demo", ["search.vary=[{field: training.rank, low: 8, high: 32}]", "search.candidates=3"])[0]
NO_MEMORY = WorldFailed("training", "out of memory", "Lower training.rank.")


def train(monkeypatch: pytest.MonkeyPatch, ends: dict[str, NightowlError | None]) -> Any:
    """Train the night's candidates, each of which ends so; `candidate-3` could not even be mixed."""

    def placed(recipe: object, flow: object, name: str) -> Any:
        def run(*_: object) -> str:
            if error := ends[name]:
                raise error
            return f"adapter of {name}"

        return run

    monkeypatch.setattr(train_adapter, "placed", placed)
    proposals = propose(RECIPE, "night", [], Store.open())
    mixtures: Any = dict.fromkeys(ends)
    data = Data.model_construct(mixtures=mixtures, unmixed={"candidate-3": "its share cannot be reached"})
    return train_adapter.train_each(RECIPE, proposals, data, "night")


def states() -> list[tuple[str, str | None]]:
    search = resolved(RECIPE)
    assert search
    return [(one.state, one.reason) for one in Trials(RECIPE, search, Store.open()).all()]


def test_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    adapters, failed = train(monkeypatch, {"candidate-1": NO_MEMORY, "candidate-2": None})
    assert adapters == {"candidate-2": "adapter of candidate-2"}
    assert failed == {"candidate-1": str(NO_MEMORY), "candidate-3": "its share cannot be reached"}
    assert [state for state, _ in states()] == ["running"] * 3  # until the night ends


def test_where_all_fail_the_night_does(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(WorldFailed, match="out of memory"):
        train(monkeypatch, {"candidate-1": NO_MEMORY, "candidate-2": NO_MEMORY})
    assert states() == [("failed", str(NO_MEMORY))] * 2 + [("failed", "its share cannot be reached")]


def test_a_night_that_is_told_to_stop_stops(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Preempted):
        train(monkeypatch, {"candidate-1": Preempted("training", "was told to stop"), "candidate-2": None})
    assert [state for state, _ in states()] == ["running"] * 3
