"""`gym://`: reasoning rows from reasoning-gym, with a thinking trace and an answer that its own scorer accepts.

`size` (rows), `seed` and `planted` are ours, every other parameter is the task's own setting, such as
`max_terms` of `chain_sum`. A task serves where an honest trace can be had: `gsm_symbolic` carries a
worked solution, and for the arithmetic tasks it is built from the task's own numbers, step by step. An
entry whose trace does not end at its answer, or whose answer the task's scorer refuses, is no row;
the next one is drawn instead.

Planted bad rows (see planted.py), in turn: a thinking block in the content that is never closed, an
empty trace, an empty assistant turn, an exact duplicate of the row before.
"""

from __future__ import annotations

import ast
import logging
import re
import warnings
from collections.abc import Callable, Iterator
from dataclasses import fields
from fractions import Fraction
from pathlib import Path
from typing import Any

from tasks.sources.files import write_json_lines
from tasks.sources.pin import Pin
from tasks.sources.planted import Row, duplicate, empty_answer, plant
from tasks.sources.traces import TRACES
from tasks.sources.uri import SourceUri, nearest
from tasks.store import code_digest, digest

log = logging.getLogger(__name__)
_CODE = ("gym.py", "traces.py", "planted.py")
_OURS = ("size", "seed", "planted")
# Entries drawn for one row that holds, before the task is given up.
_DRAWS = 20
_SEED_STEP = 10**8


def resolve(uri: SourceUri) -> Pin:
    """Raises BadInput for a task without a worked solution. The task's own settings are checked by `write`."""
    if uri.path not in TRACES:
        raise uri.bad(
            "is no task with a worked solution to think along",
            f"{nearest(uri.path, TRACES)}Tasks with one: {', '.join(sorted(TRACES))}.",
        )
    size, seed, planted = _ours(uri)
    code = code_digest(*(f"tasks/sources/{name}" for name in _CODE), libraries=("reasoning-gym",))
    theirs = {name: value for name, value in uri.params.items() if name not in _OURS}
    return Pin(
        revision=digest(
            {"task": uri.path, "size": size, "seed": seed, "planted": planted, "settings": theirs, "code": code}
        ),
        requested=None,
    )


def write(uri: SourceUri, data: Path) -> str:
    """Generate the rows into a folder; the licence of what was generated.

    Raises BadInput for a setting that the task does not have or refuses, and for a task that yields
    too few entries whose trace and answer hold.
    """
    size, seed, planted = _ours(uri)
    rows = list(_rows(uri, size, seed))
    if len(rows) < size:
        raise uri.bad(
            f"yields only {len(rows)} distinct questions whose answer holds, and size={size} are asked for",
            "Lower size= or widen the task's settings.",
        )
    write_json_lines(data / f"{uri.path}.jsonl", plant(rows, planted, _WAYS))
    return "Apache-2.0"


def _ours(uri: SourceUri) -> tuple[int, int, float]:
    return (
        uri.whole("size", 500, least=1, most=1_000_000),
        uri.whole("seed", 0, most=2**31),
        uri.fraction("planted", 0.0, most=0.5),
    )


def _rows(uri: SourceUri, size: int, seed: int) -> Iterator[Row]:
    entries = size * _DRAWS
    task = gym_task(uri, entries, seed)
    trace_of: Callable[[dict[str, Any]], tuple[str, str]] = TRACES[uri.path]
    refused, index, seen = 0, 0, set()
    for index in range(entries):
        entry = task[index]
        question, answer = entry["question"].strip(), entry["answer"]
        trace, conclusion = trace_of(entry["metadata"])
        if task.score_answer(answer, entry) != 1.0 or not _same(conclusion, answer):
            refused += 1
        elif question not in seen:
            seen.add(question)
            yield {
                "messages": [
                    {"role": "user", "content": question},
                    {"role": "assistant", "reasoning_content": trace, "content": answer},
                ]
            }
            if len(seen) == size:
                break
    if refused:
        log.warning("%s: %d of %d entries are no rows: their answer does not hold", uri.text, refused, index + 1)


def gym_task(uri: SourceUri, entries: int, seed: int) -> Any:
    """A task's data set; raises BadInput for settings that it does not have or refuses, KeyError for no task."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # of a package that reasoning-gym imports
        import reasoning_gym
        from reasoning_gym.factory import DATASETS

    settings = _settings(uri, [field.name for field in fields(DATASETS[uri.path][1])])
    try:
        # A task seeds its entry i with seed + i: without the factor, seed=1 would be seed=0 shifted by one row.
        return reasoning_gym.create_dataset(uri.path, size=entries, seed=seed * _SEED_STEP, **settings)
    except (AssertionError, ValueError, TypeError) as error:
        raise uri.bad(f"has settings that the task refuses ({error})", "Correct them.") from error


def _settings(uri: SourceUri, known: list[str]) -> dict[str, Any]:
    settings = {}
    for name, text in uri.params.items():
        if name in _OURS:
            continue
        if name not in known:
            raise uri.bad(f"has no setting {name!r}", f"{nearest(name, known)}Known here: {', '.join(known)}.")
        try:
            settings[name] = ast.literal_eval({"true": "True", "false": "False"}.get(text, text))
        except (ValueError, SyntaxError):
            settings[name] = text
    return settings


def _same(conclusion: str, answer: str) -> bool:
    """Whether two answers are the same number, however it is written, or else the same text."""
    one, other = (re.sub(r"[\s,]", "", text) for text in (conclusion, answer))
    try:
        return Fraction(one) == Fraction(other)
    except (ValueError, ZeroDivisionError):
        return one == other


def _unclosed_thinking(row: Row) -> Row:
    """The thinking is left in the content, and its block is never closed."""
    answer = row["messages"][-1]
    answer["content"] = f"<think>\n{answer.pop('reasoning_content')}\n{answer['content']}"
    return row


def _empty_trace(row: Row) -> Row:
    """A reasoning row that does not reason."""
    row["messages"][-1]["reasoning_content"] = ""
    return row


_WAYS = {
    "unclosed_thinking": _unclosed_thinking,
    "empty_trace": _empty_trace,
    "empty_answer": empty_answer,
    "duplicate": duplicate,
}
