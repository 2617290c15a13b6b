"""The next point of a search, from the points that were tried: Optuna's TPE on a study in memory.

A pure function of what was tried and a number: a night that is run again proposes the same. TPE (Bergstra et al.,
NeurIPS 2011; multivariate and with constraints as in Watanabe and Hutter, arXiv 2211.14411) takes a point that breaks
a constraint for worse than any that keeps all.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from statistics import mean
from typing import Any, NamedTuple

from tasks.recipe import Recipe, Search, Value, bounds, in_space, value_of
from tasks.search.schema import Outcome
from tasks.store import digest

TRIES = 32  # proposals for one candidate before one that was tried already is taken


class Point(NamedTuple):
    """A point that was tried: values by field, also of fields that do not vary today. `outcome`: None while it runs,
    and where it `failed`."""

    values: Mapping[str, Value]
    outcome: Outcome | None = None
    failed: bool = False


def propose(recipe: Recipe, search: Search, past: Sequence[Point], tonight: Sequence[Point]) -> dict[str, Value] | None:
    """Values for the next candidate; None where nothing is left that is not among tonight's.

    `past`: points of earlier nights, of which those outside the space are passed over, as are scores that lack one of
    today's targets; `tonight`: this night's so far. Where there is none of either, the recipe's own values.
    """
    usable = [point for point in past if _inside(search, point.values)]
    number = len(past) + len(tonight)
    fields = [vary.field for vary in search.vary]
    taken = [{field: point.values[field] for field in fields} for point in tonight]
    tried = [{field: point.values[field] for field in fields} for point in usable] + taken
    if not tried:
        return {field: value_of(recipe, field) for field in fields}
    again = None
    for attempt in range(TRIES):
        values = _ask(recipe, search, [*usable, *tonight], _seed(search, number, attempt))
        if values not in tried:
            return values
        if again is None and values not in taken:
            again = values
    return again


def score(recipe: Recipe, outcome: Outcome) -> float | None:
    """The mean gain over the targets; None where one was not measured."""
    targets = [suite.name for suite in recipe.evaluation.suites if suite.role == "target"]
    if any(name not in outcome.gains for name in targets):
        return None
    return mean(outcome.gains[name] for name in targets)


def distributions(recipe: Recipe, search: Search) -> dict[str, Any]:
    """The space as Optuna has it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    space: dict[str, Any] = {}
    for vary in search.vary:
        if vary.choices:
            space[vary.field] = CategoricalDistribution(vary.choices)
            continue
        low, high = bounds(recipe, vary)
        if isinstance(low, int) and isinstance(high, int):
            space[vary.field] = IntDistribution(low, high, log=vary.log)
        else:
            space[vary.field] = FloatDistribution(low, high, log=vary.log)
    return space


def _ask(recipe: Recipe, search: Search, points: Sequence[Point], seed: int) -> dict[str, Value]:
    optuna = quiet_optuna()
    # Below as many as this, what was measured says less than a random point does.
    random_first = 1 + 2 * len(search.vary)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(
            seed=seed, multivariate=True, constant_liar=True, n_startup_trials=random_first
        )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    space = distributions(recipe, search)
    study.add_trials([trial for point in points if (trial := _trial(recipe, point, space))])
    found: dict[str, Value] = study.ask(space).params
    return found


def quiet_optuna() -> Any:
    """Optuna, which would tell of each study and trial."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _trial(recipe: Recipe, point: Point, space: Mapping[str, Any]) -> Any:
    """A point as Optuna's trial; None where its score cannot be compared with today's."""
    import optuna
    from optuna.trial import TrialState

    told: dict[str, Any] = {"params": {name: point.values[name] for name in space}, "distributions": dict(space)}
    if point.failed:
        return optuna.create_trial(state=TrialState.FAIL, **told)
    if point.outcome is None:
        return optuna.create_trial(state=TrialState.RUNNING, **told)
    value = score(recipe, point.outcome)
    if value is None:
        return None
    guards = [suite.name for suite in recipe.evaluation.suites if suite.role == "guard"]
    over = {name: -point.outcome.slacks[name] for name in guards if name in point.outcome.slacks}
    return optuna.create_trial(state=TrialState.COMPLETE, value=value, constraints=over, **told)


def _inside(search: Search, values: Mapping[str, Value]) -> bool:
    return all(vary.field in values and in_space(vary, values[vary.field]) for vary in search.vary)


def _seed(search: Search, number: int, attempt: int) -> int:
    return int(digest([search.seed, number, attempt])[:8], 16)
