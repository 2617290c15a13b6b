"""One offending text a rule, short enough for a table, with what cannot be seen made visible."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tasks.quality import text
from tasks.quality.sensitive import DETECTORS, found_in

WIDTH = 160
# Where in the text to look; Python's re reads these character classes, not those with \p{...}.
_PATTERNS = {
    "replacement_character": "\ufffd",
    "mojibake": text.MOJIBAKE,
    "control_character": rf"{text.CONTROL}|{text.CONTROL_WIDE}",
    "invisible_character": "[\u200b-\u200d\u2060-\u2064\ufeff\u180e\u00ad\u115f\u1160\u3164\U000e0001-\U000e007f]",
    "bidi_control": f"{text.BIDI_OVERRIDE}|{text.BIDI_MARK}",
    "placeholder": f"{text.PLACEHOLDER}|{text.FILL_IN}".replace(r"\z", r"\Z"),
    "call_in_text": r"</?tool_call>|<TOOLCALL>|<tool_code>|<function|\[TOOL_CALLS\]|Action:",
    "foreign_token": text.FOREIGN,
    "html_entity": text.ENTITY,
    "ai_disclaimer": f"{text.DISCLAIMERS}|{text.DISCLAIMER.removeprefix('(?i)')}",
    **dict.fromkeys(
        ("think_unclosed", "think_unopened", "think_nested", "think_repeated", "think_outside_assistant"), r"</?think>"
    ),
}


def example(
    rule: str,
    row: Mapping[str, Any],
    *,
    special_tokens: Sequence[str] = (),
    problem: str | None = None,
    phone_regions: Sequence[str] = (),
) -> str:
    """What a row (of schema CONVERSATION, as a dict) looks like where it breaks a rule, in about 160 characters.

    Of a secret and of what is personal the first characters are shown, and no more.
    """
    if rule in ("render_problem", "empty_loss_mask") and problem:
        return shown(problem)
    if detector := next((detector for detector in DETECTORS if detector.name == rule), None):
        for role, piece in _texts(row):
            if spans := found_in(piece, detector, phone_regions):
                start, end = spans[0]
                hint = piece[start : start + (2 if end - start < 24 else 6)]
                return f"{role}: {shown(f'{piece[max(0, start - 60) : start]}{hint}…')}"
        return ""
    pattern = _PATTERNS.get(rule)
    if rule == "special_token":
        pattern = "|".join(map(re.escape, text.guarded(special_tokens))) or None
    if pattern:
        for role, piece in _texts(row):
            if found := re.search(pattern, piece):
                start, end = max(0, found.start() - 60), found.end() + 60
                around = piece[start : found.start()] + found.group()[:80] + piece[found.end() : end]
                return f"{role}: {shown(around)}"
    turns = row["messages"] or []
    said = " | ".join(f"{turn['role']}: {_said(turn)}" for turn in turns[-3:])
    return shown(said)


def shown(value: str) -> str:
    """A text on one line, shortened, with invisible characters as escapes."""
    seen = "".join(
        " " if c in "\n\r\t" else f"\\u{ord(c):04x}" if unicodedata.category(c) in ("Cc", "Cf", "Cn", "Co", "Cs") else c
        for c in value[: 2 * WIDTH]
    )
    return seen if len(seen) <= WIDTH else seen[: WIDTH - 1] + "…"


def _texts(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for turn in row["messages"] or []:
        for piece in (turn["content"], turn["thinking"], *(call["arguments"] for call in turn["tool_calls"] or ())):
            if piece:
                yield turn["role"], piece


def _said(turn: Mapping[str, Any]) -> str:
    calls = " ".join(f"{call['name']}({call['arguments']})" for call in turn["tool_calls"] or ())
    content = (turn["content"] or "").strip()
    short = content if len(content) <= 50 else f"{content[:25]}…{content[-24:]}"
    return " ".join(part for part in (short, calls[:80]) if part) or "(nothing)"
