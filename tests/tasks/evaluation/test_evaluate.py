"""Evaluation end to end on a tiny random model, in its real process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import psutil
import pytest
from judge_stand_in import Judged
from vllm_stand_in import install

from tasks.conversations import Renderer
from tasks.errors import BadInput, WorldFailed
from tasks.evaluate import evaluate, is_evaluated
from tasks.evaluation import Scores, SuiteRun
from tasks.gate import gate
from tasks.mixture import Split, TokenisedMixture
from tasks.recipe import Recipe, Training, parse
from tasks.sources import BaseSnapshot
from tasks.store import Store
from tasks.training import Adapter

SUITES = [
    {"name": "tool_call", "kind": "tool", "role": "target", "items": 6, "max_new_tokens": 8},
    {
        "name": "final_answer",
        "kind": "reasoning",
        "role": "target",
        "mode": "thinking",
        "items": 6,
        "max_new_tokens": 8,
    },
    {"name": "chat_format", "kind": "chat", "role": "guard", "items": 6, "max_new_tokens": 8, "margin": 0.1},
    {"name": "held_out_loss", "kind": "chat", "role": "guard", "items": 6, "margin": 0.1},
]


def recipe_of(template: str, **evaluation: Any) -> Recipe:
    sources = [
        {"name": kind, "uri": f"file://{kind}.jsonl", "kind": kind, "share": share}
        for kind, share in (("tool", 0.5), ("reasoning", 0.25), ("chat", 0.25))
    ]
    return parse(
        {
            "name": "tiny",
            "base": {"uri": "file://tiny", "chat_template": template},
            "sources": sources,
            "evaluation": {"suites": SUITES, "batch_size": 4} | evaluation,
            "gate": {"min_items": 4},
        }
    )


def made_base(store: Store, make: Callable[..., None], seed: int) -> BaseSnapshot:
    def build(work: Path) -> dict[str, Any]:
        make(work, seed)
        return {"uri": "file://tiny", "revision": f"r{seed}", "requested": None, "size": 1, "licence": None}

    return store.make(BaseSnapshot, {"seed": seed}, build)[0]


def made_mixture(store: Store, rows: pl.DataFrame) -> TokenisedMixture:
    def build(work: Path) -> dict[str, Any]:
        rows.write_parquet(work / "test.parquet")
        fields: dict[str, Any] = {"rows_in": rows.height, "rows_out": rows.height, "set_aside": {}, "recipe": "tiny"}
        held_out = Split(rows=rows.height, tokens=0, supervised_tokens=0, digest=str(rows.height))
        return fields | {"splits": {"test": held_out}, "shares": {}, "chat_template": "", "tokenizer": ""}

    return store.make(TokenisedMixture, {"rows": rows["row_id"].to_list()}, build)[0]


def made_adapter(store: Store, base: BaseSnapshot, make: Callable[..., None], seed: int) -> Adapter:
    def build(work: Path) -> dict[str, Any]:
        make(store.folder(base), work / "adapter", seed)
        none = dict.fromkeys(("steps", "tokens", "supervised_tokens", "peak_memory", "resumed"), 0)
        fields = {"base": base.address, "mixture": "", "base_weights": "", "loss": 0, "validation_loss": None}
        return fields | none | {"seconds": 0, "device": "cpu", "environment": {}}

    return store.make(Adapter, {"seed": seed, "base": base.address}, build)[0]


def made_whole(store: Store, base: BaseSnapshot, make: Callable[..., None], seed: int, template: str) -> Adapter:
    """A model all of whose weights are others than its base's, as method full leaves one."""

    def make_whole(of: Path, work: Path, seed: int) -> None:
        make(work, seed)
        Renderer.open(of, template).save(work)

    return made_adapter(store, base, make_whole, seed)


class Heard(list[tuple[str, int, int]]):
    def __call__(self, what: str, done: int, total: int) -> None:
        self.append((what, done, total))

    @property
    def models(self) -> set[str]:
        return {what.partition(":")[0] for what, _, _ in self}


def test_a_night_of_evaluation(
    tmp_path: Path,
    rows: Callable[[int], pl.DataFrame],
    make_base: Callable[..., None],
    make_adapter: Callable[..., None],
    template: str,
) -> None:
    store, recipe = Store(tmp_path / "store"), recipe_of(template)
    base = made_base(store, make_base, 0)
    mixture = made_mixture(store, rows(8))
    champion, candidate = (made_adapter(store, base, make_adapter, seed) for seed in (1, 2))

    # The process is killed in the middle of the second suite: an error, nothing half-made, and what was done is kept.
    def kill(what: str, done: int, total: int) -> None:
        if what.endswith("chat_format") and done == 12:
            # Other tests' processes may be children of this one as well.
            own = (one for one in psutil.Process().children() if "tasks.evaluation.models_process" in one.cmdline())
            next(own).kill()

    with pytest.raises(WorldFailed, match="killed by SIGKILL"):
        evaluate(recipe, mixture, base, [champion], store, kill)
    assert store.all(Scores) == []
    kept = [pl.read_parquet(file)["prompt"][0] for file in tmp_path.rglob("answers.parquet")]
    assert len(kept) == 2

    heard = Heard()
    assert not is_evaluated(recipe, mixture, base, [champion], store)
    first = evaluate(recipe, mixture, base, [champion], store, heard)
    assert is_evaluated(recipe, mixture, base, [champion], store)
    assert not is_evaluated(recipe, mixture, base, [champion, candidate], store)
    assert set(first) == {None, champion.address}
    assert heard.models == {"base", champion.short}
    assert heard[-1][1:] == (48, 48)
    assert store.all(SuiteRun)[0].score.items == 6
    assert [done for _, done, _ in heard] == sorted(done for _, done, _ in heard)

    items = {address: pl.read_parquet(store.folder(scores) / "items.parquet") for address, scores in first.items()}
    for address, scores in first.items():
        assert (scores.base, scores.adapter) == (base.address, address)
        assert {name: suite.items for name, suite in scores.suites.items()} == dict.fromkeys(scores.suites, 6)
        assert items[address].filter(pl.col("new_tokens") > 8).is_empty()
    for name in first[None].suites:
        ids = [set(frame.filter(pl.col("suite") == name)["item_id"]) for frame in items.values()]
        assert ids[0] == ids[1]
    assert first[None].suites["held_out_loss"].mean != first[champion.address].suites["held_out_loss"].mean
    assert first[None].suites["held_out_loss"].mean > 1

    # Nothing moved: no process at all. A candidate more: it alone is evaluated.
    heard = Heard()
    assert evaluate(recipe, mixture, base, [champion], store, heard) == first
    assert heard == []
    second = evaluate(recipe, mixture, base, [champion, candidate], store, heard)
    assert heard.models == {candidate.short}
    assert {address: second[address] for address in first} == first

    # A suite more: the champion is run on that alone.
    heard = Heard()
    thinking = {
        "name": "thinks",
        "measure": "thinking",
        "kind": "chat",
        "role": "guard",
        "items": 4,
        "max_new_tokens": 4,
    }
    third = evaluate(recipe_of(template, suites=[*SUITES, thinking]), mixture, base, [champion], store, heard)
    assert {what.partition(": ")[2] for what, _, _ in heard} == {"thinks"}
    assert heard[-1][1:] == (8, 8)
    assert third[champion.address].suites.items() > first[champion.address].suites.items()

    verdict = gate(recipe, first[None], first[champion.address], second[candidate.address], store)
    assert (verdict.candidate, verdict.champion) == (candidate.address, champion.address)
    assert {c.suite: c.items for c in verdict.comparisons} == dict.fromkeys(first[None].suites, 6)
    assert verdict.decision in ("keep", "cannot tell")


def test_a_whole_model_is_judged_beside_an_adapter_as_it_would_be_alone(
    tmp_path: Path,
    rows: Callable[[int], pl.DataFrame],
    make_base: Callable[..., None],
    make_adapter: Callable[..., None],
    template: str,
) -> None:
    store, recipe = Store(tmp_path / "store"), recipe_of(template, suites=[SUITES[0], SUITES[3]])
    recipe = recipe.model_copy(update={"training": Training(backend="transformers", method="full")})
    base, same = made_base(store, make_base, 0), made_base(store, make_base, 7)
    mixture = made_mixture(store, rows(8))
    adapter, whole = made_adapter(store, base, make_adapter, 1), made_whole(store, base, make_base, 7, template)
    found = evaluate(recipe, mixture, base, [whole, adapter], store)
    alone = evaluate(recipe, mixture, same, [], store)

    def said(scores: Scores) -> pl.DataFrame:
        return pl.read_parquet(store.folder(scores) / "items.parquet").select("item_id", "output", "score")

    assert said(found[whole.address]).equals(said(alone[None]))
    assert not said(found[whole.address]).equals(said(found[None]))
    assert not said(found[adapter.address]).equals(said(found[None]))


def test_an_adapter_of_another_base_is_evaluated_on_its_own(
    tmp_path: Path,
    rows: Callable[[int], pl.DataFrame],
    make_base: Callable[..., None],
    make_adapter: Callable[..., None],
    template: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    store, recipe = Store(tmp_path / "store"), recipe_of(template, suites=SUITES[:1])
    base, other = made_base(store, make_base, 0), made_base(store, make_base, 1)
    mixture = made_mixture(store, rows(8))
    foreign = made_adapter(store, other, make_adapter, 1)
    heard = Heard()
    found = evaluate(recipe, mixture, base, [foreign], store, heard)
    assert (found[None].base, found[foreign.address].base) == (base.address, other.address)
    assert "not on this recipe's base" in caplog.text
    homeless = foreign.model_copy(update={"base": "f" * 64})
    with pytest.raises(BadInput, match="base that is not in the store"):
        evaluate(recipe, mixture, base, [homeless], store)
    with pytest.raises(BadInput, match=r"evaluation\.suites\.tool_call\.kind"):
        evaluate(recipe, made_mixture(store, rows(2).filter(pl.col("kind") == "chat")), base, [], store)


def test_without_vllm_one_error_names_the_way_out(
    rows: Callable[[int], pl.DataFrame],
    make_base: Callable[..., None],
    template: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, recipe = Store(tmp_path / "store"), recipe_of(template, backend="vllm")
    base, mixture = made_base(store, make_base, 0), made_mixture(store, rows(8))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BadInput, match=r"evaluation\.backend.*vllm.*is not installed here"):
        evaluate(recipe, mixture, base, [], store)


def test_judged_and_sampled_through_a_stand_in_for_vllm(
    rows: Callable[[int], pl.DataFrame],
    make_base: Callable[..., None],
    make_adapter: Callable[..., None],
    template: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    judge: Judged,
) -> None:
    """Drawn answers, three to an item, and a stand-in for a judge that likes the longer answer."""
    judged = {"name": "judge", "kind": "chat", "role": "guard", "items": 4, "max_new_tokens": 12, "decoding": "sampled"}
    suites = [SUITES[0], judged | {"samples": 3, "temperature": 1.0}]
    asked = {"url": f"{judge.url}/v1", "model": "longer", "key_variable": "JUDGE_KEY"}
    recipe = recipe_of(template, backend="vllm", suites=suites, judge=asked)
    store = Store(tmp_path / "store")
    base, mixture = made_base(store, make_base, 0), made_mixture(store, rows(8))
    adapter = made_adapter(store, base, make_adapter, 1)
    monkeypatch.setenv("PATH", str(install(tmp_path / "bin").parent), prepend=":")
    with pytest.raises(BadInput, match=r"evaluation\.judge\.key_variable.*JUDGE_KEY"):
        evaluate(recipe, mixture, base, [adapter], store)
    monkeypatch.setenv("JUDGE_KEY", "secret-of-the-judge")
    whole = made_whole(store, base, make_base, 7, template)  # which takes a server of its own
    found = evaluate(recipe, mixture, base, [adapter, whole], store)
    assert set(found) == {None, adapter.address, whole.address}
    assert set(judge.keys) == {"Bearer secret-of-the-judge"}
    for scores in found.values():
        items = pl.read_parquet(store.folder(scores) / "items.parquet").filter(pl.col("suite") == "judge")
        assert items.group_by("item_id").len()["len"].to_list() == [3] * 4
        assert scores.suites["judge"].items == 4
        assert scores.suites["judge"].not_run == {}
        expected = [float(len(a) > len(b)) for a, b in zip(items["output"], items["expected"], strict=True)]
        assert items["score"].to_list() == pytest.approx(expected)
        assert items["output"].n_unique() > 4
    verdict = gate(recipe, found[None], found[None], found[adapter.address], store)
    assert {c.suite: c.items for c in verdict.comparisons} == {"tool_call": 6, "judge": 4}
    asked_before = len(judge.keys)
    assert evaluate(recipe, mixture, base, [adapter, whole], store) == found
    assert len(judge.keys) == asked_before
    assert not [file for file in tmp_path.rglob("*") if file.is_file() and b"secret-of-the" in file.read_bytes()]
