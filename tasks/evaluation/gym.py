"""Questions of reasoning-gym, marked by their task's own scorer."""

from __future__ import annotations

import re
from functools import cache
from typing import Any

from tasks.errors import BadInput
from tasks.sources import gym_task, parse_uri


@cache
def questions(place: str, field: str = "gym") -> Any:
    """The data set of a gym:// address. Raises BadInput for a task or a setting that reasoning-gym does not have."""
    uri = parse_uri(place, field=field)
    size, seed = uri.whole("size", 100, least=1, most=1_000_000), uri.whole("seed", 0, most=2**31)
    try:
        return gym_task(uri, size, seed)
    except KeyError as error:
        raise BadInput(field, place, "is no task of reasoning-gym", "See its gallery for the names.") from error


def score(place: str, index: int, answered: str) -> float:
    """What the task's scorer gives an answer, from 0 to 1. Of a text that names its answer, that part is marked."""
    data = questions(place)
    entry = data[index]
    parts = {answered.strip(), answered.rpartition("####")[2].strip(), _named(answered)}
    return max(float(data.score_answer(part, entry)) for part in parts if part) if any(parts) else 0.0


def _named(text: str) -> str:
    """What follows the last "answer is" or "answer:", without a full stop."""
    cues = list(re.finditer(r"answer(?:\s+is|\s*[:=])", text, re.IGNORECASE))
    return text[cues[-1].end() :].strip().rstrip(".").strip() if cues else ""
