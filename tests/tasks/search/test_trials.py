"""What was tried survives nights that die, nights beside each other, another space and a candidate that fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import optuna
import pytest

from tasks.errors import WorldFailed
from tasks.recipe import Recipe, resolved
from tasks.search import Outcome, Proposal, Trials
from tasks.search.trials import NIGHTS
from tasks.store import Store

SHARE, RANK = "mixture.reasoning_share", "training.rank"
GOOD = Outcome(gains={"tool_call": 0.5, "final_answer": 0.1}, slacks={"chat_format": 0.1, "held_out_loss": 0.1})
Open = Callable[..., Trials]


@pytest.fixture
def open_sqlite(recipe: Callable[..., Recipe], store: Store) -> Open:
    return lambda *changes: opened(recipe(*changes), store)


@pytest.fixture(params=["sqlite", "postgresql"])
def open_any(
    request: pytest.FixtureRequest, recipe: Callable[..., Recipe], store: Store, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Open]:
    if request.param == "sqlite":
        yield lambda *changes: opened(recipe(*changes), store)
        return
    server: Any = request.getfixturevalue("postgres")
    monkeypatch.setenv("PGPASSWORD", "owner secret")
    place = server.uri(server.new_database().rpartition("/")[2], "owner")
    yield lambda *changes: opened(recipe(f"search.storage={place}", *changes), store)


def opened(recipe: Recipe, store: Store) -> Trials:
    search = resolved(recipe)
    assert search is not None
    return Trials(recipe, search, store)


def values(proposals: list[Proposal]) -> list[Any]:
    return [proposal.values for proposal in proposals]


def test_nights_go_on_from_what_is_known(open_any: Open) -> None:
    first = open_any().take("night-1", [])
    assert [proposal.name for proposal in first] == ["candidate-1", "candidate-2"]
    assert first[0].values == {SHARE: 0.3, RANK: 16}
    assert first[1].recipe.mixture.reasoning_share == first[1].values[SHARE]
    assert first[1].recipe.search is None
    trials = open_any()
    trials.tell(first[0], GOOD)
    trials.tell(first[1], None, "training: out of memory")
    trials.tell(first[1], GOOD)  # it has ended
    second = open_any().take("night-2", [])
    assert not [one for one in values(second) if one in values(first)]
    known = open_any().all()
    assert [one.state for one in known] == ["judged", "failed", "running", "running"]
    assert known[0].outcome == GOOD
    assert known[1].reason == "training: out of memory"


def test_optuna_itself_reads_the_study(open_sqlite: Open, store: Store) -> None:
    first = open_sqlite().take("night-1", [])
    open_sqlite().tell(first[0], GOOD)
    open_sqlite().tell(first[1], None, "it failed")
    study = optuna.load_study(study_name=open_sqlite().study, storage=f"sqlite:///{store.root}/search/demo.db")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE", "FAIL"]
    assert study.best_value == pytest.approx(0.3)


def test_a_night_that_was_killed_leaves_its_candidates_to_the_next(open_any: Open) -> None:
    killed = open_any().take("killed", [])
    assert values(open_any().take("killed", ["killed"])) == values(killed)
    next_night = open_any().take("next", [])
    assert values(next_night) == values(killed)
    assert [proposal.trial for proposal in next_night] == [0, 1]
    assert {one.night for one in open_any().all()} == {"next"}


def test_a_night_killed_half_way_through_its_proposals(open_sqlite: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = values(open_sqlite("name=undisturbed").take("night", []))
    add = Trials._add

    def dying(self: Trials, storage: Any, found: Any, night: str, name: str) -> Any:
        if name == "candidate-2":
            raise KeyboardInterrupt
        return add(self, storage, found, night, name)

    with monkeypatch.context() as patched:
        patched.setattr(Trials, "_add", dying)
        with pytest.raises(KeyboardInterrupt):
            open_sqlite().take("killed", [])
    assert values(open_sqlite().take("next", [])) == whole


def test_a_candidate_that_kills_its_nights_comes_to_an_end(open_sqlite: Open) -> None:
    first = values(open_sqlite().take("night-0", []))
    # Nights that the data gate or a hub ended say nothing of their candidates.
    for night in range(1, NIGHTS + 2):
        assert values(open_sqlite().take(f"night-{night}", [])) == first
    for night in range(NIGHTS + 2, 2 * NIGHTS + 1):
        assert values(open_sqlite().take(f"night-{night}", [], [f"night-{night - 1}"])) == first
    after = values(open_sqlite().take("another", [], [f"night-{2 * NIGHTS}"]))
    assert not [one for one in after if one in first]
    assert [one.reason for one in open_sqlite().all()][:2] == [f"{NIGHTS} nights were killed before it was judged"] * 2


def test_nights_beside_each_other_get_candidates_of_their_own(open_any: Open) -> None:
    names = [f"night-{number}" for number in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = [one for taken in pool.map(lambda name: values(open_any().take(name, names)), names) for one in taken]
    assert len(found) == 6
    assert len({str(one) for one in found}) == 6
    assert sorted(one.night for one in open_any().all()) == sorted(names * 2)


def test_another_space_keeps_what_lies_in_it(open_sqlite: Open) -> None:
    first = open_sqlite("search.candidates=8").take("night-1", [])
    for proposal in first[:7]:
        open_sqlite().tell(proposal, GOOD)
    narrow = f"search.vary=[{{field: {SHARE}, low: 0.1, high: 0.9}}, {{field: training.epochs, low: 1, high: 3}}]"
    changed = open_sqlite(narrow)
    taken = changed.take("night-2", [])
    # The old space's unjudged one is given up; its epochs were the recipe's, so the others count.
    (given_up,) = (one for one in changed.all() if one.state == "failed")
    assert str(given_up.reason).endswith("has changed since")
    assert taken[0].values != {SHARE: 0.3, "training.epochs": 1.0}
    elsewhere = open_sqlite(f"search.vary=[{{field: {SHARE}, low: 0.299, high: 0.301}}]")
    assert elsewhere.take("night-3", ["night-2"])[0].values[SHARE] != 0.3
    assert open_sqlite("search.vary=[{field: training.seed, low: 5, high: 9}]", "training.seed=5").take(
        "night-4", ["night-2", "night-3"]
    )[0].values == {"training.seed": 5}


def test_a_storage_that_is_not_there(open_sqlite: Open, store: Store) -> None:
    nowhere = open_sqlite("search.storage=postgresql://owner@127.0.0.1:9/nothing")
    with pytest.raises(WorldFailed, match=r"127\.0\.0\.1:9/nothing: the history of the search cannot be used"):
        nowhere.all()
    file = Path(store.root, "search", "demo.db")
    file.parent.mkdir(parents=True)
    file.write_text("no database")
    with pytest.raises(WorldFailed, match=r"demo\.db: the history of the search"):
        open_sqlite().take("night", [])
