"""What a search is told of a night's candidates, from their scores."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from tasks.evaluation import Scores, SuiteScore
from tasks.propose import outcome, propose, tell
from tasks.recipe import load, resolved
from tasks.registry import NightRecord
from tasks.search import Trials
from tasks.store import Store

VARY = "search.vary=[{field: training.rank, low: 8, high: 32}]"
BASE = {"tool_call": 0.1, "final_answer": 0.2, "chat_format": 0.9, "held_out_loss": 2.0}
CHAMPION = {"tool_call": 0.5, "final_answer": 0.6, "chat_format": 1.0, "held_out_loss": 1.8}


def scores(adapter: str | None, means: Mapping[str, float]) -> Scores:
    suites = {
        name: SuiteScore(items=9, mean=mean, unit="", higher_is_better=name != "held_out_loss", digest=name)
        for name, mean in means.items()
    }
    return Scores(
        address="0" * 64, inputs={}, files={}, made_at="", base="base", adapter=adapter, suites=suites, seconds=1
    )


def test_targets_are_held_against_the_base_and_guards_against_the_champion() -> None:
    recipe, _ = load("demo", [VARY])
    found = CHAMPION | {"tool_call": 0.7, "chat_format": 0.85, "held_out_loss": 1.85}
    came_to = outcome(recipe, scores(None, BASE), scores("champion", CHAMPION), scores("new", found))
    assert came_to.gains == pytest.approx({"tool_call": 0.6, "final_answer": 0.4})
    assert came_to.slacks == pytest.approx({"chat_format": -0.05, "held_out_loss": 0.05})  # margins of 0.1


def test_without_a_search_the_recipe_is_the_candidate(store: Store) -> None:
    recipe, _ = load("demo")
    (proposal,) = propose(recipe, "night", [], store)
    assert (proposal.name, proposal.recipe, proposal.trial) == ("candidate-1", recipe, None)
    tell(recipe, [proposal], {}, {}, {}, store)
    assert not Path(store.root, "search").exists()


def test_each_candidate_is_told_how_it_ended(store: Store) -> None:
    recipe, _ = load("demo", [VARY, "search.candidates=4"])
    record = NightRecord(
        run_id="other",
        recipe="demo",
        started="",
        seconds=None,
        status="RUNNING",
        outcome=None,
        reason=None,
        verdicts={},
    )
    others = propose(recipe, "other", [], store)
    proposals = propose(recipe, "night", [record], store)
    assert not {one.trial for one in others} & {one.trial for one in proposals}
    one, two, three, _ = proposals
    measured = {
        "base": scores(None, BASE),
        one.name: scores("one", CHAMPION),
        two.name: scores("two", CHAMPION | {"held_out_loss": float("nan")}),
    }
    tell(recipe, proposals, measured, {}, {three.name: "training: its loss is not finite"}, store)
    search = resolved(recipe)
    assert search
    told = {tried.trial: (tried.state, tried.reason) for tried in Trials(recipe, search, store).all()}
    assert [told[proposal.trial] for proposal in proposals if proposal.trial is not None] == [
        ("judged", None),
        ("failed", "a score is not a number"),
        ("failed", "training: its loss is not finite"),
        ("failed", "it was not evaluated"),
    ]
    # A night that goes on when the other one has died takes over what that one left.
    assert [one.trial for one in propose(recipe, "next", [], store)] == [one.trial for one in others]
