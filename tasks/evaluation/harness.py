"""The suites as EvalScope benchmarks, and EvalScope run over answers that are already written.

EvalScope asks its model one sample at a time; here that model looks the answer up in a table that was
generated in batches. EvalScope scores, aggregates and reports; its reviews are read back by item.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import polars as pl

from tasks.conversations import Answer, Renderer
from tasks.errors import WorldFailed
from tasks.evaluation.suites import METRICS, Question, Reply
from tasks.evaluation.suites import score as score_item
from tasks.recipe import Measure, Suite

_METRIC = "nightowl_{}"
ITEM_SCHEMA: dict[str, pl.DataType | type[pl.DataType]] = {
    "suite": pl.String,
    "item_id": pl.String,
    "sample": pl.Int32,
    "cluster": pl.String,
    "score": pl.Float64,
    "prompt": pl.String,
    "output": pl.String,
    "expected": pl.String,
    "stopped": pl.Boolean,
    "new_tokens": pl.Int32,
    "detail": pl.String,
}


def score(
    model: str, suites: Mapping[str, Suite], answers: Mapping[str, pl.DataFrame], renderer: Renderer, folder: Path
) -> pl.DataFrame:
    """Score a model's answers with EvalScope, whose own files go to `folder`; one row an item.

    Raises WorldFailed when EvalScope leaves an item unscored.
    """
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that was killed here
    with _own_logging():
        reviews = _run(model, suites, answers, renderer, folder)
    return pl.concat([_scored(name, table, reviews[name]) for name, table in answers.items()])


def _run(
    model: str, suites: Mapping[str, Suite], answers: Mapping[str, pl.DataFrame], renderer: Renderer, folder: Path
) -> dict[str, dict[str, tuple[float, str]]]:
    """One EvalScope task over all suites; score and detail by item, by suite."""
    from evalscope import TaskConfig, run_task

    (folder / "items").mkdir(parents=True)
    benchmarks = {name: _METRIC.format(name) for name in answers}
    files = {name: folder / "items" / f"{benchmark}.jsonl" for name, benchmark in benchmarks.items()}
    replies: dict[str, Reply] = {}
    for name, table in answers.items():
        _register(name, suites[name].measures)
        with open(files[name], "w", encoding="utf-8") as file:
            for row in table.iter_rows(named=True):
                file.write(_question(row, suites[name], renderer).model_dump_json() + "\n")
                replies[_key(name, _entry(row))] = _reply(row, renderer)
    reports = run_task(
        TaskConfig(
            model=_table_model(model, replies),
            model_id=model,
            eval_type="custom",
            datasets=list(benchmarks.values()),
            dataset_args={benchmarks[name]: {"local_path": str(file)} for name, file in files.items()},
            eval_batch_size=1,
            work_dir=str(folder),
            no_timestamp=True,
            seed=None,
        )
    )
    for name, benchmark in benchmarks.items():
        report = reports[benchmark]
        if not report or report.execution_summary is None or report.execution_summary.incomplete:
            raise WorldFailed(
                f"EvalScope on {name}", "did not score every item", f"See {folder / 'logs'}; then run again."
            )
    return {
        name: _read_reviews(folder / "reviews" / model / f"{benchmark}_default.jsonl", benchmark)
        for name, benchmark in benchmarks.items()
    }


def _key(suite: str, item_id: str) -> str:
    """The id of an item's message: one conversation may be an item of two suites."""
    return f"{suite}/{item_id}"


def _entry(row: Mapping[str, Any]) -> str:
    """The name of an answer to EvalScope: its item's, and the sample's number where there are several."""
    return f"{row['item_id']}#{row['sample']}" if row["sample"] else str(row["item_id"])


def _question(row: Mapping[str, Any], suite: Suite, renderer: Renderer) -> Question:
    return Question(
        item_id=_entry(row),
        prompt=row["prompt"],
        expected=json.loads(row["expected"]),
        tools=row["tools"],
        mode=suite.mode,
        reference=json.loads(row["reference"] or "{}"),
        special_tokens=tuple(token for token in renderer.special_tokens if token.strip()),
    )


def parsed(row: Mapping[str, Any], renderer: Renderer) -> Answer:
    """What a model wrote, read back; `row` of its answers."""
    # A template may open the thinking block itself; the answer is read together with that opening.
    opened = "<think>" if row["prompt"].rstrip().endswith("<think>") else ""
    return renderer.parse_answer(opened + row["output"])


def _reply(row: Mapping[str, Any], renderer: Renderer) -> Reply:
    return Reply(
        output=row["output"],
        answer=parsed(row, renderer),
        stopped=row["stopped"],
        loss=row["loss"],
        judged=row["judged"],
    )


def _scored(suite: str, table: pl.DataFrame, reviews: Mapping[str, tuple[float, str]]) -> pl.DataFrame:
    if missing := {_entry(row) for row in table.select("item_id", "sample").iter_rows(named=True)} ^ set(reviews):
        raise WorldFailed(f"EvalScope on {suite}", f"{len(missing)} items have no review", "Run again; report this.")
    rows = []
    for row in table.iter_rows(named=True):
        value, detail = reviews[_entry(row)]
        rows.append(
            {
                "suite": suite,
                "item_id": row["item_id"],
                "sample": row["sample"],
                "cluster": row["cluster"],
                "score": value,
                "prompt": row["prompt"],
                "output": row["output"],
                "expected": row["shown"],
                "stopped": row["stopped"],
                "new_tokens": row["new_tokens"],
                "detail": "; ".join(part for part in (detail, row["note"]) if part),
            }
        )
    return pl.DataFrame(rows, schema=ITEM_SCHEMA)


def _read_reviews(file: Path, metric: str) -> dict[str, tuple[float, str]]:
    found = {}
    for line in file.read_text(encoding="utf-8").rstrip("\n").split("\n"):
        sample = json.loads(line)["sample_score"]
        value = sample["score"]
        found[sample["sample_metadata"]["item_id"]] = (float(value["value"][metric]), value["explanation"] or "")
    return found


def _table_model(model_id: str, replies: Mapping[str, Reply]) -> Any:
    from evalscope.api.model import ModelAPI, ModelOutput

    class TableModel(ModelAPI):
        def generate(self, input: Any, tools: Any, tool_choice: Any, config: Any) -> Any:
            reply = replies[input[-1].id]
            output = ModelOutput.from_content(
                model=model_id,
                content=reply.answer.content,
                stop_reason="stop" if reply.stopped else "max_tokens",
            )
            output.metadata = {"reply": reply.model_dump(mode="json")}
            return output

    return TableModel(model_id)


def _register(suite: str, measure: Measure) -> None:
    from evalscope.api.benchmark import BenchmarkMeta, DefaultDataAdapter
    from evalscope.api.dataset import Sample
    from evalscope.api.messages import ChatMessageUser
    from evalscope.api.metric import Score
    from evalscope.api.registry import BENCHMARK_REGISTRY, register_benchmark
    from evalscope.metrics.semantics.catalog import METRIC_DEFINITIONS
    from evalscope.metrics.semantics.entry import MetricEntry

    name = _METRIC.format(suite)
    if name in BENCHMARK_REGISTRY:
        return
    about = METRICS[measure]
    METRIC_DEFINITIONS[name] = MetricEntry(
        baseline="quality.accuracy.ratio" if about.higher_is_better else "quality.loss.unbounded",
        metric_name=about.title,
    )

    @register_benchmark(
        BenchmarkMeta(
            name=name,
            pretty_name=about.title,
            dataset_id=name,
            description=about.about,
            metric_list=[name],
            primary_metric=name,
            eval_split="test",
            prompt_template="{question}",
        )
    )
    class SuiteAdapter(DefaultDataAdapter):
        def load_from_disk(self, **kwargs: Any) -> Any:
            return super().load_from_disk(use_local_loader=True)

        def record_to_sample(self, record: dict[str, Any]) -> Any:
            question = Question.model_validate(record)
            return Sample(
                input=[ChatMessageUser(content=question.prompt, id=_key(suite, question.item_id))],
                target=json.dumps(question.expected, ensure_ascii=False),
                metadata=record,
            )

        def match_score(
            self, original_prediction: str, filtered_prediction: str, reference: str, task_state: Any
        ) -> Any:
            question = Question.model_validate(task_state.metadata)
            reply = Reply.model_validate(task_state.output.metadata["reply"])
            value, detail = score_item(measure, question, reply)
            return Score(
                value={name: value},
                main_score_name=name,
                prediction=reply.output,
                extracted_prediction=filtered_prediction,
                explanation=detail,
            )


@contextmanager
def _own_logging() -> Iterator[None]:
    """Importing EvalScope replaces the root logger's handlers; put them back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
