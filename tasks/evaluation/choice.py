"""Multiple choice: how a question is put, and which letter an answer ends on."""

from __future__ import annotations

import re
from collections.abc import Sequence

LETTERS = "ABCD"
_ASK = "Answer with the letter of the right choice alone."
_SAID = re.compile(r"(?:answer|choice|option)(?:\s+is|\s*[:=])?\s*\(?\**\(?([A-D])\b", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed\{\s*(?:\\text\{)?\(?([A-D])\b")
_FIRST = re.compile(r"\s*[(\[*]*([A-D])(?:[)\].:*,]|\s|$)")


def question(text: str, choices: Sequence[str]) -> str:
    """The prompt: the question, one line a choice, and what is asked for."""
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False)]
    return "\n".join([text.strip(), *lines, _ASK])


def asked(prompt: str) -> str:
    """The question of a prompt, without its choices; a prompt that has none as it is."""
    return prompt.partition(f"\n{LETTERS[0]}. ")[0] if prompt.endswith(_ASK) else prompt


def chosen(text: str, choices: Sequence[str]) -> str | None:
    """The letter that an answer names: boxed, said to be the answer (the last time), first, or by the choice's text."""
    text = text.strip()
    for pattern in (_BOXED, _SAID):
        if found := pattern.findall(text):
            return str(found[-1]).upper()
    if first := _FIRST.match(text):
        return first[1]
    same = [letter for letter, choice in zip(LETTERS, choices, strict=False) if _plain(choice) == _plain(text)]
    return same[0] if len(same) == 1 else None


def fault(letter: str, choices: Sequence[str], answered: str) -> str | None:
    """What is wrong with an answer; None where it names the right letter."""
    got = chosen(answered, choices)
    if got is None:
        return "no choice"
    return None if got == letter else f"{got} instead of {letter}"


def _plain(text: str) -> str:
    return " ".join(text.casefold().strip(" .").split())
