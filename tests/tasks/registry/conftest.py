"""A tiny but real night: a random two-layer Llama, a PEFT adapter on it, data, scores and a verdict, all in a store."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
from llama import byte_tokenizer, write_llama

from tasks.conversations import Conversations, Finding
from tasks.evaluation import Comparison, Scores, SuiteScore, Verdict
from tasks.mixture import SharePart, Split, TokenisedMixture
from tasks.recipe import Recipe, Setting, load
from tasks.register import register
from tasks.registry import Night, Version, client
from tasks.sources import BaseSnapshot, Snapshot
from tasks.store import Store
from tasks.training import Adapter

TEMPLATE = Path(__file__).resolve().parents[3] / "deployments" / "recipes" / "chatml-hybrid.jinja"
COMMIT = "5f1f5c1b0a" * 4


@dataclass
class World:
    """Everything that `register` and `report` are given."""

    recipe: Recipe
    settings: list[Setting]
    store: Store
    base: BaseSnapshot
    snapshots: list[Snapshot]
    conversations: list[Conversations]
    mixture: TokenisedMixture
    adapter: Adapter
    scores: dict[str, Scores]
    verdict: Verdict

    def register(self, night: Night) -> Version:
        """Register the candidate in a night."""
        made = (self.adapter, self.mixture, self.snapshots, self.conversations, self.base, self.scores, self.verdict)
        return register(self.recipe, night, *made, self.store)


@pytest.fixture(scope="session")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty MLflow database; making one takes seconds, copying it does not."""
    folder = tmp_path_factory.mktemp("database")
    before = os.environ.get("NIGHTOWL_HOME")
    os.environ["NIGHTOWL_HOME"] = str(folder)
    try:
        client()
    finally:
        if before is None:
            del os.environ["NIGHTOWL_HOME"]
        else:
            os.environ["NIGHTOWL_HOME"] = before
    return folder / "mlflow"


@pytest.fixture
def embedded(database: Path, nightowl_home: Path) -> Path:
    """The test's home with an MLflow database in it."""
    nightowl_home.mkdir(parents=True, exist_ok=True)
    shutil.copytree(database, nightowl_home / "mlflow")
    return nightowl_home


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`base/`: a random Llama of two layers with a byte-level tokenizer; `adapter-N/`: four LoRA adapters on it;
    `whole/`: one as method full leaves it."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import GenerationConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny")
    tokenizer = byte_tokenizer(chat_template=TEMPLATE.read_text(encoding="utf-8"))
    write_llama(folder / "base", tokenizer, hidden_size=32, intermediate_size=64)
    for seed in range(4):
        torch.manual_seed(seed)
        model = LlamaForCausalLM.from_pretrained(folder / "base")
        peft = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
        target = folder / f"adapter-{seed}"
        peft.save_pretrained(target)
        tokenizer.save_pretrained(target)
        GenerationConfig(do_sample=False, eos_token_id=tokenizer.eos_token_id).save_pretrained(target)
    write_llama(folder / "whole", tokenizer, seed=9, hidden_size=32, intermediate_size=64, dtype=torch.bfloat16)
    GenerationConfig(do_sample=False, eos_token_id=tokenizer.eos_token_id).save_pretrained(folder / "whole")
    return folder


def conversation(name: str, row: int) -> dict[str, object]:
    messages = [
        {"role": "user", "content": f"{name} {row}", "thinking": None, "tool_calls": None, "tool_call_id": None},
        {"role": "assistant", "content": "yes", "thinking": None, "tool_calls": None, "tool_call_id": None},
    ]
    row_id = hashlib.sha256(f"{name} {row}".encode()).hexdigest()[:32]
    return {"row_id": row_id, "source": name, "kind": "chat", "messages": messages, "tools": None}


@pytest.fixture
def world(tiny: Path, nightowl_home: Path) -> World:
    return make_world(tiny)


@pytest.fixture
def make(tiny: Path) -> Callable[..., World]:
    """Worlds with another adapter, champion or decision: `make(seed=1, champion=address, decision="keep")`."""
    return lambda **how: make_world(tiny, **how)


@pytest.fixture
def enter() -> Callable[[World], Version]:
    """Register a world's candidate as a night does."""
    return register_world


def register_world(world: World) -> Version:
    night = Night.start(world.recipe, world.settings, "http://127.0.0.1:4200/runs/flow-run/1")
    with night.stage("train", "candidate-1") as stage:
        stage.inputs(world.mixture, world.snapshots, world.conversations)
        stage.made(world.adapter)
    version = world.register(night)
    night.finish("kept", "test")
    return version


def make_world(
    tiny: Path,
    seed: int = 0,
    champion: str | None = None,
    decision: str = "promote",
    gain: float = 0.6,
    whole: bool = False,
) -> World:
    in_full = ["training.method=full", "training.backend=transformers"] * whole
    recipe, settings = load("demo", [f"training.seed={seed}", *in_full])
    store = Store.open()

    def copy(source: Path, inside: str = "") -> Callable[[Path], dict[str, object]]:
        def build(work: Path) -> dict[str, object]:
            shutil.copytree(source, work / inside, dirs_exist_ok=True)
            return {}

        return build

    def build_base(work: Path) -> dict[str, object]:
        copy(tiny / "base")(work)
        return {"uri": recipe.base.uri, "revision": "1f0b2c", "requested": None, "size": 1, "licence": "Apache-2.0"}

    base, _ = store.make(BaseSnapshot, {"tiny": 1}, build_base)
    snapshots, conversations = [], []
    for source in recipe.sources:
        uri = "hf://org/chat@main" if source.name == "chat" else source.uri

        def build_snapshot(work: Path, name: str = source.name, uri: str = uri) -> dict[str, object]:
            (work / "data").mkdir()
            (work / "data" / "rows.jsonl").write_text(f'{{"source": "{name}"}}\n')
            licence = {"tools": "Apache-2.0", "arithmetic": "cc-by-nc-4.0"}.get(name)
            requested = "main" if uri.startswith("hf://") else None
            return {"uri": uri, "revision": COMMIT, "requested": requested, "rows": 40, "size": 20, "licence": licence}

        snapshot, _ = store.make(Snapshot, {"uri": uri}, build_snapshot)

        def build_conversations(
            work: Path, name: str = source.name, kind: str = source.kind, snapshot: Snapshot = snapshot
        ) -> dict[str, object]:
            (work / "docs").mkdir()
            (work / "docs" / "index.html").write_text("<p>docs</p>")
            finding = Finding(
                rule="answer_not_empty",
                severity="critical",
                rows=2,
                share=0.05,
                mostly=0.9,
                stops=False,
                explanation="The assistant says something.",
                example="<script>alert(1)</script> | empty",
            )
            return {
                "source": name,
                "snapshot": snapshot.address,
                "row_kind": kind,
                "format": "openai",
                "passed": True,
                "findings": (finding,),
                "answers": 38,
                "trained_answers": 38,
                "tokens": 4000,
                "supervised_tokens": 1000,
                "rows_in": 40,
                "rows_out": 38,
                "set_aside": {"answer_not_empty": 2},
            }

        gated, _ = store.make(Conversations, {"snapshot": snapshot.address}, build_conversations)
        snapshots.append(snapshot)
        conversations.append(gated)

    def build_mixture(work: Path) -> dict[str, object]:
        import matplotlib.pyplot as plt

        rows = [conversation(source.name, row) for source in recipe.sources for row in range(38)]
        frame = pl.DataFrame(rows)
        parts = {"train": frame[:90], "validation": frame[90:100], "test": frame[100:]}
        for name, part in parts.items():
            part.write_parquet(work / f"{name}.parquet")
        figure, axes = plt.subplots(figsize=(4, 2))
        axes.bar([source.name for source in recipe.sources], [source.share for source in recipe.sources])
        figure.savefig(work / "composition.png")
        plt.close(figure)
        splits = {
            name: Split(rows=len(part), tokens=100 * len(part), supervised_tokens=25 * len(part), digest=f"{name}-" * 8)
            for name, part in parts.items()
        }
        shares = {
            source.name: SharePart(asked=source.share, reached=source.share, rows=30, amount=750)
            for source in recipe.sources
        }
        return {
            "recipe": recipe.name,
            "splits": splits,
            "shares": shares,
            "chat_template": "t",
            "tokenizer": "t",
            "rows_in": 114,
            "rows_out": 114,
            "set_aside": {},
        }

    mixture, _ = store.make(
        TokenisedMixture, {"conversations": [entry.address for entry in conversations]}, build_mixture
    )

    def build_adapter(work: Path) -> dict[str, object]:
        copy(tiny / ("whole" if whole else f"adapter-{seed}"), "adapter")(work)
        lines = [
            json.dumps(
                {
                    "step": step,
                    "steps": 40,
                    "loss": 2.6 * 0.95**step,
                    "learning_rate": 1e-3,
                    "tokens_per_second": 500.0,
                    "seconds": float(step),
                    "validation_loss": 2.5 * 0.95**step if step % 10 == 0 else None,
                }
            )
            for step in range(1, 41)
        ]
        (work / "progress.jsonl").write_text("\n".join(lines) + "\n")
        return {
            "base": base.address,
            "mixture": mixture.address,
            "base_weights": base.files["model.safetensors"],
            "steps": 40,
            "loss": 0.41,
            "validation_loss": 0.47,
            "tokens": 9000,
            "supervised_tokens": 2250,
            "seconds": 12.5,
            "peak_memory": 3_600_000_000,
            "device": "CPU, 2 threads",
            "resumed": 0,
            "environment": {"torch": "2.14.1", "python": "3.11"},
        }

    adapter, _ = store.make(Adapter, {"seed": seed, "mixture": mixture.address}, build_adapter)
    scores = {"base": make_scores(store, recipe, base, None, 0.1)}
    if champion:
        scores[champion] = make_scores(store, recipe, base, champion, 0.5)
    scores[adapter.address] = make_scores(store, recipe, base, adapter.address, 0.1 + gain)
    verdict = make_verdict(store, recipe, scores, adapter.address, champion, decision)
    return World(recipe, settings, store, base, snapshots, conversations, mixture, adapter, scores, verdict)


def make_scores(store: Store, recipe: Recipe, base: BaseSnapshot, adapter: str | None, right: float) -> Scores:
    def build(work: Path) -> dict[str, object]:
        rows = []
        for suite in recipe.evaluation.suites:
            loss = suite.name == "held_out_loss"
            for item in range(suite.items):
                score = 2.0 - right + 0.01 * (item % 7) if loss else float(item < right * suite.items)
                rows.append(
                    {
                        "suite": suite.name,
                        "item_id": f"{suite.name}-{item:03d}",
                        "score": score,
                        "prompt": f"What is {item} + 1? <b>|</b>",
                        "output": f"<think>{item}</think> {item + 1 if score else 'no idea'}",
                        "expected": str(item + 1),
                        "stopped": True,
                        "new_tokens": 5,
                        "detail": "",
                    }
                )
        frame = pl.DataFrame(rows)
        frame.write_parquet(work / "items.parquet")
        suites = {
            suite.name: SuiteScore(
                items=suite.items,
                mean=frame.filter(pl.col("suite") == suite.name)["score"].mean(),
                unit="nats per token" if suite.name == "held_out_loss" else "share",
                higher_is_better=suite.name != "held_out_loss",
                digest="d",
            )
            for suite in recipe.evaluation.suites
        }
        return {"base": base.address, "adapter": adapter, "suites": suites, "seconds": 1.0}

    return store.make(Scores, {"adapter": adapter, "right": right}, build)[0]


def make_verdict(
    store: Store, recipe: Recipe, scores: dict[str, Scores], candidate: str, champion: str | None, decision: str
) -> Verdict:
    def build(work: Path) -> dict[str, object]:
        comparisons = []
        for suite in recipe.evaluation.suites:
            base, ours = scores["base"].suites[suite.name], scores[candidate].suites[suite.name]
            reference = scores[champion or "base"].suites[suite.name]
            sign = 1 if ours.higher_is_better else -1
            difference = sign * (ours.mean - reference.mean)
            comparisons.append(
                Comparison(
                    suite=suite.name,
                    role=suite.role,
                    unit=ours.unit,
                    higher_is_better=ours.higher_is_better,
                    items=suite.items,
                    base=base.mean,
                    reference=reference.mean,
                    candidate=ours.mean,
                    difference=difference,
                    low=difference - 0.1,
                    high=difference + 0.1,
                    p=0.001,
                    margin=suite.margin,
                    wins=38,
                    losses=0,
                    outcome="better" if difference > 0 else "not worse",
                )
            )
        reasons = ("tool_call is better by 60 points", "no guard is worse than its margin")
        return {
            "candidate": candidate,
            "champion": champion,
            "decision": decision,
            "reasons": reasons,
            "comparisons": comparisons,
        }

    inputs = {"candidate": candidate, "champion": champion, "decision": decision}
    return store.make(Verdict, inputs, build)[0]
