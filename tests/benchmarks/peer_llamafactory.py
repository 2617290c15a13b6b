"""LLaMA-Factory's own preprocessing, timed by bench_tokens.py in an environment of its own. Prints one line of JSON.

    python peer_llamafactory.py TOKENIZER_FOLDER ROWS.jsonl SCRATCH TURNS

What its `train` command does before it loads a model: dataset loader, alignment, SFT processor; ids and labels come
out. One worker, no cache. `seconds`: CPU time of this process and its children, imports and the opening of the
tokenizer left out, a value a turn; `supervised`: labels that are trained on; `ids`: sha256 of all token ids as i32.
"""

from __future__ import annotations

import hashlib
import json
import resource
import sys
from contextlib import redirect_stdout
from pathlib import Path


def cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def main() -> None:
    models, rows, scratch, turns = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    import numpy as np
    from llamafactory.data import get_dataset, get_template_and_fix_tokenizer
    from llamafactory.hparams import get_train_args
    from llamafactory.model import load_tokenizer

    tags = {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}
    about = {"file_name": rows.name, "formatting": "sharegpt", "columns": {"messages": "messages"}, "tags": tags}
    (rows.parent / "dataset_info.json").write_text(json.dumps({"rows": about}))
    seconds = []
    for turn in range(turns):
        given = {
            "stage": "sft", "do_train": True, "finetuning_type": "lora", "template": "qwen3",
            "model_name_or_path": str(models), "dataset": "rows", "dataset_dir": str(rows.parent), "cutoff_len": 8_192,
            "cache_dir": str(scratch / f"peer{turn}"), "output_dir": str(scratch / "trained"), "report_to": "none",
            "overwrite_cache": True, "preprocessing_num_workers": None, "bf16": False, "fp16": False,
        }  # fmt: skip
        model_args, data_args, training_args, _, _ = get_train_args(given)
        opened = load_tokenizer(model_args)
        template = get_template_and_fix_tokenizer(opened["tokenizer"], data_args)
        start = cpu_seconds()
        made = get_dataset(template, model_args, data_args, training_args, stage="sft", **opened)["train_dataset"]
        seconds.append(cpu_seconds() - start)
    ids, supervised = hashlib.sha256(), 0
    for batch in made.iter(batch_size=1_000):
        for row, labels in zip(batch["input_ids"], batch["labels"], strict=True):
            ids.update(np.array(row, np.int32).tobytes())
            supervised += sum(label != -100 for label in labels)
    print(json.dumps({"seconds": seconds, "supervised": supervised, "ids": ids.hexdigest()}), file=out)


if __name__ == "__main__":
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        main()
