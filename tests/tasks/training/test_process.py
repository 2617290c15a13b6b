"""Supervision of the training process, with a stand-in backend that trains nothing but dies in every way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from filelock import FileLock

from tasks.errors import BadInput, Preempted, WorldFailed
from tasks.recipe import Training
from tasks.training import Progress, TrainingSpec, process

ROOT = Path(__file__).resolve().parents[3]
HEAD = """
import os, signal, sys, time
from pathlib import Path
from tasks.errors import BadInput, WorldFailed
from tasks.training.child import NotFinite, Stopped, serve
from tasks.training.schema import Progress
from tasks.training.spec import TrainingResult

def result(**more):
    fields = dict(steps=2, loss=1.0, validation_loss=None, tokens=1, supervised_tokens=1, seconds=1.0,
                  peak_memory=1, device="cpu", resumed=0, environment={})
    return TrainingResult(**(fields | more))

def step(n):
    return Progress(step=n, steps=2, loss=1.0, learning_rate=0.1, tokens_per_second=1.0, seconds=1.0)

def train(attempt):
    count = attempt.spec.work / "attempts"
    tries = int(count.read_text()) + 1 if count.exists() else 1
    count.write_text(str(tries))
"""
TAIL = """
serve(train)
"""


@pytest.fixture
def spec(tmp_path: Path) -> TrainingSpec:
    work = tmp_path / "job"
    work.mkdir()
    return TrainingSpec(
        work=work,
        base_folder=work,
        base_uri="file://x",
        base_revision="0",
        base_weights="w",
        train=work / "train.parquet",
        validation=None,
        max_length=64,
        chat_template=None,
        training=Training(),
    )


@pytest.fixture
def backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """Makes a module of the body of a training function, and returns its name."""

    def make(body: str) -> str:
        (tmp_path / "standin.py").write_text(HEAD + textwrap.indent(textwrap.dedent(body), "    ") + TAIL)
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        return "standin"

    return make


def attempts(spec: TrainingSpec) -> int:
    return int((spec.work / "attempts").read_text())


def test_progress_and_result_come_back(spec, backend) -> None:
    seen: list[Progress] = []
    body = "print('chatter')\nattempt.report(step(1)); attempt.report(step(2)); return result(loss=0.5)"
    found = process.run(spec, backend(body), seen.append)
    assert found.loss == 0.5
    assert [p.step for p in seen] == [1, 2]
    assert "chatter" in (spec.work / "training.log").read_text()


def test_a_killed_process_is_started_again(spec, backend) -> None:
    found = process.run(spec, backend("if tries < 3: os.kill(os.getpid(), signal.SIGKILL)\nreturn result()"))
    assert found.steps == 2
    assert attempts(spec) == 3


def test_it_is_not_started_again_for_ever(spec, backend) -> None:
    module = backend("print('last words', flush=True); os.kill(os.getpid(), signal.SIGSEGV)")
    with pytest.raises(WorldFailed, match=r"(?s)3 attempts \(killed by SIGSEGV\).*last words.*training.log"):
        process.run(spec, module)
    assert attempts(spec) == 3


def test_an_exception_is_not_tried_again_and_its_traceback_shown(spec, backend) -> None:
    with pytest.raises(WorldFailed, match="RuntimeError: no such layer"):
        process.run(spec, backend("raise RuntimeError('no such layer')"))
    assert attempts(spec) == 1


def test_bad_input_is_raised_here_as_it_was_there(spec, backend) -> None:
    with pytest.raises(BadInput, match=r"^training.rank: '0' is too small. Raise it.$") as caught:
        process.run(spec, backend("raise BadInput('training.rank', '0', 'is too small', 'Raise it.')"))
    assert caught.value.field == "training.rank"
    assert attempts(spec) == 1


def test_a_full_disk_is_said_to_be_one(spec, backend) -> None:
    with pytest.raises(WorldFailed, match=r"cannot be written to .* Free disk space"):
        process.run(spec, backend("raise OSError(28, 'No space left on device')"))


def test_a_diverged_run_is_tried_once_at_half_the_rate(spec, backend) -> None:
    body = """
    if attempt.spec.rate_scale == 1.0:
        raise NotFinite("training", "the loss is nan", "Lower the rate.")
    return result(loss=attempt.spec.rate_scale)
    """
    assert process.run(spec, backend(body)).loss == 0.5
    with pytest.raises(WorldFailed, match="the loss is nan"):
        process.run(spec, backend('raise NotFinite("training", "the loss is nan", "Lower the rate.")'))
    assert attempts(spec) == 4


def test_sigterm_is_passed_on_and_ends_in_run_me_again(spec, backend) -> None:
    body = """
    attempt.training_begins()
    attempt.report(step(1))
    attempt.stop.wait(60)
    (attempt.spec.work / "saved").touch()
    raise Stopped
    """
    with pytest.raises(Preempted, match="saved its state") as caught:
        process.run(spec, backend(body), lambda progress: os.kill(os.getpid(), signal.SIGTERM))
    assert caught.value.exit_code == 75
    assert (spec.work / "saved").exists()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_an_interrupted_parent_lets_the_child_save(spec, backend) -> None:
    body = """
    attempt.training_begins()
    attempt.report(step(1))
    attempt.stop.wait(60)
    (attempt.spec.work / "saved").touch()
    raise Stopped
    """

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        process.run(spec, backend(body), interrupt)
    assert (spec.work / "saved").exists()


def test_the_child_dies_with_a_parent_that_is_killed(spec, backend, tmp_path: Path) -> None:
    module = backend(
        "(attempt.spec.work / 'pid').write_text(str(os.getpid()))\nattempt.report(step(1))\ntime.sleep(600)"
    )
    script = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tasks.training import TrainingSpec, process
spec = TrainingSpec.model_validate_json(Path({str(tmp_path / "given.json")!r}).read_bytes())
process.run(spec, {module!r}, lambda p: print(p.step, flush=True))
"""
    (tmp_path / "given.json").write_text(spec.model_dump_json())
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        assert parent.stdout.readline() == "1\n"
        child = psutil.Process(int((spec.work / "pid").read_text()))
        parent.kill()
        parent.wait()
        child.wait(30) if child.is_running() else None
    assert not child.is_running()


def test_a_second_attempt_waits_until_the_first_is_gone(spec, backend) -> None:
    module = backend("(attempt.spec.work / 'begun').touch()\nreturn result()")
    command = [sys.executable, "-P", "-m", module, str(spec.work / "spec.json"), "1"]
    (spec.work / "spec.json").write_text(spec.model_dump_json())
    with FileLock(spec.work / "attempt.lock"):
        child = subprocess.Popen(command, stdin=subprocess.PIPE, env=process.environment())
        with pytest.raises(subprocess.TimeoutExpired):
            child.wait(4)
        assert not (spec.work / "begun").exists()
    assert child.wait(60) == 0
    assert (spec.work / "begun").exists()
    assert child.stdin
    child.stdin.close()
