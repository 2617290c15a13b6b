"""Gate: may the candidate replace the champion?

The verdict depends on the three models' scores, on the suites' roles and margins, on the gate's own settings, and on
how sure this one of the year's hypotheses has to be (tasks/evaluation/year.py). It is stored like every other output,
so the same night gets the same answer, and spends its part of the year's error once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import polars as pl

from tasks.errors import BadInput
from tasks.evaluation import (
    Budget,
    Items,
    Ledger,
    Reason,
    Scores,
    Spent,
    Verdict,
    budget,
    comparable,
    compare,
    decide,
    explain,
    reasons,
)
from tasks.recipe import Recipe
from tasks.registry import NightRecord
from tasks.store import Store, code_digest, write_whole

_CODE = tuple(
    f"tasks/{name}.py"
    for name in ("gate", *(f"evaluation/{part}" for part in ("explanation", "statistics", "verdict", "year")))
)


def gate(
    recipe: Recipe,
    base: Scores,
    reference: Scores,
    candidate: Scores,
    store: Store,
    nights: Iterable[NightRecord] = (),
) -> Verdict:
    """The verdict on a candidate; `reference` is the champion's scores, or the base's where there is none.

    `nights`: those that MLflow knows, whose hypotheses count as well. Raises BadInput when candidate and reference
    are one model, and when their scores cannot be compared.
    """
    if candidate.adapter is None:
        raise BadInput("candidate", candidate.short, "is the base model itself", "Give the scores of an adapter.")
    if candidate.adapter == reference.adapter:
        raise BadInput(
            "candidate",
            candidate.adapter[:12],
            "is the champion already",
            "Change the recipe or the data; there is nothing to decide.",
        )
    inputs = {
        "base": base.address,
        "reference": reference.address,
        "candidate": candidate.address,
        "suites": {
            suite.name: suite.model_dump(mode="json", include={"role", "margin"}) for suite in recipe.evaluation.suites
        },
        "gate": recipe.gate.model_dump(mode="json", exclude={"approval", "approval_hours"}),
        "recipe": recipe.name,
        "code": code_digest(*_CODE, libraries=("scipy", "numpy")),
    }
    address = Store.address(Verdict, inputs)
    ledger = _ledger(recipe, store, nights)

    def build(work: Path) -> Mapping[str, Any]:
        models = [Items(scores, _items(scores, store)) for scores in (base, reference, candidate)]
        settings: dict[str, Any] = {"confidence": recipe.gate.confidence, "min_items": recipe.gate.min_items}
        suites = recipe.evaluation.suites
        for suite in suites:
            comparable(suite, *models)  # what is refused spends nothing
        spent, left = ledger.spend(address, candidate.adapter or "", recipe.gate.year_error)
        comparisons = tuple(compare(suite, *models, **settings, level=spent.level) for suite in suites)
        decision = decide(comparisons)
        why = (
            *_other_base(reference, candidate),
            *reasons(comparisons, **settings),
            *_not_run(candidate),
            _level(spent, left),
        )
        write_whole(work / "verdict.md", explain(decision, reference.adapter, comparisons, why, left))
        return {
            "candidate": candidate.adapter,
            "champion": reference.adapter,
            "decision": decision,
            "reasons": tuple(reason.text for reason in why),
            "comparisons": comparisons,
            "findings": why,
            "level": spent.level,
            "left": left.left,
            "hypotheses": left.hypotheses,
            "asked_at": spent.at.isoformat(timespec="seconds"),
        }

    verdict, made = store.make(Verdict, inputs, build)
    if made:
        ledger.settle(address, verdict.decision)
    return verdict


def best_last(verdicts: Mapping[str, Verdict]) -> list[str]:
    """Candidates of one night by their verdicts, the best of those that are let out at the end.

    Better is who gains more over the targets, on average; of those that are not let out, who is not worse first.
    """
    order = {"keep": 0, "cannot tell": 1, "promote": 2}

    def place(name: str) -> tuple[int, float]:
        verdict = verdicts[name]
        gains = [entry.difference for entry in verdict.comparisons if entry.role == "target"]
        return order[verdict.decision], sum(gains) / max(len(gains), 1)

    return sorted(verdicts, key=place)


def year(recipe: Recipe, store: Store, nights: Iterable[NightRecord] = ()) -> Budget:
    """How sure the next night has to be, and what is left of the year's error."""
    return budget(_ledger(recipe, store, nights).entries(), datetime.now(UTC), recipe.gate.year_error)


def _ledger(recipe: Recipe, store: Store, nights: Iterable[NightRecord]) -> Ledger:
    return Ledger(store.root, recipe.name, tuple(_known(nights)))


def _known(nights: Iterable[NightRecord]) -> Iterator[Spent]:
    for night in nights:
        for adapter, told in night.verdicts.items():
            if told.get("level") is not None:
                yield Spent(
                    key=told["address"],
                    at=told["asked_at"],
                    level=told["level"],
                    candidate=adapter,
                    decision=told["decision"],
                )


def _items(scores: Scores, store: Store) -> pl.DataFrame:
    return pl.read_parquet(store.folder(scores) / "items.parquet")


def _not_run(candidate: Scores) -> list[Reason]:
    """What a suite says nothing of."""
    return [
        Reason(
            code="not run",
            suite=name,
            numbers=dict(score.not_run.items()),
            text=f"{name}, left out: {'; '.join(f'{reason} ({count})' for reason, count in score.not_run.items())}.",
        )
        for name, score in candidate.suites.items()
        if score.not_run
    ]


def _level(spent: Spent, left: Budget) -> Reason:
    return Reason(
        code="level",
        numbers={"level": spent.level, "left": left.left, "spent": left.spent, "hypotheses": left.hypotheses},
        text=f"A target had to be better at the level of {spent.level:.2g}, one-sided, so that any 365 days see a "
        f"false promotion with a chance of at most {left.year_error:.0%}; candidate {left.hypotheses} in these days.",
    )


def _other_base(reference: Scores, candidate: Scores) -> list[Reason]:
    if reference.base == candidate.base:
        return []
    text = (
        f"The champion stands on another base model ({reference.base[:12]}) than the candidate "
        f"({candidate.base[:12]}): promoting means serving the other base as well."
    )
    return [Reason(code="other base", text=text)]
