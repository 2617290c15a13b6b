"""Evaluation in a process of its own, so that a GPU's or CPU's memory is whole again when it ends.

The job is a file; what the models wrote and their scores are left in their work folders; progress
comes back as lines. The child ends when this process does, however it ends.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.children import environment
from tasks.errors import BadInput, NightowlError, WorldFailed
from tasks.evaluation.sampling import Sampling
from tasks.recipe import Backend, Judge, Suite
from tasks.store import write_whole


class SuiteJob(BaseModel):
    """A suite and the Parquet file of its items (row_id, messages, tools); `sampling`: None decodes greedily."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: Suite
    items: Path
    sampling: Sampling | None = None


class ModelJob(BaseModel):
    """A model to evaluate: `adapter` is its folder, None for the base; `works`: the folder for its files, by suite."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    adapter: Path | None
    works: dict[str, Path]


class Job(BaseModel):
    """All models of one base, on the suites that each still needs. `chat_template`: of models that bring none."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    base: Path
    four_bit: bool
    chat_template: str | None
    batch_size: int
    backend: Backend = "transformers"
    judge: Judge | None = None
    suites: tuple[SuiteJob, ...]
    models: tuple[ModelJob, ...]


class Line(BaseModel):
    """One line of the child's report: progress in items, or a foreseen failure."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str = ""
    done: int = 0
    total: int = 0
    bad_input: tuple[str, str] | None = None
    failed: bool = False


def run(job: Job, on_progress: Callable[[str, int, int], None] | None = None) -> None:
    """Evaluate in a child process.

    Raises what the child raised, and WorldFailed with the end of its log where it died.
    """
    with tempfile.TemporaryDirectory(prefix="nightowl-evaluation-") as scratch:
        job_file, log = Path(scratch, "job.json"), Path(scratch, "log.txt")
        write_whole(job_file, job.model_dump_json())
        given = environment()
        if job.backend == "vllm" and "OMP_NUM_THREADS" not in os.environ:
            del given["OMP_NUM_THREADS"]  # vLLM chooses its threads itself where nobody else has
        with open(log, "wb") as file:
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "tasks.evaluation.models_process", str(job_file)],
                cwd=scratch,
                env=given,
                stdin=subprocess.PIPE,  # never written to: its end of file tells the child that we are gone
                stdout=subprocess.PIPE,
                stderr=file,
                text=True,
            )
        failure: NightowlError | None = None
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            for text in child.stdout:
                line = Line.model_validate_json(text)
                if line.bad_input or line.failed:
                    failure = _foreseen(line)
                elif on_progress is not None:
                    on_progress(line.what, line.done, line.total)
            code = child.wait()
        finally:
            child.stdin.close()
            child.stdout.close()
            if child.poll() is None:
                child.kill()
                child.wait()
        if failure is not None:
            raise failure
        if code:
            raise _died(code, log)


def _foreseen(line: Line) -> NightowlError:
    error: NightowlError = BadInput(*line.bad_input, "", "") if line.bad_input else WorldFailed("", "", "")
    error.args = (line.what,)  # the child's own words
    return error


def _died(code: int, log: Path) -> WorldFailed:
    how = f"exit code {code}"
    if code < 0:
        how = f"killed by {signal.Signals(-code).name}"
        if -code == signal.SIGKILL:
            how += ", as the system does when memory runs out"
    last = "\n".join(f"  | {line}" for line in log.read_text(errors="replace").strip().splitlines()[-15:])
    return WorldFailed(
        "evaluation",
        f"its process ended ({how}). The end of its log:\n{last}\n",
        "Lower evaluation.batch_size if memory ran out; the suites that were finished are kept.",
    )
