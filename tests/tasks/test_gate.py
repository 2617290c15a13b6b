from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks.errors import BadInput
from tasks.evaluation import Scores, Spent, SuiteScore, Verdict, budget
from tasks.evaluation.statistics import counted
from tasks.evaluation.verdict import outcome
from tasks.gate import best_last, gate, year
from tasks.recipe import Recipe, load
from tasks.registry import NightRecord
from tasks.store import Store

START = datetime(2030, 1, 1, tzinfo=UTC)
Made = Mapping[str, Sequence[float]]
BASE: Made = {
    "tool_call": [0] * 64,
    "final_answer": [0] * 64,
    "chat_format": [1] * 48,
    "held_out_loss": [2 + n / 100 for n in range(48)],
}
GOOD: Made = BASE | {
    "tool_call": [1] * 62 + [0] * 2,
    "final_answer": [1] * 34 + [0] * 30,
    "held_out_loss": [1.6 + n / 110 for n in range(48)],
}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load("demo")[0]


def scores(store: Store, adapter: str | None, suites: Made, base: str = "base") -> Scores:
    def build(work: Path) -> dict[str, Any]:
        pl.concat(
            pl.DataFrame({"suite": name, "item_id": [str(n) for n in range(len(s))], "score": list(map(float, s))})
            for name, s in suites.items()
        ).write_parquet(work / "items.parquet")
        about = {
            name: SuiteScore(
                items=len(s),
                mean=float(np.mean(s)),
                unit="nats per token" if name == "held_out_loss" else "share",
                higher_is_better=name != "held_out_loss",
                digest=name,
            )
            for name, s in suites.items()
        }
        return {"base": base, "adapter": adapter, "suites": about, "seconds": 1.0}

    return store.make(Scores, {"adapter": adapter, "base": base, "suites": dict(suites)}, build)[0]


def test_a_first_adapter_that_learned_is_promoted(store: Store, recipe: Recipe) -> None:
    base, candidate = scores(store, None, BASE), scores(store, "a" * 64, GOOD)
    verdict = gate(recipe, base, base, candidate, store)
    assert (verdict.decision, verdict.candidate, verdict.champion) == ("promote", "a" * 64, None)
    assert {c.suite: c.outcome for c in verdict.comparisons} == {
        "tool_call": "better",
        "final_answer": "better",
        "chat_format": "not worse",
        "held_out_loss": "not worse",
    }
    assert len(verdict.reasons) == 5
    assert (store.folder(verdict) / "verdict.md").read_text().startswith("# Promote\n\nThe candidate is better")
    assert gate(recipe, base, base, candidate, store) == verdict
    assert len(store.all(Verdict)) == 1


@pytest.mark.parametrize(
    ("change", "decision"),
    [
        ({}, "cannot tell"),
        ({"tool_call": [0] * 64}, "keep"),
        ({"chat_format": [0] * 20 + [1] * 28}, "keep"),
        ({"held_out_loss": [3.0 + n / 100 for n in range(48)]}, "keep"),
        ({"final_answer": [1] * 60 + [0] * 4, "tool_call": [1] * 64}, "cannot tell"),
    ],
)
def test_against_a_champion(store: Store, recipe: Recipe, change: Made, decision: str) -> None:
    base, champion = scores(store, None, BASE), scores(store, "c" * 64, GOOD)
    verdict = gate(recipe, base, champion, scores(store, "a" * 64, {**GOOD, **change}), store)
    assert (verdict.decision, verdict.champion) == (decision, "c" * 64)
    assert all(c.base == float(np.mean(BASE[c.suite])) for c in verdict.comparisons)


def test_a_wider_margin_is_another_verdict(store: Store, recipe: Recipe) -> None:
    base, candidate = scores(store, None, BASE), scores(store, "a" * 64, {**GOOD, "chat_format": [0] * 4 + [1] * 44})
    strict = gate(recipe, base, base, candidate, store)
    lenient = gate(load("demo", ["evaluation.suites.chat_format.margin=0.3"])[0], base, base, candidate, store)
    assert (strict.decision, lenient.decision) == ("cannot tell", "promote")


def test_a_champion_on_another_base_is_pointed_out(store: Store, recipe: Recipe) -> None:
    champion = scores(store, "c" * 64, BASE, base="older")
    verdict = gate(recipe, scores(store, None, BASE), champion, scores(store, "a" * 64, GOOD), store)
    assert "stands on another base model" in verdict.reasons[0]


def test_what_cannot_be_decided_is_refused(store: Store, recipe: Recipe) -> None:
    base, champion = scores(store, None, BASE), scores(store, "c" * 64, GOOD)
    with pytest.raises(BadInput, match="is the champion already"):
        gate(recipe, base, champion, champion, store)
    with pytest.raises(BadInput, match="is the base model itself"):
        gate(recipe, base, base, base, store)
    partial = scores(store, "a" * 64, {"tool_call": [1] * 64})
    with pytest.raises(BadInput, match=r"evaluation\.suites\.final_answer.*without this suite"):
        gate(recipe, base, champion, partial, store)
    assert store.all(Verdict) == []


def test_each_hypothesis_of_a_year_spends_once(store: Store, recipe: Recipe) -> None:
    base = scores(store, None, BASE)
    first, second = (
        gate(
            recipe,
            base,
            base,
            scores(store, name * 64, {**GOOD, "tool_call": [0] * number + [1] * (64 - number)}),
            store,
        )
        for number, name in enumerate("ab")
    )
    assert first.level is not None
    assert second.level == pytest.approx(0.9 * first.level, rel=1e-3)
    assert (first.hypotheses, second.hypotheses) == (1, 2)
    assert first.findings[-1].numbers["level"] == first.level
    left = year(recipe, store)
    assert (left.hypotheses, left.level) == (2, pytest.approx(0.9 * second.level, rel=1e-3))
    # The store has lost a verdict, the ledger has not: the night gets the same answer at the same level.
    shutil.rmtree(store.folder(first))
    again = gate(recipe, base, base, scores(store, "a" * 64, GOOD | {"tool_call": [1] * 64}), store)
    assert (again.address, again.level, again.comparisons) == (first.address, first.level, first.comparisons)
    assert year(recipe, store).hypotheses == 2


def test_a_night_that_only_mlflow_knows_counts(store: Store, recipe: Recipe) -> None:
    base = scores(store, None, BASE)
    told = {"address": "f" * 64, "level": 1e-4, "asked_at": datetime.now(UTC).isoformat(), "decision": "keep"}
    night = NightRecord(
        run_id="r",
        recipe="demo",
        started="",
        seconds=1,
        status="FINISHED",
        outcome="kept",
        reason="",
        verdicts={"d": told},
    )
    old = night.model_copy(update={"verdicts": {"e": {"decision": "keep"}}})  # from before there were levels
    assert gate(recipe, base, base, scores(store, "a" * 64, GOOD), store, [night, old]).hypotheses == 2


def test_what_is_refused_spends_nothing(store: Store, recipe: Recipe) -> None:
    base = scores(store, None, BASE)
    with pytest.raises(BadInput):
        gate(recipe, base, base, scores(store, "a" * 64, {"tool_call": [1] * 64}), store)
    assert year(recipe, store).hypotheses == 0


def test_of_several_candidates_the_best_that_is_let_out_comes_last(recipe: Recipe, store: Store) -> None:
    better = GOOD | {"final_answer": [1] * 50 + [0] * 14}
    broken = better | {"final_answer": [1] * 64, "chat_format": [0] * 48}
    base = scores(store, None, BASE)
    made = {"one": GOOD, "two": better, "three": broken}
    verdicts = {name: gate(recipe, base, base, scores(store, name, suites), store) for name, suites in made.items()}
    assert [verdicts[name].decision for name in made] == ["promote", "promote", "keep"]
    assert best_last(verdicts) == ["three", "one", "two"]
    # Each of a night's candidates is a hypothesis of its own, and has a tenth less to spend than the one before.
    levels = [verdicts[name].level or 0 for name in made]
    assert levels[1:] == pytest.approx([0.9 * level for level in levels[:-1]], rel=1e-3)
    assert [verdicts[name].hypotheses for name in made] == [1, 2, 3]


def test_what_was_left_out_is_among_the_reasons(recipe: Recipe, store: Store) -> None:
    candidate = scores(store, "new", GOOD)
    suites = dict(candidate.suites)
    suites["tool_call"] = suites["tool_call"].model_copy(update={"not_run": {"has several turns": 7}})
    candidate = candidate.model_copy(update={"suites": suites})
    verdict = gate(recipe, scores(store, None, BASE), scores(store, None, BASE), candidate, store)
    (reason,) = (one for one in verdict.findings if one.code == "not run")
    assert (reason.suite, reason.numbers) == ("tool_call", {"has several turns": 7})
    assert reason.text in verdict.reasons
    assert reason.text in (store.folder(verdict) / "verdict.md").read_text()


def test_the_gate_decides_as_the_simulated_years_do(recipe: Recipe, store: Store) -> None:
    """60 candidates judged one after the other, from clearly worse to clearly better, through the store and the
    ledger, against the functions that the simulations of tests/tasks/evaluation/test_year.py call."""
    generator = np.random.default_rng(4)
    suite = recipe.evaluation.suites[0]
    alone = recipe.model_copy(update={"evaluation": recipe.evaluation.model_copy(update={"suites": (suite,)})})
    items, spent, decisions = 200, list[Spent](), list[str]()
    before = (generator.random(items) < 0.5).astype(float)
    reference = scores(store, None, {"tool_call": before.tolist()})
    for number in range(60):
        gain = (number - 30) / 100
        turned = generator.random(items) < 0.3
        after = np.where(turned, (generator.random(items) < 0.5 + gain).astype(float), before)
        verdict = gate(alone, reference, reference, scores(store, f"{number}", {"tool_call": after.tolist()}), store)
        level = budget(spent, START, recipe.gate.year_error).level
        spent.append(Spent(key=verdict.address, at=START, level=level))
        assert verdict.level == pytest.approx(level, rel=1e-3)  # days go by in minutes here
        d = after - before
        found = counted(int((d > 0).sum()), int((d < 0).sum()), items, recipe.gate.confidence, level)
        said = outcome("target", found, 0.0, verdict.level or 0.0)
        decisions.append(verdict.decision)
        assert (verdict.comparisons[0].outcome, verdict.comparisons[0].p) == (said, found.p)
    assert {*decisions} == {"promote", "keep", "cannot tell"}
    assert year(alone, store).hypotheses == 60
