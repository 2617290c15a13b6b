"""propose: which candidates a night trains, and, once they are judged, what the search is told of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from tasks.evaluation import Scores, Verdict
from tasks.recipe import Recipe, resolved
from tasks.registry import NightRecord
from tasks.search import Outcome, Proposal, Trials, Tried
from tasks.store import Store


def propose(recipe: Recipe, night: str, nights: Iterable[NightRecord], store: Store) -> list[Proposal]:
    """The night's candidates: the recipe as it stands, or what its search proposes.

    `night`: its MLflow run id; `nights`: those that MLflow knows, since what a dead one left is gone on with. Raises
    WorldFailed where the search's storage does not answer.
    """
    search = resolved(recipe)
    if search is None:
        return [Proposal(name="candidate-1", recipe=recipe)]
    status = {record.run_id: record.status for record in nights}
    alive, killed = ([name for name in status if status[name] == state] for state in ("RUNNING", "KILLED"))
    return Trials(recipe, search, store).take(night, alive, killed)


def tell(
    recipe: Recipe,
    proposals: Iterable[Proposal],
    scores: Mapping[str, Scores],
    verdicts: Mapping[str, Verdict],
    failed: Mapping[str, str],
    store: Store,
) -> None:
    """Tell the search how its candidates ended; nothing where there is none.

    `scores`: by role, of base, champion (where there is one) and candidates; `failed`: why a candidate has none.
    """
    search = resolved(recipe)
    if search is None:
        return
    trials = Trials(recipe, search, store)
    for proposal in proposals:
        if (found := scores.get(proposal.name)) is None:
            trials.tell(proposal, None, failed.get(proposal.name, "it was not evaluated"))
            continue
        verdict = verdicts.get(proposal.name)
        came_to = outcome(recipe, scores["base"], scores.get("champion", scores["base"]), found)
        if not all(map(math.isfinite, [*came_to.gains.values(), *came_to.slacks.values()])):
            trials.tell(proposal, None, "a score is not a number")
            continue
        trials.tell(proposal, came_to.model_copy(update={"decision": verdict.decision if verdict else None}))


def outcome(recipe: Recipe, base: Scores, reference: Scores, candidate: Scores) -> Outcome:
    """What a candidate's scores come to.

    Targets are held against the base, which is the same from night to night while items and champions change; guards
    against whoever the gate compares with.
    """
    gains, slacks = {}, {}
    for suite in recipe.evaluation.suites:
        score = candidate.suites[suite.name]
        sign = 1 if score.higher_is_better else -1
        if suite.role == "target":
            gains[suite.name] = sign * (score.mean - base.suites[suite.name].mean)
        else:
            slacks[suite.name] = sign * (score.mean - reference.suites[suite.name].mean) + suite.margin
    return Outcome(gains=gains, slacks=slacks)


def unfinished(recipe: Recipe, store: Store) -> list[Tried]:
    """What the search proposed and nobody could judge, newest first: candidates that failed, or have not ended."""
    search = resolved(recipe)
    known = Trials(recipe, search, store).all() if search else []
    return [one for one in reversed(known) if one.state != "judged"]
