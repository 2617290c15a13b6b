"""Proposals follow from what was tried alone, and go to where the targets gain and the guards hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tasks.recipe import Recipe, resolved
from tasks.search import Outcome, Point, propose

SHARE, RANK = "mixture.reasoning_share", "training.rank"


def came_to(values: Any) -> Outcome:
    """The larger the share the better, but the guard breaks above a half."""
    share = values[SHARE]
    return Outcome(
        gains={"tool_call": share, "final_answer": share}, slacks={"chat_format": 0.5 - share, "held_out_loss": 0.1}
    )


def nights(recipe: Recipe, count: int) -> list[Point]:
    past: list[Point] = []
    for _ in range(count):
        values = next_values(recipe, past)
        assert values is not None
        past.append(Point(values, came_to(values)))
    return past


def next_values(recipe: Recipe, past: list[Point], tonight: list[Point] = ()) -> Any:  # type: ignore[assignment]
    search = resolved(recipe)
    assert search is not None
    return propose(recipe, search, past, tonight)


def test_the_first_is_the_recipe_itself(recipe: Callable[..., Recipe]) -> None:
    assert next_values(recipe(), []) == {SHARE: 0.3, RANK: 16}


def test_the_same_history_gets_the_same_proposal_and_another_seed_another(recipe: Callable[..., Recipe]) -> None:
    past = nights(recipe(), 12)
    again = next_values(recipe(), past)
    assert next_values(recipe(), past) == again
    assert next_values(recipe("search.seed=1"), past) != again


def test_proposals_gather_where_the_targets_gain_and_the_guards_hold(recipe: Callable[..., Recipe]) -> None:
    shares = [float(point.values[SHARE]) for point in nights(recipe(), 60)]  # type: ignore[arg-type]
    far = [abs(share - 0.5) for share in shares]
    assert sum(far[30:]) / 30 < 0.6 * 0.2  # of what chance comes to


def test_a_failed_point_is_not_proposed_again_and_scores_nothing(recipe: Callable[..., Recipe]) -> None:
    past = [Point({SHARE: 0.3, RANK: 16}, failed=True)]
    assert next_values(recipe(), past) != {SHARE: 0.3, RANK: 16}


def test_what_lies_outside_todays_space_does_not_count(recipe: Callable[..., Recipe]) -> None:
    past = [Point({SHARE: 0.95, RANK: 16}, came_to({SHARE: 0.95})), Point({SHARE: 0.3, RANK: 64})]
    past.append(Point({SHARE: 0.3, RANK: 8}, Outcome(gains={"another suite": 1.0}, slacks={})))
    assert next_values(recipe(), past[:2]) == {SHARE: 0.3, RANK: 16}
    assert next_values(recipe(), past)[SHARE] <= 0.9


def test_a_space_of_few_points_is_exhausted_tonight_and_not_for_ever(recipe: Callable[..., Recipe]) -> None:
    small = recipe(f"search.vary=[{{field: {RANK}, choices: [8, 16]}}]")
    tried = [Point({RANK: rank}, Outcome(gains={"tool_call": 0, "final_answer": 0}, slacks={})) for rank in (8, 16)]
    assert next_values(small, [], [Point({RANK: 16})]) == {RANK: 8}
    assert next_values(small, [], [Point({RANK: 16}), Point({RANK: 8})]) is None
    assert next_values(small, tried)[RANK] in (8, 16)
