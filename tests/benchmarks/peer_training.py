"""One library's training of the rows of bench_peers.py, in whichever environment has it. Prints one line of JSON.

    python peer_training.py LIBRARY FOLDER

LIBRARY: one of those in main; FOLDER holds base/, rows.jsonl (messages), ids.parquet (input_ids and labels, in the
order of training), spec.json (of Nightowl) and plan.json (`gpu`: on one; `micro`: rows of a forward pass, of unsloth
and trl). `seconds`: of the trainer's loop; `cpu`: CPU seconds of the process meanwhile; `steady_seconds`, `steady_cpu`:
the same without the first step, which pays for what is compiled and allocated once; `padded`: tokens that went through
it, padding among them; `peak`: up to the last step, the largest resident size, or what was reserved on the GPU, in
bytes.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

LORA = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def measured(train: Callable[[], Any]) -> dict[str, float]:
    """What `train` took, seen from transformers' own Trainer, which all of these train with."""
    import torch
    import transformers

    found: dict[str, float] = {"padded": 0}
    counts: list[bool] = []  # while the trainer's loop runs: Nightowl's trial batch and its checks are no training
    loop = transformers.Trainer._inner_training_loop
    first: list[tuple[float, float]] = []  # when the first step ended
    step_end = transformers.trainer_callback.CallbackHandler.on_step_end

    def now() -> tuple[float, float]:
        return time.perf_counter(), time.process_time()

    def stepped(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not first:
            first.append(now())
        return step_end(self, *args, **kwargs)

    def timed(self: Any, *args: Any, **kwargs: Any) -> Any:
        begun = now()
        counts.append(True)
        ended = loop(self, *args, **kwargs)
        counts.clear()
        done = now()
        found["seconds"], found["cpu"] = (at - was for at, was in zip(done, begun, strict=True))
        found["steady_seconds"], found["steady_cpu"] = (at - was for at, was in zip(done, first[0], strict=True))
        found["peak"] = peak()
        return ended

    transformers.trainer_callback.CallbackHandler.on_step_end = stepped
    transformers.Trainer._inner_training_loop = timed
    embed = torch.nn.Embedding.forward

    def counted(self: Any, ids: Any) -> Any:
        # Each forward pass of training looks its tokens up once.
        if counts and torch.is_grad_enabled() and ids.dim() == 2:
            found["padded"] += ids.numel()
        return embed(self, ids)

    torch.nn.Embedding.forward = counted
    train()
    return found


def peak() -> int:
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_reserved()
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


def trl_config(place: Path, plan: dict[str, Any], **more: Any) -> Any:
    from trl import SFTConfig

    return SFTConfig(
        output_dir=str(place / "out"),
        per_device_train_batch_size=plan.get("micro", plan["batch_size"]),
        gradient_accumulation_steps=plan["batch_size"] // plan.get("micro", plan["batch_size"]),
        max_steps=plan["steps"],
        learning_rate=plan["rate"],
        warmup_steps=1,
        max_length=plan["max_length"],
        bf16=True,
        use_cpu=not plan.get("gpu"),
        seed=0,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        gradient_checkpointing=bool(plan.get("gpu")),
        **more,
    )


def rows(place: Path) -> Any:
    from datasets import Dataset

    return Dataset.from_parquet(str(place / "ids.parquet"), cache_dir=str(place / "cache"))


def unsloth(place: Path, plan: dict[str, Any]) -> None:
    """Unsloth's own loop, as its notebooks write it, over tokenised rows in the order that Nightowl trains them."""
    from unsloth import FastLanguageModel

    model, tokenizer = FastLanguageModel.from_pretrained(
        str(place / "base"), max_seq_length=plan["max_length"], load_in_4bit=True, local_files_only=True
    )
    model = FastLanguageModel.get_peft_model(
        model, r=16, lora_alpha=32, target_modules=LORA, use_gradient_checkpointing=False, random_state=0
    )
    from trl import SFTTrainer
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    SFTTrainer(
        model=model,
        args=trl_config(
            place,
            plan,
            dataset_kwargs={"skip_prepare_dataset": True},
            shuffle_dataset=False,
            train_sampling_strategy="sequential",
        ),
        train_dataset=rows(place),
        processing_class=tokenizer,
        data_collator=DataCollatorForLanguageModeling(pad_token_id=plan["pad"]),
    ).train()


def trl(place: Path, plan: dict[str, Any]) -> None:
    """TRL and PEFT as their documentation puts them together: batches as they come."""
    import torch
    import transformers
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
    from trl import SFTTrainer

    class OnCpu(SFTTrainer):
        compute_loss = transformers.Trainer.compute_loss  # TRL's own is a Triton kernel

    four_bit = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    (SFTTrainer if plan.get("gpu") else OnCpu)(
        model=AutoModelForCausalLM.from_pretrained(
            place / "base",
            dtype=torch.bfloat16,
            quantization_config=four_bit,
            attn_implementation="sdpa",
            device_map={"": 0} if plan.get("gpu") else None,
            local_files_only=True,
        ),
        args=trl_config(place, plan, dataset_kwargs={"skip_prepare_dataset": True}),
        train_dataset=rows(place).shuffle(seed=0),
        processing_class=AutoTokenizer.from_pretrained(place / "base"),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"),
    ).train()


def llamafactory(place: Path, plan: dict[str, Any]) -> None:
    from llamafactory.train.tuner import run_exp

    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    about = {"file_name": "rows.jsonl", "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    (place / "dataset_info.json").write_text(json.dumps({"rows": about}))
    run_exp(
        {
            "stage": "sft", "do_train": True, "finetuning_type": "lora", "template": "smollm",
            "model_name_or_path": str(place / "base"), "dataset": "rows", "dataset_dir": str(place),
            "cutoff_len": plan["max_length"], "output_dir": str(place / "out"), "report_to": "none",
            "quantization_bit": 4, "quantization_method": "bnb", "lora_rank": 16, "lora_alpha": 32,
            "lora_target": "all", "per_device_train_batch_size": plan["batch_size"], "max_steps": plan["steps"],
            "gradient_accumulation_steps": 1, "learning_rate": plan["rate"], "bf16": True, "use_cpu": True,
            "logging_steps": 1, "save_strategy": "no", "overwrite_cache": True, "disable_gradient_checkpointing": True,
            "disable_tqdm": True,
        }
    )  # fmt: skip


def swift(place: Path, plan: dict[str, Any]) -> None:
    from swift.pipelines import sft_main

    given = {
        "model": place / "base", "model_type": "llama", "template": "chatml", "tuner_type": "lora",
        "dataset": place / "rows.jsonl", "split_dataset_ratio": 0, "torch_dtype": "bfloat16", "quant_method": "bnb",
        "quant_bits": 4, "lora_rank": 16, "lora_alpha": 32, "target_modules": "all-linear",
        "max_length": plan["max_length"], "per_device_train_batch_size": plan["batch_size"],
        "max_steps": plan["steps"], "gradient_accumulation_steps": 1, "learning_rate": plan["rate"],
        "gradient_checkpointing": "false", "use_cpu": "true", "output_dir": place / "out", "logging_steps": 1,
        "save_strategy": "no", "report_to": "none", "dataset_num_proc": 1, "dataloader_num_workers": 0,
    }  # fmt: skip
    sft_main([part for name, value in given.items() for part in (f"--{name}", str(value))])


def nightowl(place: Path, plan: dict[str, Any], backend: str, packing: bool = False) -> None:
    """What a night's training process does, from spec to adapter."""
    import os

    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from tasks.training import BACKENDS, TrainingSpec
    from tasks.training.child import Attempt

    given = json.loads((place / "spec.json").read_text())
    work = place / f"nightowl-{backend}-{packing}"
    work.mkdir()
    spec = TrainingSpec.model_validate(given | {"work": work})
    training = spec.training.model_copy(update={"backend": backend, "packing": packing})
    attempt = Attempt(spec.model_copy(update={"training": training}), os.open(os.devnull, os.O_WRONLY))
    __import__(BACKENDS[backend], fromlist=["train"]).train(attempt)


def main() -> None:
    library, place = sys.argv[1], Path(sys.argv[2])
    plan = json.loads((place / "plan.json").read_text())
    if library in ("unsloth", "nightowl"):
        import unsloth as _  # noqa: F401 (before the libraries that it patches)
    ways: dict[str, Callable[[], None]] = {
        "unsloth": lambda: unsloth(place, plan),
        "trl": lambda: trl(place, plan),
        "llamafactory": lambda: llamafactory(place, plan),
        "swift": lambda: swift(place, plan),
        "nightowl": lambda: nightowl(place, plan, "unsloth"),
        "nightowl-transformers": lambda: nightowl(place, plan, "transformers"),
        "nightowl-packed": lambda: nightowl(place, plan, "transformers", packing=True),
    }
    found = measured(ways[library])
    print(json.dumps(found), file=out)


if __name__ == "__main__":
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        main()
