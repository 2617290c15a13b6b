"""The child's side of an evaluation: `python -m tasks.evaluation.models_process JOB.json`.

For each model and suite it writes `answers.parquet`, whole or not at all, so that a killed evaluation goes
on from the suites that were done; then EvalScope scores the answers and `items.parquet` is written.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np
import polars as pl

from tasks.conversations import Renderer
from tasks.errors import BadInput, NightowlError, WorldFailed
from tasks.evaluation import harness
from tasks.evaluation.clusters import clusters
from tasks.evaluation.generation import Network, Written
from tasks.evaluation.instructions import note
from tasks.evaluation.job import Job, Line, ModelJob, SuiteJob
from tasks.evaluation.judge import NOT_JUDGED, Pair, judged
from tasks.evaluation.sampling import draws
from tasks.evaluation.served import Served
from tasks.evaluation.suites import METRICS, shown
from tasks.recipe import Suite
from tasks.store import write_whole
from tasks.training import is_whole

ANSWERS = "answers.parquet"
SAID = "judge.jsonl"
ASIDE = "aside.json"
_NOT_JUDGED = 0.1  # share of a suite's answers, beyond which its score says little
_TIMES, _LEAST = 2, 48  # most tokens of an answer in calls: times those of the longest right one, at least so many
ANSWER_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "item_id": pl.String,
    "cluster": pl.String,
    "sample": pl.Int32,  # from 0; several of an item where they are drawn
    "prompt": pl.String,
    "expected": pl.String,  # the reference turn, as JSON
    "shown": pl.String,  # the reference turn, for people
    "tools": pl.String,
    "reference": pl.String,  # of a benchmark's file, as JSON
    "output": pl.String,
    "stopped": pl.Boolean,
    "new_tokens": pl.Int32,
    "loss": pl.Float64,
    "judged": pl.Float64,
    "note": pl.String,
    "seconds": pl.Float64,
}


def evaluate(job: Job, report: Callable[[Line], None]) -> None:
    """Answer and score everything in a job."""
    renderers = {model.name: _renderer(job, model) for model in job.models}
    _answer(job, renderers, report)
    suites: dict[str, Suite] = {entry.suite.name: entry.suite for entry in job.suites}
    for model in job.models:
        for name, work in model.works.items():
            answers = pl.read_parquet(work / ANSWERS)
            if suites[name].measures == "judge":
                answers = _judged(job, model, suites[name], work, renderers[model.name], report)
            scored = harness.score(model.name, suites, {name: answers}, renderers[model.name], work / "evalscope")
            scored.write_parquet(work / "items.parquet")


def _answer(job: Job, renderers: Mapping[str, Renderer], report: Callable[[Line], None]) -> None:
    items = {entry.suite.name: pl.read_parquet(entry.items) for entry in job.suites}
    answers_of = {entry.suite.name: items[entry.suite.name].height * entry.suite.samples for entry in job.suites}
    total = sum(answers_of[name] for model in job.models for name in model.works)
    network: Network | Served | None = None
    ground: Path | None = None  # what the network was loaded from
    before = 0
    with ExitStack() as ending:
        for model in job.models:
            for entry in (entry for entry in job.suites if entry.suite.name in model.works):
                target = model.works[entry.suite.name] / ANSWERS
                what = f"{model.name}: {entry.suite.name}"
                report(Line(what=what, done=before, total=total))
                if not target.exists():
                    if network is None or ground != _ground(job, model):
                        ending.close()
                        network = None  # before the next one takes its memory
                        gc.collect()
                        ground = _ground(job, model)
                        network = _load(job, ground)
                        if isinstance(network, Served):
                            ending.callback(network.close)
                    network.use(model.name if model.adapter not in (None, ground) else None)

                    def on_done(done: int, what: str = what, before: int = before) -> None:
                        report(Line(what=what, done=before + done, total=total))

                    rows = items[entry.suite.name]
                    answered = _answers(network, renderers[model.name], entry, rows, job.batch_size, on_done)
                    temporary = target.with_suffix(".part")
                    answered.write_parquet(temporary)
                    temporary.replace(target)
                before += answers_of[entry.suite.name]
                report(Line(what=what, done=before, total=total))


def _judged(
    job: Job, model: ModelJob, suite: Suite, work: Path, renderer: Renderer, report: Callable[[Line], None]
) -> pl.DataFrame:
    """The answers that were judged, with what was made of them; how many were not is left in a file beside them."""
    answers = pl.read_parquet(work / ANSWERS)
    assert job.judge is not None, "the recipe refuses such a suite without a judge"
    contents = [harness.parsed(row, renderer).content for row in answers.iter_rows(named=True)]
    pairs = [Pair(*about) for about in zip(answers["prompt"], contents, answers["shown"], strict=True)]

    def on_done(done: int) -> None:
        report(Line(what=f"{model.name}: {suite.name}, judged", done=done, total=len(pairs)))

    found = answers.with_columns(judged=pl.Series(judged(job.judge, pairs, work / SAID, on_done), dtype=pl.Float64))
    none = found["judged"].null_count()
    if none > _NOT_JUDGED * found.height:
        raise WorldFailed(
            f"the judge {job.judge.model}",
            f"came to no verdict on {none} of {found.height} answers of {suite.name}",
            f"Read what it said in {work / SAID}; name another model, or leave the suite out.",
        )
    write_whole(work / ASIDE, json.dumps({NOT_JUDGED: none} if none else {}))
    return found.drop_nulls("judged")


def _renderer(job: Job, model: ModelJob) -> Renderer:
    """An adapter's own tokenizer and template where it brings them, else the base's and the recipe's."""
    if model.adapter is not None and (model.adapter / "tokenizer_config.json").exists():
        return Renderer.open(model.adapter)
    return Renderer.open(job.base, job.chat_template)


def _ground(job: Job, model: ModelJob) -> Path:
    """The folder of the weights that a model needs loaded: its base's, or its own where all of them were trained."""
    return model.adapter if model.adapter is not None and is_whole(model.adapter) else job.base


def _load(job: Job, ground: Path) -> Network | Served:
    """The model in `ground` with all adapters of the job that are laid on it; whole ones are in 16 bits, as trained."""
    on_base = ground == job.base
    adapters = {
        model.name: model.adapter
        for model in job.models
        if model.adapter not in (None, ground) and _ground(job, model) == ground
    }
    four_bit = job.four_bit and on_base
    if job.backend == "vllm":
        return Served(ground, adapters, four_bit=four_bit, log=Path("vllm.log"))
    network = Network(ground, four_bit=four_bit)
    for name, adapter in adapters.items():
        network.add(name, adapter)
    return network


def _answers(
    network: Network | Served,
    renderer: Renderer,
    entry: SuiteJob,
    rows: pl.DataFrame,
    batch_size: int,
    on_done: Callable[[int], None],
) -> pl.DataFrame:
    import orjson

    suite = entry.suite
    started = time.monotonic()
    asked = renderer.prompts(rows, suite.mode).with_columns(rows["tools"])
    problems = asked["problem"].to_list()
    askable = asked.filter(pl.col("problem").is_null())
    losses: list[float | None] = [None] * rows.height
    times, bound = suite.samples, suite.max_new_tokens
    written = [Written([], False, False)] * (rows.height * times)
    if METRICS[suite.measures].generates:
        bound = _bound(suite, asked["expected"].to_list(), rows, renderer)
        luck = [
            draws(suite.seed, item, sample, bound).tolist()
            for item in (askable["row_id"] if entry.sampling else ())
            for sample in range(times)
        ]
        answers = iter(
            network.answers(
                [ids for ids in askable["prompt_ids"].to_list() for _ in range(times)],
                max_new_tokens=bound,
                stop_ids=renderer.stop_ids,
                pad_id=renderer.pad_id,
                batch_size=batch_size,
                on_done=on_done,
                sampling=entry.sampling,
                draws=luck,
            )
        )
        written = [
            Written([], False, False) if problem else next(answers) for problem in problems for _ in range(times)
        ]
    else:
        rendered = renderer.render(rows)
        problems = rendered["problem"].to_list()
        if any(problems):
            row = next(i for i, problem in enumerate(problems) if problem)
            raise BadInput(
                f"evaluation.suites.{suite.name}",
                rows["row_id"][row],
                f"cannot be rendered for this model ({problems[row]})",
                "Correct base.chat_template, or remove the suite.",
            )
        pairs = list(zip(rendered["input_ids"].to_list(), rendered["loss_mask"].to_list(), strict=True))
        losses = list(network.losses(pairs, batch_size=batch_size, pad_id=renderer.pad_id))
    references = rows["reference"].to_list() if "reference" in rows.columns else [None] * rows.height
    expected = asked["expected"].to_list()
    made = {
        "item_id": asked["row_id"],
        "cluster": clusters(rows),
        "prompt": asked["prompt"].fill_null(""),
        "expected": [orjson.dumps(turn or {}).decode() for turn in expected],
        "shown": [shown(turn or {}) for turn in expected],
        "tools": asked["tools"],
        "reference": references,
        "loss": losses,
        "judged": pl.Series([None] * rows.height, dtype=pl.Float64),
        "note": pl.Series(problems, dtype=pl.String),
    }
    each = pl.DataFrame(made)[np.repeat(np.arange(rows.height), times)]
    notes = [
        _note(problem, answer, reference, bound)
        for problem, answer, reference in zip(each["note"], written, each["reference"], strict=True)
    ]
    answered = each.with_columns(
        sample=pl.Series(np.tile(np.arange(times), rows.height)),
        output=pl.Series([renderer.decode(answer.ids) for answer in written], dtype=pl.String),
        stopped=pl.Series([answer.stopped for answer in written], dtype=pl.Boolean),
        new_tokens=pl.Series([len(answer.ids) for answer in written], dtype=pl.Int32),
        note=pl.Series(notes, dtype=pl.String),
        seconds=pl.lit(time.monotonic() - started),
    )
    return answered.select(pl.col(name).cast(kind) for name, kind in ANSWER_SCHEMA.items())


def _bound(suite: Suite, expected: Sequence[Mapping[str, Any] | None], rows: pl.DataFrame, renderer: Renderer) -> int:
    """Most tokens of an answer: of calls not many more than the longest of the right ones takes, since what a model
    that does not stop writes after that costs time and changes nothing."""
    if suite.measures != "tool_call" or suite.mode == "thinking":
        return suite.max_new_tokens
    references = rows["reference"].to_list() if "reference" in rows.columns else [None] * rows.height
    texts = [
        json.dumps(json.loads(reference)["calls"]) if reference else shown({**turn, "content": ""}) if turn else ""
        for turn, reference in zip(expected, references, strict=True)
    ]
    longest = max(map(len, renderer.encoder.encode(texts)), default=0) if any(texts) else 0
    wordy = any(text in ("", "[]") for text in texts)  # where no call fits, a call may come late
    return suite.max_new_tokens if wordy else min(suite.max_new_tokens, max(_TIMES * longest, _LEAST))


def _note(problem: str | None, answer: Written, reference: str | None, bound: int) -> str:
    said = f"cannot be asked: {problem}" if problem else "cut off going in circles" if answer.circles else ""
    if not said and not answer.stopped and answer.ids:
        said = f"cut off after {bound} tokens"
    rules = json.loads(reference).get("rules", ()) if reference else ()
    return "; ".join(part for part in (said, note(rules)) if part)


def _end_with_parent() -> None:
    def wait() -> None:
        os.read(0, 1)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def main() -> int:
    """Run the job named on the command line; its report goes to what was standard output."""
    # Libraries print; only the report may reach the parent.
    lines: IO[str] = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    _end_with_parent()

    def report(line: Line) -> None:
        lines.write(line.model_dump_json() + "\n")
        lines.flush()

    try:
        evaluate(Job.model_validate_json(Path(sys.argv[1]).read_bytes()), report)
    except BadInput as error:
        report(Line(what=str(error), bad_input=(error.field, str(error.value))))
    except NightowlError as error:
        report(Line(what=str(error), failed=True))
    return 0


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # Threads of libraries have been seen to hang at exit; everything that counts is on disk.
    os._exit(code)
