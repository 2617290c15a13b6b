"""The child's side of an evaluation: `python -m tasks.evaluation.models_process JOB.json`.

For each model and suite it writes `answers.parquet`, whole or not at all, so that a killed evaluation goes
on from the suites that were done; then EvalScope scores the answers and `items.parquet` is written.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import polars as pl

from tasks.conversations import Renderer
from tasks.errors import BadInput, NightowlError
from tasks.evaluation import harness
from tasks.evaluation.generation import Network, Written
from tasks.evaluation.instructions import note
from tasks.evaluation.job import Job, Line, ModelJob, SuiteJob
from tasks.evaluation.suites import METRICS, shown
from tasks.recipe import Suite

ANSWERS = "answers.parquet"
ANSWER_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "item_id": pl.String,
    "prompt": pl.String,
    "expected": pl.String,  # the reference turn, as JSON
    "shown": pl.String,  # the reference turn, for people
    "tools": pl.String,
    "reference": pl.String,  # of a benchmark's file, as JSON
    "output": pl.String,
    "stopped": pl.Boolean,
    "new_tokens": pl.Int32,
    "loss": pl.Float64,
    "note": pl.String,
    "seconds": pl.Float64,
}


def evaluate(job: Job, report: Callable[[Line], None]) -> None:
    """Answer and score everything in a job."""
    items = {entry.suite.name: pl.read_parquet(entry.items) for entry in job.suites}
    total = sum(items[name].height for model in job.models for name in model.works)
    renderers = {model.name: _renderer(job, model) for model in job.models}
    network: Network | None = None
    before = 0
    for model in job.models:
        for entry in (entry for entry in job.suites if entry.suite.name in model.works):
            rows = items[entry.suite.name]
            target = model.works[entry.suite.name] / ANSWERS
            what = f"{model.name}: {entry.suite.name}"
            report(Line(what=what, done=before, total=total))
            if not target.exists():
                if network is None:
                    network = _load(job)
                network.use(model.name if model.adapter else None)

                def on_done(done: int, what: str = what, before: int = before) -> None:
                    report(Line(what=what, done=before + done, total=total))

                answered = _answers(network, renderers[model.name], entry, rows, job.batch_size, on_done)
                temporary = target.with_suffix(".part")
                answered.write_parquet(temporary)
                temporary.replace(target)
            before += rows.height
            report(Line(what=what, done=before, total=total))
    del network
    suites: dict[str, Suite] = {entry.suite.name: entry.suite for entry in job.suites}
    for model in job.models:
        for name, work in model.works.items():
            answers = {name: pl.read_parquet(work / ANSWERS)}
            scored = harness.score(model.name, suites, answers, renderers[model.name], work / "evalscope")
            scored.write_parquet(work / "items.parquet")


def _renderer(job: Job, model: ModelJob) -> Renderer:
    """An adapter's own tokenizer and template where it brings them, else the base's and the recipe's."""
    if model.adapter is not None and (model.adapter / "tokenizer_config.json").exists():
        return Renderer.open(model.adapter)
    return Renderer.open(job.base, job.chat_template)


def _load(job: Job) -> Network:
    network = Network(job.base, four_bit=job.four_bit)
    for model in job.models:
        if model.adapter is not None:
            network.add(model.name, model.adapter)
    return network


def _answers(
    network: Network,
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
    written = [Written([], False, False)] * rows.height
    if METRICS[suite.measures].generates:
        answers = iter(
            network.answers(
                askable["prompt_ids"].to_list(),
                max_new_tokens=suite.max_new_tokens,
                stop_ids=renderer.stop_ids,
                pad_id=renderer.pad_id,
                batch_size=batch_size,
                on_done=on_done,
            )
        )
        written = [Written([], False, False) if problem else next(answers) for problem in problems]
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
    notes = [_note(*about) for about in zip(problems, written, references, strict=True)]
    expected = asked["expected"].to_list()
    return pl.DataFrame(
        {
            "item_id": asked["row_id"],
            "prompt": asked["prompt"].fill_null(""),
            "expected": [orjson.dumps(turn or {}).decode() for turn in expected],
            "shown": [shown(turn or {}) for turn in expected],
            "tools": asked["tools"],
            "reference": references,
            "output": [renderer.decode(answer.ids) for answer in written],
            "stopped": [answer.stopped for answer in written],
            "new_tokens": [len(answer.ids) for answer in written],
            "loss": losses,
            "note": notes,
            "seconds": [time.monotonic() - started] * rows.height,
        },
        schema=ANSWER_SCHEMA,
    )


def _note(problem: str | None, answer: Written, reference: str | None) -> str:
    said = f"cannot be asked: {problem}" if problem else "cut off going in circles" if answer.circles else ""
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
