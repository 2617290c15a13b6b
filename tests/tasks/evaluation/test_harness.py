"""EvalScope over tables of answers: gold answers score 1, and nothing else does."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tasks.conversations import Renderer
from tasks.evaluation import harness
from tasks.evaluation.models_process import ANSWER_SCHEMA
from tasks.recipe import Suite

SUITES = {
    suite.name: suite
    for suite in (
        Suite(name="tool_call", kind="tool", role="target"),
        Suite(name="final_answer", kind="reasoning", role="target", mode="thinking"),
        Suite(name="chat_format", kind="chat", role="guard"),
        Suite(name="held_out_loss", kind="chat", role="guard"),
    )
}


def tables(rows: pl.DataFrame, renderer: Renderer, *, gold: bool) -> dict[str, pl.DataFrame]:
    """Answers as the model process would write them: what the template renders, or the next item's."""
    made = {}
    for name, suite in SUITES.items():
        items = rows.filter(pl.col("kind") == suite.kind).sort("row_id")
        asked = renderer.prompts(items, suite.mode)
        whole = [renderer.decode(ids) for ids in renderer.render(items)["input_ids"]]
        written = [
            text.partition("<|im_start|>assistant\n")[2]
            .removeprefix("<think>\n\n</think>\n\n")
            .partition("<|im_end|>")[0]
            for text in whole
        ]
        expected = [json.dumps(turn) for turn in asked["expected"]]
        made[name] = pl.DataFrame(
            {
                "item_id": asked["row_id"],
                "cluster": items["row_id"],
                "sample": [0] * items.height,
                "prompt": asked["prompt"],
                "expected": expected,
                "shown": expected,
                "tools": items["tools"],
                "reference": None,
                "output": written if gold else written[1:] + written[:1],
                "stopped": [True] * items.height,
                "new_tokens": [5] * items.height,
                "loss": [1.0 + n / 8 if name == "held_out_loss" else None for n in range(items.height)],
                "judged": [None] * items.height,
                "note": [""] * items.height,
                "seconds": [1.0] * items.height,
            },
            schema=ANSWER_SCHEMA,
        )
    return made


@pytest.mark.parametrize("gold", [True, False])
def test_gold_and_shuffled_answers(
    rows: Callable[[int], pl.DataFrame], tiny_renderer: Renderer, tmp_path: Path, gold: bool
) -> None:
    handlers = logging.getLogger().handlers[:]
    # A line separator in a text must not cut a line of EvalScope's files in two.
    answers = tables(rows(12), tiny_renderer, gold=gold)
    chat = answers["chat_format"]
    answers["chat_format"] = chat.with_columns(output=pl.col("output") + "\u2028\x85more")
    scored = harness.score("m", SUITES, answers, tiny_renderer, tmp_path / "evalscope")
    means = {name: frame["score"].mean() for (name,), frame in scored.group_by("suite")}
    assert means == {
        "tool_call": float(gold),
        "final_answer": float(gold),
        "chat_format": 1.0,
        "held_out_loss": pytest.approx(1 + 11 / 16),
    }
    for (name,), frame in scored.group_by("suite", maintain_order=True):
        assert frame["item_id"].to_list() == answers[str(name)]["item_id"].to_list()
    losses = scored.filter(pl.col("suite") == "held_out_loss")["score"].to_list()
    assert losses == answers["held_out_loss"]["loss"].to_list()
    assert scored.filter(pl.col("score") == 0)["detail"].str.len_chars().min() != 0
    assert scored.filter(pl.col("suite") == "tool_call")["cluster"].n_unique() == 12
    assert logging.getLogger().handlers == handlers
    report = json.loads(next((tmp_path / "evalscope").glob("reports/*/nightowl_tool_call.json")).read_text())
    assert report["execution_summary"]["incomplete"] is False
    # A second attempt in the same place starts afresh.
    again = harness.score("m", SUITES, answers, tiny_renderer, tmp_path / "evalscope")
    assert again.equals(scored)
