"""Evaluate: a base, the champion and the candidates on the mixture's held-out items.

Each model's scores are an output of their own, addressed by the model, the items and the generation
settings, so a champion that met these items before is not evaluated again. The models that are left
share one process and one loaded base (tasks/evaluation).
"""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tasks.errors import BadInput
from tasks.evaluation import SUITES, Job, ModelJob, Scores, SuiteJob, SuiteScore, items_digest, run, suite_items
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe, Suite
from tasks.sources import BaseSnapshot
from tasks.store import Store, code_digest, digest
from tasks.training import Adapter

_log = logging.getLogger(__name__)
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "evalscope")
_CODE = ("calls", "final_answer", "generation", "harness", "items", "models_process", "suites")
Model = tuple[str | None, dict[str, Any]]  # adapter's address and the inputs of its scores


def evaluate(
    recipe: Recipe,
    mixture: TokenisedMixture,
    base: BaseSnapshot,
    adapters: Sequence[Adapter],
    store: Store,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> dict[str | None, Scores]:
    """Scores by adapter address, None for the base itself.

    `on_progress` hears which model and suite is at work, and items done of all items. An adapter of
    another base is evaluated on that base. Raises BadInput for a suite without items and for an adapter
    whose base is not in the store, WorldFailed when the evaluation's process fails.
    """
    test = store.folder(mixture) / "test.parquet"
    turn = mixture.splits["test"].digest if recipe.evaluation.rotate else ""
    items: dict[str, pl.DataFrame] = {suite.name: suite_items(test, suite, turn) for suite in recipe.evaluation.suites}
    by_address = {adapter.address: adapter for adapter in adapters}
    wanted: list[str | None] = [None, *by_address]
    models: list[Model] = [
        (address, scores_inputs(recipe, items, base, by_address[address] if address else None)) for address in wanted
    ]
    bases = {base.address: base} | _other_bases(base, adapters, store)
    for address, model_base in bases.items():
        # In the order of their addresses, so that two nights that want the same models never wait for each other.
        group = sorted(
            (model for model in models if model[1]["base"] == address),
            key=lambda model: Store.address(Scores, model[1]),
        )
        _make(recipe, items, model_base, by_address, group, store, on_progress, {})
    found = {address: store.find(Scores, Store.address(Scores, inputs)) for address, inputs in models}
    return {address: scores for address, scores in found.items() if scores is not None}


def scores_inputs(
    recipe: Recipe, items: Mapping[str, pl.DataFrame], base: BaseSnapshot, adapter: Adapter | None
) -> dict[str, Any]:
    """What a model's scores depend on. Roles and margins are the gate's, and so are left out."""
    return {
        "base": adapter.base if adapter else base.address,
        "adapter": adapter.address if adapter else None,
        # An adapter brings the template that it was trained with.
        "chat_template": None if adapter else recipe.base.chat_template,
        "suites": {
            suite.name: {"items": items_digest(items[suite.name]), "settings": _settings(recipe, suite)}
            for suite in recipe.evaluation.suites
        },
        "code": code_digest(
            "tasks/evaluate.py",
            "tasks/conversations",
            *(f"tasks/evaluation/{name}.py" for name in _CODE),
            libraries=_LIBRARIES,
        ),
    }


def _settings(recipe: Recipe, suite: Suite) -> dict[str, Any]:
    settings = suite.model_dump(mode="json", exclude={"role", "margin", "items"})
    # Both change the arithmetic, and with it here and there a token.
    return settings | {"four_bit": _four_bit(recipe), "batch_size": recipe.evaluation.batch_size}


def _four_bit(recipe: Recipe) -> bool:
    """Models are compared in the precision that this recipe trains and serves the base in."""
    return recipe.training.method == "qlora"


def _other_bases(base: BaseSnapshot, adapters: Sequence[Adapter], store: Store) -> dict[str, BaseSnapshot]:
    others: dict[str, BaseSnapshot] = {}
    for adapter in adapters:
        if adapter.base in (base.address, *others):
            continue
        found = store.find(BaseSnapshot, adapter.base)
        if found is None:
            raise BadInput(
                "adapter",
                adapter.short,
                "was trained on a base that is not in the store",
                "Fetch that base again, or roll back to a champion of this one.",
            )
        _log.warning(
            "Adapter %s was trained on %s@%s, not on this recipe's base %s@%s: it is evaluated on its own base.",
            adapter.short,
            found.uri,
            found.revision[:12],
            base.uri,
            base.revision[:12],
        )
        others[adapter.base] = found
    return others


def _make(
    recipe: Recipe,
    items: Mapping[str, pl.DataFrame],
    base: BaseSnapshot,
    adapters: Mapping[str, Adapter],
    models: Sequence[Model],
    store: Store,
    on_progress: Callable[[str, int, int], None] | None,
    works: Mapping[str | None, Path],
) -> None:
    """Make the scores of models on one base.

    One process answers for all that are missing, so the store's `make` of each is entered (and its lock
    held) before the process starts.
    """
    if not models:
        if works:
            _run(recipe, items, base, adapters, works, store, on_progress)
        return
    (adapter, inputs), rest = models[0], models[1:]

    def build(work: Path) -> Mapping[str, Any]:
        _make(recipe, items, base, adapters, rest, store, on_progress, {**works, adapter: work})
        return _fields(work, inputs, recipe)

    _, made = store.make(Scores, inputs, build, resumable=True)
    if not made:
        _make(recipe, items, base, adapters, rest, store, on_progress, works)


def _run(
    recipe: Recipe,
    items: Mapping[str, pl.DataFrame],
    base: BaseSnapshot,
    adapters: Mapping[str, Adapter],
    works: Mapping[str | None, Path],
    store: Store,
    on_progress: Callable[[str, int, int], None] | None,
) -> None:
    with tempfile.TemporaryDirectory(prefix="nightowl-items-") as folder:
        suites = []
        for suite in recipe.evaluation.suites:
            file = Path(folder, f"{suite.name}.parquet")
            items[suite.name].write_parquet(file)
            suites.append(SuiteJob(suite=suite, items=file))
        job = Job(
            base=store.folder(base),
            four_bit=_four_bit(recipe),
            chat_template=recipe.base.chat_template,
            batch_size=recipe.evaluation.batch_size,
            suites=tuple(suites),
            models=tuple(
                ModelJob(
                    name=adapters[address].short if address else "base",
                    adapter=store.folder(adapters[address]) / "adapter" if address else None,
                    work=work,
                )
                # The base first: whoever watches sees what there is to beat.
                for address, work in sorted(works.items(), key=lambda entry: entry[0] or "")
            ),
        )
        run(job, on_progress)


def _fields(work: Path, inputs: Mapping[str, Any], recipe: Recipe) -> dict[str, Any]:
    scored = pl.read_parquet(work / "items.parquet")
    seconds = sum(
        pl.read_parquet(file, columns=["seconds"])["seconds"].max() or 0.0  # type: ignore[misc]
        for file in (work / "answers").glob("*.parquet")
    )
    shutil.rmtree(work / "answers")
    suites = {}
    for suite in recipe.evaluation.suites:
        scores = scored.filter(pl.col("suite") == suite.name)["score"]
        about, entry = SUITES[suite.name], inputs["suites"][suite.name]
        suites[suite.name] = SuiteScore(
            items=scores.len(),
            mean=float(scores.mean()),  # type: ignore[arg-type]
            unit=about.unit,
            higher_is_better=about.higher_is_better,
            digest=digest(entry),
            settings=digest(entry["settings"]),
        )
    return {"base": inputs["base"], "adapter": inputs["adapter"], "suites": suites, "seconds": round(seconds, 1)}
