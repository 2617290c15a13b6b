"""A night that the data gate stops: what a person finds in Prefect, read from a real server."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from flows.component import free_port
from flows.services import prefect_server

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def api(nightowl_home: Path) -> Iterator[str]:
    with prefect_server(free_port(0), for_people=False) as (url, _, healthy):
        healthy()
        yield url


def found(api: str, what: str) -> list[dict[str, Any]]:
    answer: list[dict[str, Any]] = httpx.post(f"{api}/{what}/filter", json={}, timeout=30).raise_for_status().json()
    return answer


def test_the_validate_task_fails_with_the_worst_rules_and_so_says_the_artifact(
    api: str, byte_model: Path, nightowl_home: Path, tmp_path: Path
) -> None:
    texts = {**dict.fromkeys(range(5), ""), **dict.fromkeys(range(5, 13), "I'm sorry, but I can't help with that.")}
    texts |= {**dict.fromkeys(range(13, 20), "Dear {{customer}}, welcome."), 20: "In the caf\ufffd."}
    rows = [
        [{"role": "user", "content": f"What comes after {n}?"}, {"role": "assistant", "content": texts.get(n, "More.")}]
        for n in range(40)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in rows))
    recipe = tmp_path / "recipe.yaml"
    source = {"name": "talk", "uri": f"file://{file}", "kind": "chat", "share": 1.0}
    suites = [{"name": "held_out_loss", "kind": "chat", "role": "target"}]
    given = {"name": "bad", "base": {"uri": f"file://{byte_model}"}, "sources": [source]}
    recipe.write_text(yaml.safe_dump({**given, "evaluation": {"suites": suites}}))

    environment = {**os.environ, "PREFECT_API_URL": api, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "flows.cli", "run", str(recipe)]
    night = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert night.returncode == 1, night.stderr

    # The server records task runs from events, which may reach it after the night has ended.
    deadline = time.monotonic() + 60
    while not (tasks := {run["name"]: run["state"] for run in found(api, "task_runs")}).keys() >= {"validate talk"}:
        assert time.monotonic() < deadline, tasks
        time.sleep(0.2)
    states = {name: state["type"] for name, state in tasks.items()}
    assert states["validate talk"] == "FAILED"
    assert states["fetch talk"] == "COMPLETED"
    (artifact,) = [one for one in found(api, "artifacts") if one["key"] == "data-gate-talk"]
    message = tasks["validate talk"]["message"]
    docs = next((nightowl_home / "store" / "conversations").glob("*/docs/index.html"))
    for told in (message, artifact["data"], night.stderr):
        assert re.search(r"empty_answer\W+(critical \| )?5 ", told)
        assert re.search(r"refusal\W+(warning \| )?8 ", told)
        assert "row 0, user: What comes after 0?" in told
        assert "row 5, user: What comes after 5?" in told
        assert str(docs) in told
    assert len(re.findall(r"^  \w+: \d+ rows", message, re.M)) == 3  # the three worst are told
    assert "set_aside: 21 rows (52.5%), and at most 10.0% may" in message
    assert "| empty_answer | critical | 5 | 12.5% |" in artifact["data"]
