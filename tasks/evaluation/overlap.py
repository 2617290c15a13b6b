"""How much of a reference answer an answer has: ROUGE-L (Lin 2004), as F1 over words, over characters where a script
writes none."""

from __future__ import annotations

import re

_UNITS = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]|[^\W_]+")
_LONGEST = 2000  # units; the cost grows with the product of both lengths


def rouge_l(reference: str, answered: str) -> float:
    """F1 of the longest common subsequence, from 0 to 1."""
    one, other = (_UNITS.findall(text.casefold())[:_LONGEST] for text in (reference, answered))
    if not one or not other:
        return float(one == other)
    common = _common(one, other)
    return 2 * common / (len(one) + len(other))


def _common(one: list[str], other: list[str]) -> int:
    """Length of the longest common subsequence, a row of bits at a time (Hyyrö 2004)."""
    places: dict[str, int] = {}
    for at, unit in enumerate(one):
        places[unit] = places.get(unit, 0) | 1 << at
    whole = (1 << len(one)) - 1
    row = whole
    for unit in other:
        met = row & places.get(unit, 0)
        row = ((row + met) | (row - met)) & whole
    return len(one) - row.bit_count()
