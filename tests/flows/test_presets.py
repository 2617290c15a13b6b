"""The presets: each says how to use itself, in commands that the command takes, and resolves to a plan."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from tasks.plan import plan
from tasks.recipe import PRESETS, load
from tasks.store import Store
from tests.infra.programs import refusal

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
ROWS = {
    "chat": {"instruction": "Say it.", "output": "It is said."},
    "reasoning": {"question": "What is 2 + 2?", "answer": "Two and two make four.\n#### 4"},
    "tool": {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]},
}


def header(name: str) -> str:
    """The comment that a preset opens with, a part a line."""
    lines = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").partition("\n\n")[0].splitlines()
    return re.sub(r"\n {10,}(?=\S)(?!nightowl)", " ", "\n".join(line.removeprefix("# ") for line in lines))


def test_the_four_are_there() -> None:
    assert {"demo", "qwen3-8b-hybrid", "qwen3-8b-tools", "vertical-qa"} <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_its_header_says_what_it_does_and_how(name: str) -> None:
    for part in ("What it does", "What it needs", "Run", "Override", "Schedule"):
        assert re.search(rf"^{part} {{2,}}\S", header(name), re.MULTILINE), part
    assert re.search(r"\d+ GB", header(name))


@pytest.mark.parametrize("name", NAMES)
def test_the_commands_of_its_header_are_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PRESETS.parents[1])
    told = re.findall(r"nightowl (?:run|check|deploy) [^\n;(]*", header(name).replace("up runs", ""))
    assert len(told) >= 2
    for command in told:
        words = shlex.split(command)
        assert refusal(words) == "", command
        changes = [words[at + 1] for at, word in enumerate(words) if word == "--set"]
        if words[1] != "check":
            load(words[2], changes)


@pytest.mark.parametrize("name", NAMES)
def test_it_resolves_to_a_plan(name: str, byte_model: Path, tmp_path: Path, nightowl_home: Path) -> None:
    """With its base and its sources as files here, and all else as it stands."""
    recipe, _ = load(name)
    changes = [f"base.uri=file://{byte_model}"]
    for source in recipe.sources:
        file = tmp_path / f"{source.name}.jsonl"
        file.write_text("".join(json.dumps(ROWS[source.kind]) + "\n" for _ in range(50)))
        changes.append(f"sources.{source.name}.uri=file://{file}")
    local, _ = load(name, changes)
    made = plan(local, Store.open(), None)
    assert {f"fetch {source.name}" for source in recipe.sources} <= {stage.name for stage in made.stages}


def test_the_hybrid_is_guarded_in_both_modes() -> None:
    suites = load("qwen3-8b-hybrid")[0].evaluation.suites
    for kind in ("reasoning", "chat"):
        modes = {suite.mode for suite in suites if suite.kind == kind and suite.measure != "held_out_loss"}
        assert modes == {"thinking", "direct"}, kind
    assert {suite.mode for suite in suites if suite.role == "guard"} == {"thinking", "direct"}
