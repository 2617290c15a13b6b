"""The final number of an answer, as people and data sets write it.

Marks are looked for from the most to the least explicit: `\\boxed{...}`, `#### ...` (GSM8K), "answer
is ..." or "answer: ...", and the last number of the text. Numbers are exact fractions, so 1/2 equals
0.5 and 1,234.0 equals 1234.
"""

from __future__ import annotations

import re
from fractions import Fraction

_LATEX_FRACTION = re.compile(r"\\[dt]?frac\s*\{\s*(-?[\d.,]+)\s*\}\s*\{\s*(-?[\d.,]+)\s*\}")
_LONGEST = 100  # characters; what is longer is noise, and too long for int()
_CUE = re.compile(r"answer(?:\s+is|\s*[:=])", re.IGNORECASE)
_SIGN = r"(?:(?<![\w.)])[-+]\s?)?"
_WHOLE = r"(?:\d{1,3}(?:,\d{3})+(?![\d,]*\d)|\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>{_SIGN})[$€£¥]?\s?(?P<sign2>-?)(?P<number>(?:{_WHOLE}(?:\.\d+)?|\.\d+)(?:[eE][-+]?\d{{1,3}})?)"
    rf"(?:\s?/\s?(?P<under>\d+(?:\.\d+)?)(?![\d/]))?"
)


def final_number(text: str) -> Fraction | None:
    """The number that an answer ends on; None where there is none."""
    text = _plain(text)
    for part in (_boxed(text), _after(text, "####")):
        if part is not None and (found := _numbers(part)):
            return found[0]
    if (cues := list(_CUE.finditer(text))) and (found := _numbers(_sentence(text[cues[-1].end() :]))):
        # "the answer is 3 + 4 = 7" ends on the result.
        return found[-1]
    found = _numbers(text)
    return found[-1] if found else None


def fault(expected: str, answered: str) -> str | None:
    """What is wrong with an answer's final number (or text, where the expected answer has no number)."""
    if not answered.strip():
        return "no answer"
    want = final_number(expected)
    if want is None:
        return None if _words(answered) == _words(expected) else f"not {expected.strip()[:80]!r}"
    got = final_number(answered)
    if got is None:
        return f"no number; expected {_show(want)}"
    return None if got == want else f"{_show(got)} instead of {_show(want)}"


def _plain(text: str) -> str:
    text = text.replace("\u2212", "-").replace("\\$", "$").replace("{,}", ",").replace("\\!", "").replace("\\,", " ")
    return _LATEX_FRACTION.sub(r"\1/\2", text)


def _boxed(text: str) -> str | None:
    start = text.rfind("\\boxed{")
    if start < 0:
        return None
    depth, at = 1, start + len("\\boxed{")
    begin = at
    while at < len(text) and depth:
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        at += 1
    return text[begin : at - 1] if depth == 0 else None


def _after(text: str, mark: str) -> str | None:
    _, found, rest = text.rpartition(mark)
    return rest.partition("\n")[0] if found else None


def _sentence(text: str) -> str:
    return re.split(r"\n|[.!?](?:\s|$)", text, maxsplit=1)[0]


def _numbers(text: str) -> list[Fraction]:
    found = []
    for match in _NUMBER.finditer(text):
        if len(match[0]) > _LONGEST:
            continue
        value = Fraction(match["number"].replace(",", ""))
        if match["under"] is not None:
            under = Fraction(match["under"])
            if not under:
                continue
            value /= under
        found.append(-value if "-" in match["sign"] or match["sign2"] else value)
    return found


def _show(value: Fraction) -> str:
    return str(value) if value.denominator == 1 else f"{float(value):g}"


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())
