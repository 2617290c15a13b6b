"""Training beside other libraries: the same conversations, the same number of steps, one table. Not run by pytest.

    python tests/benchmarks/bench_peers.py [STEPS]

QLoRA of the demo's base on chats of drawn words, batch 8, on the CPU, each library in a process of its own, Nightowl's
the one that a night starts. LLaMA-Factory and ms-swift are installed into environments of their own; where that fails
it is said. Bare Unsloth gets the rows in Nightowl's order, so its line and Nightowl's differ by the flow alone. Seconds
count from the first step to the last, and whole processes with imports, loading, trial batch and checks; compare
ratios. About six minutes on two idle cores, with the environments made. NIGHTOWL_BENCH_PEERS=FOLDER keeps them there.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tasks.fetch import fetch_base
from tasks.recipe import Base, Training
from tasks.store import Store
from tasks.training import TrainingSpec, weights_digest
from tasks.training.rows import order

BATCH = 8
PEERS = {"llamafactory": "llamafactory==0.9.5", "swift": "ms-swift==4.6.0"}
WAYS = {
    "bare Unsloth": "unsloth",
    "Nightowl, unsloth": "nightowl",
    "TRL + PEFT": "trl",
    "Nightowl, transformers": "nightowl-transformers",
    "Nightowl, packed": "nightowl-packed",
    "LLaMA-Factory 0.9.5": "llamafactory",
    "ms-swift 4.6.0": "swift",
}
WORDS = [*"abcdefghij", "night", "owl", "tree", "moves", "below", "town", "sleeps"]


def conversations(count: int) -> list[list[dict[str, str]]]:
    draw = random.Random(0)

    def say(low: float, high: float) -> str:
        length = int(min(400, max(8, draw.lognormvariate(low, high))))
        return " ".join(draw.choice(WORDS) for _ in range(length))

    return [
        [{"role": "user", "content": say(2.5, 0.5)}, {"role": "assistant", "content": say(4.2, 0.8)}]
        for _ in range(count)
    ]


def rendered(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[bool]]:
    prompt = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = tokenizer(messages[1]["content"] + "<|im_end|>", add_special_tokens=False)["input_ids"]
    return ids + answer, [False] * len(ids) + [True] * len(answer)


def environment_of(peer: str, place: Path) -> str:
    """The Python that has a peer. Raises RuntimeError with the reason where it cannot be had."""
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
    python = place / peer / "bin" / "python"
    if python.is_file():
        return str(python)
    if uv is None:
        raise RuntimeError("uv, which installs it, is not here")
    if shutil.disk_usage(place).free < 12e9:
        raise RuntimeError(f"it wants 12 GB of disk, and {place} has less")
    with_torch = [f"torch=={metadata.version('torch')}", "torchvision", "bitsandbytes"]
    for command in (
        [uv, "venv", "--quiet", "--python", sys.executable, str(place / peer)],
        [uv, "pip", "install", "--quiet", "--python", str(python), PEERS[peer], *with_torch],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=1_800, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command[1:3])} failed: {done.stderr.strip()[-300:]}")
    return str(python)


def peer(library: str, place: Path, environments: Path) -> dict[str, float]:
    python = environment_of(library, environments) if library in PEERS else sys.executable
    given = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1", "USE_HF": "1"}
    given |= {"OMP_WAIT_POLICY": "PASSIVE", "UNSLOTH_COMPILE_LOCATION": str(place / "compiled"), "HOME": str(place)}
    command = [python, str(Path(__file__).with_name("peer_training.py")), library, str(place)]
    started = time.perf_counter()
    done = subprocess.run(
        command, env={**os.environ, **given}, cwd=place, capture_output=True, text=True, timeout=1_800, check=False
    )
    if done.returncode:
        raise RuntimeError(f"it failed: {done.stderr.strip()[-800:]}")
    return json.loads(done.stdout.splitlines()[-1]) | {"whole": time.perf_counter() - started}


def main() -> None:
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 12
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        os.environ.setdefault("NIGHTOWL_HOME", f"{place}/home")
        environments = Path(os.environ.get("NIGHTOWL_BENCH_PEERS", place / "environments"))
        environments.mkdir(exist_ok=True)
        store = Store.open()
        base = fetch_base(Base(uri="sample://smollm2-135m-instruct"), store)
        shutil.copytree(store.folder(base), place / "base")
        from transformers import AutoTokenizer

        tokenizer = AutoTokenizer.from_pretrained(place / "base")
        said = conversations(steps * BATCH)
        (place / "rows.jsonl").write_text("".join(json.dumps({"messages": one}) + "\n" for one in said))
        made = [rendered(tokenizer, one) for one in said]
        schema = {"input_ids": pl.List(pl.Int32), "loss_mask": pl.List(pl.Boolean)}
        frame = pl.DataFrame({"input_ids": [m[0] for m in made], "loss_mask": [m[1] for m in made]}, schema=schema)
        frame.write_parquet(place / "train.parquet")
        lengths = np.array([len(ids) for ids, _ in made])
        how = {"batch_size": BATCH, "epochs": 1.0, "max_steps": None, "seed": 0}
        ordered = [made[row] for row in order(lengths, **how)]
        labels = [[i if m else -100 for i, m in zip(ids, mask, strict=True)] for ids, mask in ordered]
        pl.DataFrame({"input_ids": [ids for ids, _ in ordered], "labels": labels}).write_parquet(place / "ids.parquet")
        plan = {"batch_size": BATCH, "steps": steps, "rate": 2e-4, "max_length": 1024, "pad": tokenizer.pad_token_id}
        (place / "plan.json").write_text(json.dumps(plan))
        print(f"{len(made)} rows of {lengths.min()} to {lengths.max()} tokens, {lengths.sum()} in all, {steps} steps")

        spec = TrainingSpec(
            work=place,
            base_folder=place / "base",
            base_uri=base.uri,
            base_revision=base.revision,
            base_weights=weights_digest(base),
            train=place / "train.parquet",
            validation=None,
            max_length=1024,
            chat_template=None,
            # One pass a step, as the others: left to itself, Nightowl would take fewer rows of these at a time.
            training=Training(batch_size=BATCH, micro_batch_size=BATCH, warmup_steps=1),
        )
        (place / "spec.json").write_text(spec.model_dump_json())
        found: dict[str, dict[str, float]] = {}
        for name, library in WAYS.items():
            try:
                found[name] = one = peer(library, place, environments)
            except (RuntimeError, subprocess.TimeoutExpired) as error:
                print(f"{name} was not measured: {error}", flush=True)
                continue
            tokens = int(lengths.sum())
            print(
                f"{name:24} {tokens / one['seconds']:5.0f} tokens/s, {tokens / one['cpu']:5.0f} per CPU-second, "
                f"useful {min(1, tokens / one['padded']):4.0%}, peak {one['peak'] / 1e9:4.1f} GB, "
                f"loop {one['seconds']:5.1f} s, whole process {one['whole']:5.1f} s",
                flush=True,
            )
        for ours in (name for name in found if name.startswith("Nightowl")):
            for name in (name for name in found if not name.startswith("Nightowl")):
                faster, cheaper = (found[name][what] / found[ours][what] for what in ("seconds", "cpu"))
                print(
                    f"{ours}: {faster:.2f} times the tokens/s of {name}, {cheaper:.2f} per CPU-second, "
                    f"{found[ours]['peak'] / found[name]['peak']:.2f} of its memory"
                )
        if {"bare Unsloth", "Nightowl, unsloth"} <= set(found):
            one, other = found["Nightowl, unsloth"], found["bare Unsloth"]
            wall, cpu = (one[what] / other[what] - 1 for what in ("steady_seconds", "steady_cpu"))
            print(f"the flow around bare Unsloth's loop costs {wall:+.1%} of its time, {cpu:+.1%} of its CPU-seconds, "
                  "both after the first step (bound: 2 %)")  # fmt: skip


if __name__ == "__main__":
    main()
