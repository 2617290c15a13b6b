"""Evaluate: a base, the champion and the candidates, each on the items of every suite.

What one model makes of one suite is an output of its own, addressed by the model, the items and the generation
settings: a champion that met these items before is not evaluated again, and a suite more is the only one that is run.
The runs that are left share one process and one loaded base (tasks/evaluation).
"""

from __future__ import annotations

import json
import logging
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tasks.errors import BadInput, WorldFailed
from tasks.evaluation import (
    METRICS,
    NEEDS,
    EvaluationSets,
    Job,
    ModelJob,
    Sampling,
    Scores,
    SuiteItems,
    SuiteJob,
    SuiteRun,
    SuiteScore,
    flaws,
    items_digest,
    judge_key,
    run,
    sampling_of,
    suite_items,
    vllm_command,
)
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe, Suite
from tasks.sources import BaseSnapshot
from tasks.store import Store, code_digest, digest, home
from tasks.training import Adapter

_log = logging.getLogger(__name__)
_LIBRARIES = ("torch", "transformers", "peft", "bitsandbytes", "evalscope", "reasoning-gym")
_CODE = (
    "benchmarks",
    "calls",
    "choice",
    "clusters",
    "final_answer",
    "generation",
    "gym",
    "harness",
    "instructions",
    "items",
    "judge",
    "models_process",
    "overlap",
    "published",
    "sampling",
    "served",
    "suites",
)
Run = tuple[str | None, str, dict[str, Any]]  # adapter's address, suite, and what the run depends on
Progress = Callable[[str, int, int], None]


def evaluate(
    recipe: Recipe,
    mixture: TokenisedMixture,
    base: BaseSnapshot,
    adapters: Sequence[Adapter],
    store: Store,
    on_progress: Progress | None = None,
) -> dict[str | None, Scores]:
    """Scores by adapter address, None for the base itself.

    `on_progress` hears which model and suite is at work, and items done of all items. An adapter of
    another base is evaluated on that base. Raises as `check_sets` does, BadInput for an adapter whose
    base is not in the store, WorldFailed when the evaluation's process fails.
    """
    items = _items(recipe, mixture, store)
    _checked(recipe, items, store, home() / "expectations")
    by_address = {adapter.address: adapter for adapter in adapters}
    samplings = _samplings(recipe, base, store)
    runs = _runs(recipe, items, samplings, base, by_address)
    bases = {base.address: base} | _other_bases(base, adapters, store)
    for address, model_base in bases.items():
        # In the order of their addresses, so that two nights that want the same runs never wait for each other.
        group = sorted(
            (entry for entry in runs if entry[2]["base"] == address),
            key=lambda entry: Store.address(SuiteRun, entry[2]),
        )
        _make(recipe, items, samplings, model_base, by_address, group, store, on_progress, {})
    return {address: _together(recipe, address, runs, store) for address in (None, *by_address)}


def is_evaluated(
    recipe: Recipe, mixture: TokenisedMixture, base: BaseSnapshot, adapters: Sequence[Adapter], store: Store
) -> bool:
    """Whether the store has all that `evaluate` would make."""
    by_address = {adapter.address: adapter for adapter in adapters}
    runs = _runs(recipe, _items(recipe, mixture, store), _samplings(recipe, base, store), base, by_address)
    return all(store.find(SuiteRun, Store.address(SuiteRun, inputs)) for _, _, inputs in runs)


def _samplings(recipe: Recipe, base: BaseSnapshot, store: Store) -> dict[str, Sampling | None]:
    """By suite; of this recipe's base for all models, whatever an adapter of another base would be asked with."""
    return {suite.name: sampling_of(suite, store.folder(base)) for suite in recipe.evaluation.suites}


def _runs(
    recipe: Recipe,
    items: Mapping[str, SuiteItems],
    samplings: Mapping[str, Sampling | None],
    base: BaseSnapshot,
    adapters: Mapping[str, Adapter],
) -> list[Run]:
    """What each model, the base first, makes of each suite."""
    return [
        (
            address,
            suite.name,
            run_inputs(recipe, suite, items[suite.name], base, adapters.get(address or ""), samplings[suite.name]),
        )
        for address in (None, *adapters)
        for suite in recipe.evaluation.suites
    ]


def check_sets(recipe: Recipe, mixture: TokenisedMixture, store: Store, history: Path | None = None) -> EvaluationSets:
    """The items of every suite through Great Expectations, unless these very items have been already.

    `history`: folder of the pages of all nights; null: the home's. Raises BadInput for a suite without items and for
    one whose items cannot be measured on, WorldFailed where Great Expectations could not decide.
    """
    return _checked(recipe, _items(recipe, mixture, store), store, history or home() / "expectations")


def _items(recipe: Recipe, mixture: TokenisedMixture, store: Store) -> dict[str, SuiteItems]:
    test = store.folder(mixture) / "test.parquet"
    turn = mixture.splits["test"].digest if recipe.evaluation.rotate else ""
    return {suite.name: suite_items(test, suite, turn) for suite in recipe.evaluation.suites}


def _checked(recipe: Recipe, items: Mapping[str, SuiteItems], store: Store, history: Path) -> EvaluationSets:
    suites = recipe.evaluation.suites
    about = [
        [suite.name, suite.measures, suite.kind, suite.data, suite.items, items_digest(items[suite.name].rows)]
        for suite in suites
    ]
    code = code_digest(
        "tasks/evaluate.py", "tasks/evaluation", "expectations", libraries=("polars", "great-expectations")
    )

    def build(work: Path) -> Mapping[str, Any]:
        _look_through(recipe, items, work / "docs", history)
        return {"items": {name: part.rows.height for name, part in items.items()}}

    return store.make(EvaluationSets, {"recipe": recipe.name, "suites": about, "code": code}, build)[0]


def _look_through(recipe: Recipe, items: Mapping[str, SuiteItems], docs: Path, history: Path) -> None:
    from expectations import PAGES, CheckFailed, Table, check, evaluation

    suites = {f"{recipe.name}-{suite.name}-items": suite for suite in recipe.evaluation.suites}
    found = {table: flaws(items[suite.name].rows, suite.measures) for table, suite in suites.items()}
    tables = [
        Table(found[table].to_pandas(), evaluation.suite(table, most=suite.items, needs=NEEDS[suite.measures]))
        for table, suite in suites.items()
    ]
    try:
        outcomes = check(tables, history=history, night=f"{recipe.name}-evaluation", pages=docs)
    except CheckFailed as error:
        raise WorldFailed(
            "the check of the evaluation sets",
            f"could not decide ({error})",
            "Nothing is known about them, so the night stops.",
        ) from error
    for outcome in sorted((one for one in outcomes if not one.success), key=lambda one: one.severity):
        suite, flawed = suites[outcome.table], found[outcome.table]
        example = ""
        if outcome.column in flawed.columns and flawed.schema[outcome.column] == pl.Boolean:
            example = (
                f", {outcome.rows} of {flawed.height} do not, such as {flawed.filter(outcome.column)['row_id'][0]}"
            )
        told = f"{outcome.description.rpartition(' (')[0]}{example}"
        if outcome.severity == "critical":
            raise BadInput(
                f"evaluation.suites.{suite.name}.{'data' if suite.data else 'kind'}",
                suite.data or suite.kind,
                f"cannot be measured on by {suite.measures}: {told}",
                f"Correct those items, or change the suite's measure or its items. See {history / PAGES}.",
            )
        _log.warning("evaluation.suites.%s: %s", suite.name, told)


def run_inputs(
    recipe: Recipe,
    suite: Suite,
    items: SuiteItems,
    base: BaseSnapshot,
    adapter: Adapter | None,
    sampling: Sampling | None = None,
) -> dict[str, Any]:
    """What a model's run of a suite depends on. Role and margin are the gate's, and so are left out."""
    return {
        "base": adapter.base if adapter else base.address,
        "adapter": adapter.address if adapter else None,
        # An adapter brings the template that it was trained with.
        "chat_template": None if adapter else recipe.base.chat_template,
        "suite": suite.name,
        "items": items_digest(items.rows),
        "not_run": items.not_run,
        "settings": _settings(recipe, suite, sampling),
        "code": code_digest(
            "tasks/evaluate.py",
            "tasks/conversations",
            *(f"tasks/evaluation/{name}.py" for name in _CODE),
            libraries=_LIBRARIES,
        ),
    }


def _settings(recipe: Recipe, suite: Suite, sampling: Sampling | None) -> dict[str, Any]:
    left = {"role", "margin", "items", "data", *Sampling.model_fields, *(() if sampling else ("seed",))}
    settings = suite.model_dump(mode="json", exclude=left) | {"sampling": sampling and sampling.model_dump()}
    # These change the arithmetic, and with it here and there a token.
    judge = recipe.evaluation.judge
    if judge and suite.measures == "judge":
        settings |= {"judge": judge.model_dump(mode="json", include={"url", "model"})}
    about = {"batch_size": recipe.evaluation.batch_size, "backend": recipe.evaluation.backend}
    return settings | about | {"four_bit": _four_bit(recipe)}


def _together(recipe: Recipe, address: str | None, runs: Sequence[Run], store: Store) -> Scores:
    """A model's runs as one table and one manifest."""
    inputs = {name: entry for adapter, name, entry in runs if adapter == address}
    made = {name: store.find(SuiteRun, Store.address(SuiteRun, entry)) for name, entry in inputs.items()}
    found = {name: entry for name, entry in made.items() if entry is not None}
    assert len(found) == len(inputs), "every run was made above"
    base = next(iter(inputs.values()))["base"]

    def build(work: Path) -> Mapping[str, Any]:
        parts = [pl.read_parquet(store.folder(entry) / "items.parquet") for entry in found.values()]
        pl.concat(parts).write_parquet(work / "items.parquet")
        return {
            "base": base,
            "adapter": address,
            "suites": {name: entry.score for name, entry in found.items()},
            "seconds": round(sum(entry.seconds for entry in found.values()), 1),
        }

    parts = {name: entry.address for name, entry in found.items()}
    return store.make(Scores, {"base": base, "adapter": address, "suites": parts}, build)[0]


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
    items: Mapping[str, SuiteItems],
    samplings: Mapping[str, Sampling | None],
    base: BaseSnapshot,
    adapters: Mapping[str, Adapter],
    runs: Sequence[Run],
    store: Store,
    on_progress: Progress | None,
    works: Mapping[tuple[str | None, str], Path],
) -> None:
    """Make runs on one base.

    One process answers for all that are missing, so the store's `make` of each is entered (and its lock
    held) before the process starts.
    """
    if not runs:
        if works:
            _run(recipe, items, samplings, base, adapters, works, store, on_progress)
        return
    (adapter, name, inputs), rest = runs[0], runs[1:]

    def build(work: Path) -> Mapping[str, Any]:
        _make(recipe, items, samplings, base, adapters, rest, store, on_progress, {**works, (adapter, name): work})
        suite = next(suite for suite in recipe.evaluation.suites if suite.name == name)
        return _fields(work, inputs, suite)

    _, made = store.make(SuiteRun, inputs, build, resumable=True)
    if not made:
        _make(recipe, items, samplings, base, adapters, rest, store, on_progress, works)


def _run(
    recipe: Recipe,
    items: Mapping[str, SuiteItems],
    samplings: Mapping[str, Sampling | None],
    base: BaseSnapshot,
    adapters: Mapping[str, Adapter],
    works: Mapping[tuple[str | None, str], Path],
    store: Store,
    on_progress: Progress | None,
) -> None:
    if recipe.evaluation.backend == "vllm":
        vllm_command()
    if recipe.evaluation.judge and any(suite.measures == "judge" for suite in recipe.evaluation.suites):
        judge_key(recipe.evaluation.judge)
    with tempfile.TemporaryDirectory(prefix="nightowl-items-") as folder:
        suites = []
        for suite in recipe.evaluation.suites:
            file = Path(folder, f"{suite.name}.parquet")
            items[suite.name].rows.write_parquet(file)
            suites.append(SuiteJob(suite=suite, items=file, sampling=samplings[suite.name]))
        job = Job(
            base=store.folder(base),
            four_bit=_four_bit(recipe),
            chat_template=recipe.base.chat_template,
            batch_size=recipe.evaluation.batch_size,
            backend=recipe.evaluation.backend,
            judge=recipe.evaluation.judge,
            suites=tuple(suites),
            models=tuple(
                ModelJob(
                    name=adapters[address].short if address else "base",
                    adapter=store.folder(adapters[address]) / "adapter" if address else None,
                    works={name: work for (adapter, name), work in works.items() if adapter == address},
                )
                # The base first: whoever watches sees what there is to beat.
                for address in sorted({adapter for adapter, _ in works}, key=lambda address: address or "")
            ),
        )
        run(job, on_progress)


def _fields(work: Path, inputs: Mapping[str, Any], suite: Suite) -> dict[str, Any]:
    scored = pl.read_parquet(work / "items.parquet")
    seconds = pl.read_parquet(work / "answers.parquet", columns=["seconds"])["seconds"].max() or 0.0
    (work / "answers.parquet").unlink()
    aside = work / "aside.json"
    not_judged = json.loads(aside.read_bytes()) if aside.exists() else {}
    aside.unlink(missing_ok=True)
    about = METRICS[suite.measures]
    notes = [part for detail in scored["detail"] for part in detail.split("; ") if part.startswith("not run: ")]
    score = SuiteScore(
        items=scored["item_id"].n_unique(),
        mean=float(scored["score"].mean()),  # type: ignore[arg-type]
        unit=about.unit,
        higher_is_better=about.higher_is_better,
        digest=digest([inputs["items"], inputs["settings"]]),
        settings=digest(inputs["settings"]),
        not_run=dict(Counter(inputs["not_run"]) + Counter(notes) + Counter(not_judged)),
    )
    return {"score": score, "seconds": round(float(seconds), 1)}  # type: ignore[arg-type]
