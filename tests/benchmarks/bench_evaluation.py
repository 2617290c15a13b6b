"""Evaluation beside stock EvalScope, in one run on one machine. Not run by pytest.

    python tests/benchmarks/bench_evaluation.py [--prompts 200] [--tokens 16] [--base STORE]

The demo's base and two adapters answer the same short questions of arithmetic, greedily. Stock is EvalScope's own
`llm_ckpt` with its default batch, which evaluates three checkpoints (the adapters merged into the base) one after the
other; beside it stands `tasks.evaluate.evaluate`, with its process, its check of the items and its tables. Both are
timed from the start of a process to the last score, and both score with the same function.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.fetch import fetch_base
from tasks.recipe import Base, parse
from tasks.store import Store

BENCH = "nightowl_bench"


def questions(count: int) -> list[dict[str, str]]:
    draw = np.random.default_rng(0)
    pairs = [(int(a), int(b)) for a, b in draw.integers(1, 50, (4 * count, 2))]
    rows = [{"question": f"What is {a} + {b}?", "answer": f"{a} + {b} = {a + b}"} for a, b in dict.fromkeys(pairs)]
    return rows[:count]


def make_adapter(base: Path, folder: Path, merged: Path, seed: int) -> None:
    """A small random LoRA, and the base with it merged in."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    made = get_peft_model(model, LoraConfig(r=16, lora_alpha=16, target_modules="all-linear"))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.002)
    made.save_pretrained(folder)
    made.merge_and_unload().to(torch.bfloat16).save_pretrained(merged)
    AutoTokenizer.from_pretrained(base).save_pretrained(merged)


def stock(models: Mapping[str, str], rows: str, tokens: int, work: str) -> None:
    """EvalScope as it comes; this runs in a process of its own."""
    from evalscope import TaskConfig, run_task
    from evalscope.api.benchmark import BenchmarkMeta, DefaultDataAdapter
    from evalscope.api.dataset import Sample
    from evalscope.api.metric import Score
    from evalscope.api.registry import register_benchmark
    from evalscope.metrics.semantics.catalog import METRIC_DEFINITIONS
    from evalscope.metrics.semantics.entry import MetricEntry

    from tasks.evaluation import final_answer

    METRIC_DEFINITIONS[BENCH] = MetricEntry(baseline="quality.accuracy.ratio", metric_name="Right answer")

    @register_benchmark(
        BenchmarkMeta(
            name=BENCH,
            dataset_id=BENCH,
            pretty_name="Sums",
            description="Sums.",
            metric_list=[BENCH],
            primary_metric=BENCH,
            eval_split="test",
            prompt_template="{question}",
        )
    )
    class Sums(DefaultDataAdapter):
        def load_from_disk(self, **kwargs: Any) -> Any:
            return super().load_from_disk(use_local_loader=True)

        def record_to_sample(self, record: dict[str, Any]) -> Any:
            return Sample(input=record["question"], target=record["answer"], metadata=record)

        def match_score(
            self, original_prediction: str, filtered_prediction: str, reference: str, task_state: Any
        ) -> Any:
            right = final_answer.fault(reference, original_prediction) is None
            return Score(value={BENCH: float(right)}, main_score_name=BENCH, prediction=original_prediction)

    for name, checkpoint in models.items():
        run_task(
            TaskConfig(
                model=checkpoint,
                model_id=name,
                eval_type="llm_ckpt",
                model_args={"precision": "torch.bfloat16"},
                generation_config={"max_tokens": tokens, "do_sample": False},
                datasets=[BENCH],
                dataset_args={BENCH: {"local_path": rows}},
                work_dir=work,
                no_timestamp=True,
            )
        )


def cpu_seconds() -> float:
    """Of this process and of those that it started and that have ended."""
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def stock_answers(work: Path, name: str) -> dict[str, tuple[str, float]]:
    """What stock EvalScope's model said and scored, by question."""
    found = {}
    for line in (work / "reviews" / name / f"{BENCH}_default.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)["sample_score"]
        said = str(sample["score"]["prediction"])
        found[sample["sample_metadata"]["question"]] = (said, float(sample["score"]["value"][BENCH]))
    return found


def ours(store: Store, base: Any, adapters: Mapping[str, Path], rows: Path, tokens: int) -> dict[str, Any]:
    """`evaluate` on the same; scores by model."""
    from tasks.evaluate import evaluate
    from tasks.mixture import TokenisedMixture
    from tasks.training import Adapter

    suite = {"name": "sums", "measure": "final_answer", "data": str(rows), "role": "target"}
    recipe = parse(
        {
            "name": "bench",
            "base": {"uri": base.uri},
            "sources": [{"name": "none", "uri": f"file://{rows}", "kind": "chat", "share": 1.0}],
            "training": {"method": "lora"},
            "evaluation": {"suites": [suite | {"items": 10_000, "max_new_tokens": tokens}], "rotate": False},
        }
    )

    def no_rows(work: Path) -> dict[str, Any]:
        fields: dict[str, Any] = {"rows_in": 0, "rows_out": 0, "set_aside": {}, "recipe": "bench", "splits": {}}
        return fields | {"shares": {}, "chat_template": "", "tokenizer": ""}

    def adapter(name: str, folder: Path) -> Adapter:
        def build(work: Path) -> dict[str, Any]:
            (work / "adapter").symlink_to(folder)
            none = dict.fromkeys(("steps", "tokens", "supervised_tokens", "peak_memory", "resumed", "loss"), 0)
            fields = {"base": base.address, "mixture": "", "base_weights": "", "validation_loss": None}
            return fields | none | {"seconds": 0, "device": "cpu", "environment": {}}

        return store.make(Adapter, {"name": name}, build)[0]

    mixture = store.make(TokenisedMixture, {}, no_rows)[0]
    made = {name: adapter(name, folder) for name, folder in adapters.items()}
    found = evaluate(recipe, mixture, base, list(made.values()), store)
    names: dict[str | None, str] = {None: "base"} | {one.address: name for name, one in made.items()}
    return {
        names[address]: (scores.suites["sums"].mean, pl.read_parquet(store.folder(scores) / "items.parquet"))
        for address, scores in found.items()
    }


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--base", type=Path, help="store that has the base already; else it is made (a minute)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["NIGHTOWL_HOME"] = str(work / "home")
        store = Store(work / "store")
        if given.base:
            (store.root / "base").mkdir(parents=True)
            for folder_of_base in (given.base / "base").iterdir():
                (store.root / "base" / folder_of_base.name).symlink_to(folder_of_base)
        base = fetch_base(Base(uri="sample://smollm2-135m-instruct"), store)
        rows = work / "sums.jsonl"
        rows.write_text("".join(json.dumps(row) + "\n" for row in questions(given.prompts)), encoding="utf-8")
        checkpoints, adapters = {"base": store.folder(base)}, {}
        for seed in (1, 2):
            adapters[f"adapter-{seed}"], merged = work / f"adapter-{seed}", work / f"merged-{seed}"
            make_adapter(store.folder(base), adapters[f"adapter-{seed}"], merged, seed)
            checkpoints[f"adapter-{seed}"] = merged

        started, before = time.perf_counter(), cpu_seconds()
        found = ours(store, base, adapters, rows, given.tokens)
        seconds, worked = time.perf_counter() - started, cpu_seconds() - before
        print(f"{'nightowl':>10}: {seconds:7.1f} s, {worked:7.1f} CPU-seconds", flush=True)

        told = json.dumps([{name: str(one) for name, one in checkpoints.items()}, str(rows), given.tokens, str(work)])
        started, before = time.perf_counter(), cpu_seconds()
        as_ours = {**os.environ, "OMP_WAIT_POLICY": "PASSIVE"}  # else it is several times as slow beside other work
        command = [sys.executable, __file__, "--stock", told]
        with open(work / "stock.log", "w+") as log:
            code = subprocess.run(command, cwd=work, stdout=log, stderr=log, env=as_ours, check=False).returncode
            log.seek(0)
            assert code == 0, log.read()[-5000:]
        theirs, cost = time.perf_counter() - started, cpu_seconds() - before
        print(f"{'evalscope':>10}: {theirs:7.1f} s, {cost:7.1f} CPU-seconds")
        print(f"{'':>10}  {theirs / seconds:.1f} times as long, {cost / worked:.1f} times the CPU-seconds\n")

        print(f"{'model':10} {'nightowl':>9} {'evalscope':>10} {'same answer':>12} {'same score':>11}")
        for name, (mean, items) in found.items():
            other = stock_answers(work, name)
            pairs = [
                (row["output"].strip(), row["score"], *other[row["prompt"].rpartition("user\n")[2].partition("<")[0]])
                for row in items.iter_rows(named=True)
            ]
            same, alike = (sum(a == b for a, b in ((p[at], p[at + 2]) for p in pairs)) / len(pairs) for at in (0, 1))
            print(f"{name:10} {mean:9.3f} {np.mean([p[3] for p in pairs]):10.3f} {same:12.1%} {alike:11.1%}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--stock"]:
        stock(*json.loads(sys.argv[2]))
    else:
        main()
