"""What the training libraries print arrives in the run's log, once, without progress bars."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.screen import libraries
from flows.train_adapter import LOG_BYTES, _reader


@pytest.fixture
def said() -> Iterator[list[str]]:
    lines: list[str] = []

    class Keep(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(record.getMessage())

    handler = Keep()
    libraries.addHandler(handler)
    yield lines
    libraries.removeHandler(handler)


def test_lines_are_passed_on_once_and_bars_are_not(tmp_path: Path, said: list[str]) -> None:
    log = tmp_path / "training.log"
    log.write_bytes(b"of an earlier attempt\n")
    pass_on = _reader(log)
    with open(log, "ab") as file:
        for piece in (
            b"Unsloth: ready\n",
            b"\r 10%|#|\r 20%|##|\n",
            b"half a",
            b" line\n",
            b"x" * 2 * LOG_BYTES,
            b"\nend\n",
        ):
            file.write(piece)
            file.flush()
            pass_on()
    for _ in range(3):
        pass_on()
    assert [line for line in said if "x" not in line] == ["Unsloth: ready", "half a line", "end"]


def test_a_log_that_is_not_there_yet(tmp_path: Path, said: list[str]) -> None:
    pass_on = _reader(tmp_path / "training.log")
    pass_on()
    (tmp_path / "training.log").write_text("first\n")
    pass_on()
    assert said == ["first"]
