"""Moving the champion: one at a time over all hosts, against the champion that was expected, with nothing forgotten.

MLflow moves an alias without asking what it pointed at, and has no lock. But it does have a register that can be
written once: a parameter of a run, which the first writer sets and every other writer is refused (a unique key
in its database, over HTTP as well as directly). So each registered model has a run whose parameters are its
journal: an attempt first claims the next number, moves the aliases, and closes the number with what
came of it. The next number can only be claimed when the last is closed; a claim whose owner died is closed by
whoever comes next, forwards if the alias had moved, else as abandoned.
"""

from __future__ import annotations

import getpass
import json
import random
import socket
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from filelock import FileLock

from tasks.errors import BadInput, WorldFailed
from tasks.registry.process import alive, this_machine, this_process
from tasks.registry.schema import Move
from tasks.registry.tracking import RECIPE_TAG, answers, error_code, experiment, tracking_uri
from tasks.store import home

JOURNAL_TAG = "nightowl.journal"
PATIENCE = 30.0  # seconds that another host's claim is left alone before its owner counts as dead
_POLL = 0.2  # seconds
_LONGEST = 5900  # characters of an entry; MLflow keeps 6000


@dataclass(frozen=True)
class Decision:
    """What an attempt does once it knows the champion: go to a version (`to`), or not, and what it says."""

    to: int | None
    says: str


def ensure_model(mlflow: Any, model: str, recipe: str) -> None:
    """Make the registered model and its journal, once.

    The journal's run is made first and named in the model's tags as the model is made, so that of two first
    nights only one journal counts. Raises BadInput when a model of that name exists that Nightowl did not make.
    """
    from mlflow.exceptions import MlflowException

    if _find_journal(mlflow, model):
        return
    tags = {"mlflow.runName": f"moves of {model}", RECIPE_TAG: recipe, "nightowl.kind": "journal"}
    tags["mlflow.note.content"] = f"Every attempt to move the champion of {model}, as parameters: claim and outcome."
    run_id = mlflow.create_run(experiment(mlflow, recipe), tags=tags).info.run_id
    mlflow.set_terminated(run_id)
    try:
        mlflow.create_registered_model(model, tags={JOURNAL_TAG: run_id, RECIPE_TAG: recipe})
    except MlflowException as error:
        mlflow.delete_run(run_id)
        if error_code(error) != "RESOURCE_ALREADY_EXISTS":
            raise
        _journal(mlflow, model)


def alias_version(mlflow: Any, model: str, alias: str) -> int | None:
    """The version that an alias names, or None."""
    from mlflow.exceptions import MlflowException

    try:
        return int(mlflow.get_model_version_by_alias(model, alias).version)
    except MlflowException as error:
        # An unknown alias and an unknown model have different codes, and SQLite's differ from a server's.
        if error_code(error) in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise


def move(
    mlflow: Any,
    model: str,
    kind: Literal["promote", "rollback", "prune"],
    wanted: int | None,
    decide: Callable[[int | None, int | None], Decision],
    who: str | None,
    why: str,
) -> Move:
    """Let `decide(champion, previous)` choose under the lock, move the aliases and write it down.

    A Decision without `to` leaves the aliases and is recorded as an attempt that did not move. Raises
    WorldFailed when MLflow does not answer.
    """
    with answers(), _one_at_a_time(model):
        journal = _journal(mlflow, model)
        owner = {
            "token": uuid.uuid4().hex,
            "machine": this_machine(),
            "process": this_process(),
            "kind": kind,
            "wanted": wanted,
            "who": who or f"{getpass.getuser()}@{socket.gethostname()}",
            "why": why,
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        number = _claim(mlflow, model, journal, owner)
        try:
            found, previous = (alias_version(mlflow, model, alias) for alias in ("champion", "previous"))
            decision = decide(found, previous)
            _write_once(mlflow, journal, f"{number:06d}.plan", {"found": found, "to": decision.to})
            # Whoever was so slow that another host closed its number must not move what has moved on since.
            closed = "done" in _entries(mlflow, journal)[number]
            if decision.to is not None and not closed:
                _set_aliases(mlflow, model, decision.to, found)
        except BaseException as error:
            with suppress(Exception):  # what went wrong first is what counts; an open claim is closed by the next one
                _finish_for(mlflow, model, journal, number, f"{type(error).__name__}: {error}"[:1000])
            raise
        outcome = _close(mlflow, journal, number, decision.says, moved=decision.to is not None)
        if outcome["says"] != decision.says:
            raise WorldFailed(
                f"move {number} of {model}",
                "took so long that another host took it for dead and closed it",
                "See `nightowl champion`, and try again if it is not what you want.",
            )
        return _read(number, owner, {"found": found, "to": decision.to}, outcome)


def moves(mlflow: Any, model: str) -> list[Move]:
    """Every attempt so far, oldest first, those still under way left out."""
    with answers():
        run_id = _find_journal(mlflow, model)
        if run_id is None:
            return []
        entries = _entries(mlflow, run_id)
    return [
        _read(number, parts["claim"], parts.get("plan", {}), parts["done"])
        for number, parts in sorted(entries.items())
        if "done" in parts
    ]


def _read(number: int, claim: dict[str, Any], plan: dict[str, Any], done: dict[str, Any]) -> Move:
    return Move(
        number=number,
        kind=claim["kind"],
        to=plan.get("to") or claim["wanted"] or plan.get("found") or 0,
        found=plan.get("found"),
        outcome=done["says"],
        moved=done["moved"],
        who=claim["who"],
        why=claim["why"],
        at=claim["at"],
    )


def earlier_champions(journal: Sequence[Move], champion: int | None) -> list[int]:
    """Champions before this one, the latest first, for a rollback to go to; who was rolled back from is none of them.

    `champion`: the alias today, which somebody may have moved by hand since the last entry.
    """
    line: list[int] = []
    for entry in (move for move in journal if move.moved):
        if entry.found is not None and line[-1:] != [entry.found]:
            line = _onto(line, entry.found)
        line = _onto(line[:-1], entry.to) if entry.kind == "rollback" else [*line, entry.to]
    if champion is not None:
        line = _onto(line, champion)[:-1]
    return [version for version in dict.fromkeys(reversed(line)) if version != champion]


def _onto(line: list[int], version: int) -> list[int]:
    """A line of champions cut back to the latest time that a version was in it, or with it at the end."""
    return line[: len(line) - line[::-1].index(version)] if version in line else [*line, version]


def _set_aliases(mlflow: Any, model: str, to: int, found: int | None) -> None:
    """Champion first: should this process die in between, the champion is whole and the next one repairs the rest."""
    mlflow.set_registered_model_alias(model, "champion", str(to))
    if found is not None and found != to:
        mlflow.set_registered_model_alias(model, "previous", str(found))
    if alias_version(mlflow, model, "challenger") == to:
        mlflow.delete_registered_model_alias(model, "challenger")


def _claim(mlflow: Any, model: str, journal: str, owner: dict[str, Any]) -> int:
    """Take the next number; waits for whoever holds the last one, and closes it for an owner that died."""
    waiting_for, since = -1, time.monotonic()
    while True:
        entries = _entries(mlflow, journal)
        last = max(entries, default=0)
        if last and "done" not in entries[last]:
            if waiting_for != last:
                waiting_for, since = last, time.monotonic()
            if _dead(entries[last]["claim"], time.monotonic() - since):
                _finish_for(mlflow, model, journal, last, "its process died")
            else:
                time.sleep(_POLL * (1 + random.random()))
            continue
        if _write_once(mlflow, journal, f"{last + 1:06d}.claim", owner):
            return last + 1


def _dead(claim: dict[str, Any], waited: float) -> bool:
    """Whether a claim's owner is gone: of this machine that can be known, of another after PATIENCE seconds."""
    if claim["machine"] == this_machine():
        return not alive(claim["process"])
    return waited > PATIENCE


def _finish_for(mlflow: Any, model: str, journal: str, number: int, trouble: str) -> None:
    """Close an attempt that could not close itself: forwards if the champion had moved, else as abandoned."""
    plan = _entries(mlflow, journal)[number].get("plan", {})
    if plan.get("to") is not None and alias_version(mlflow, model, "champion") == plan["to"]:
        _set_aliases(mlflow, model, plan["to"], plan["found"])
        _close(mlflow, journal, number, f"moved, closed afterwards ({trouble})", moved=plan["to"] != plan["found"])
    else:
        _close(mlflow, journal, number, f"abandoned before the champion moved ({trouble})", moved=False)


def _close(mlflow: Any, journal: str, number: int, says: str, moved: bool) -> dict[str, Any]:
    """Write how an attempt ended, unless somebody has; returns what stands."""
    done = {"says": says, "moved": moved, "token": uuid.uuid4().hex}
    if _write_once(mlflow, journal, f"{number:06d}.done", done):
        return done
    stands: dict[str, Any] = _entries(mlflow, journal)[number]["done"]
    return stands


def _write_once(mlflow: Any, journal: str, key: str, value: dict[str, Any]) -> bool:
    """True when this value now stands under the key, False when another one did already."""
    from mlflow.exceptions import MlflowException

    try:
        mlflow.log_param(journal, key, _fitting(value))
    except MlflowException as error:
        if error_code(error) == "INVALID_PARAMETER_VALUE" and key in mlflow.get_run(journal).data.params:
            return False
        raise
    return True


def _fitting(value: dict[str, Any]) -> str:
    """An entry as JSON that a parameter holds whole: MLflow cuts longer ones, and half an object cannot be read."""
    while len(text := json.dumps(value, ensure_ascii=False)) > _LONGEST:
        key = max((name for name, said in value.items() if isinstance(said, str)), key=lambda name: len(value[name]))
        value = {**value, key: f"{value[key][: len(value[key]) // 2]}…"}
    return text


def _entries(mlflow: Any, journal: str) -> dict[int, dict[str, Any]]:
    entries: dict[int, dict[str, Any]] = {}
    for key, text in mlflow.get_run(journal).data.params.items():
        number, _, part = key.partition(".")
        entries.setdefault(int(number), {})[part] = json.loads(text)
    return entries


def _find_journal(mlflow: Any, model: str) -> str | None:
    """The run that holds a model's moves; None where there is no such model."""
    from mlflow.exceptions import MlflowException

    try:
        return _journal(mlflow, model)
    except MlflowException as error:
        if error_code(error) == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise


_KNOWN: dict[tuple[str, str], str] = {}  # journals by server and model: looking one up reads every version


def _journal(mlflow: Any, model: str) -> str:
    key = (tracking_uri(), model)
    if key not in _KNOWN:
        run_id = mlflow.get_registered_model(model).tags.get(JOURNAL_TAG)
        if run_id is None:
            raise BadInput(
                "registry.model",
                model,
                "is a registered model that Nightowl did not make",
                "Name another in the recipe; aliases of other people's models are left alone.",
            )
        _KNOWN[key] = str(run_id)
    return _KNOWN[key]


@contextmanager
def _one_at_a_time(model: str) -> Iterator[None]:
    """Serialise the processes of this machine's home cheaply; the journal does it over all hosts."""
    folder = home() / "locks"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / f"{model}.lock"):
        yield
