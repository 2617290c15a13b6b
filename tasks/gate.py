"""Gate: may the candidate replace the champion?

The verdict depends on the three models' scores, on the suites' roles and margins and on the gate's own
settings; it is stored like every other output, so the same night gets the same answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from tasks.errors import BadInput
from tasks.evaluation import Items, Scores, Verdict, compare, decide, reasons
from tasks.recipe import Recipe
from tasks.store import Store, code_digest, write_whole

_CODE = ("tasks/gate.py", "tasks/evaluation/statistics.py", "tasks/evaluation/verdict.py")


def gate(recipe: Recipe, base: Scores, reference: Scores, candidate: Scores, store: Store) -> Verdict:
    """The verdict on a candidate; `reference` is the champion's scores, or the base's where there is none.

    Raises BadInput when candidate and reference are one model, and when their scores cannot be compared.
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
        "gate": recipe.gate,
        "code": code_digest(*_CODE, libraries=("scipy", "numpy")),
    }

    def build(work: Path) -> Mapping[str, Any]:
        models = [Items(scores, _items(scores, store)) for scores in (base, reference, candidate)]
        settings = {"confidence": recipe.gate.confidence, "min_items": recipe.gate.min_items}
        compared = [compare(suite, *models, **settings) for suite in recipe.evaluation.suites]  # type: ignore[arg-type]
        comparisons = tuple(entry.comparison for entry in compared)
        decision = decide(comparisons)
        why = [*_other_base(reference, candidate), *reasons(compared, **settings)]  # type: ignore[arg-type]
        write_whole(work / "verdict.md", f"# {decision.capitalize()}\n\n" + "".join(f"- {reason}\n" for reason in why))
        return {
            "candidate": candidate.adapter,
            "champion": reference.adapter,
            "decision": decision,
            "reasons": tuple(why),
            "comparisons": comparisons,
        }

    verdict, _ = store.make(Verdict, inputs, build)
    return verdict


def _items(scores: Scores, store: Store) -> pl.DataFrame:
    return pl.read_parquet(store.folder(scores) / "items.parquet")


def _other_base(reference: Scores, candidate: Scores) -> list[str]:
    if reference.base == candidate.base:
        return []
    return [
        f"The champion stands on another base model ({reference.base[:12]}) than the candidate "
        f"({candidate.base[:12]}): promoting means serving the other base as well."
    ]
