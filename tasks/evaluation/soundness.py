"""What is wrong with the items of a suite, before hours go into models that are measured on them.

A measure that finds nothing to compare with does not fail: it gives every model the same score, and the night ends with
a verdict that means nothing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import polars as pl

from tasks.evaluation import instructions
from tasks.recipe import Measure
from tasks.store import digest

FLAWS = pl.Schema({"row_id": pl.String, "no_prompt": pl.Boolean, "no_answer": pl.Boolean, "asked_before": pl.Boolean})
Item = Mapping[str, Any]

NEEDS: dict[Measure, str] = {
    "tool_call": "an answer and, of a benchmark, declared tools and the calls that are right",
    "final_answer": "a right answer",
    "chat_format": "an assistant's turn to write",
    "held_out_loss": "an answer to take the loss on",
    "thinking": "an assistant's turn to write",
    "overlap": "a right answer",
    "choice": "the letter of the right choice, and the choices",
    "instructions": "a rule that can be run here",
    "judge": "a right answer to be judged beside",
    "task": "the address and number of its question in reasoning-gym",
}


def flaws(items: pl.DataFrame, measure: Measure) -> pl.DataFrame:
    """The flaws of each item (row_id, messages, tools and, of a benchmark, reference), as FLAWS."""
    found, asked = [], set()
    for item in items.iter_rows(named=True):
        turns = item["messages"] or []
        # The turn that a model is asked for, as Renderer.prompts has it.
        last = max((at for at, turn in enumerate(turns) if turn["role"] == "assistant"), default=None)
        prompt, answer = turns[:last], None if last is None else turns[last]
        known = digest([prompt, item["tools"]])
        reference = json.loads(item["reference"]) if item.get("reference") else None
        found.append(
            {
                "row_id": item["row_id"],
                "no_prompt": not any(turn["role"] == "user" and _said(turn) for turn in prompt),
                "no_answer": answer is None or not _HAS[measure](item, answer, reference),
                "asked_before": known in asked,
            }
        )
        asked.add(known)
    return pl.DataFrame(found, schema=FLAWS)


def _said(turn: Item) -> bool:
    return bool((turn.get("content") or "").strip())


def _calls(item: Item, answer: Item, reference: Item | None) -> bool:
    # No call at all is an answer too: none fits.
    return reference is None or ("calls" in reference and bool(item["tools"]))


def _text(item: Item, answer: Item, reference: Item | None) -> bool:
    return _said(answer)


_HAS: dict[Measure, Callable[[Item, Item, Item | None], bool]] = {
    "tool_call": _calls,
    "final_answer": _text,
    "chat_format": lambda item, answer, reference: True,
    "held_out_loss": lambda item, answer, reference: _said(answer) or bool(answer.get("tool_calls")),
    "thinking": lambda item, answer, reference: True,
    "overlap": _text,
    "judge": _text,
    "choice": lambda item, answer, reference: {"letter", "choices"} <= (reference or {}).keys(),
    "instructions": lambda item, answer, reference: any(
        rule["rule"] in instructions.runnable() for rule in (reference or {}).get("rules", ())
    ),
    "task": lambda item, answer, reference: {"gym", "index"} <= (reference or {}).keys(),
}
