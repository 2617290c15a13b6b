from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

from tasks.errors import BadInput
from tasks.fetch import fetch
from tasks.recipe import Source
from tasks.sources import resolve
from tasks.store import Store

Row = dict[str, Any]


def rows(uri: str, tmp_path: Path) -> list[Row]:
    store = Store(tmp_path / "store")
    snapshot = fetch(Source(name="s", uri=uri, kind="chat", share=1), store)
    (path,) = (store.folder(snapshot) / "data").iterdir()
    found = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert len(found) == snapshot.rows
    return found


def prompts(found: list[Row]) -> set[str]:
    return {row["messages"][0]["content"] for row in found}


def test_tools_are_called_as_they_are_declared(tmp_path: Path) -> None:
    found = rows("sample://tools?size=700&seed=3&planted=0", tmp_path)
    assert len(prompts(found)) == 700
    called: Counter[str] = Counter()
    given: dict[str, set[frozenset[str]]] = {}
    for row in found:
        assert 2 <= len(row["tools"]) <= 4
        (call,) = row["messages"][-1]["tool_calls"]
        schemas = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
        name, arguments = call["function"]["name"], json.loads(call["function"]["arguments"])
        jsonschema_rs.validate({**schemas[name], "additionalProperties": False}, arguments)
        called[name] += 1
        given.setdefault(name, set()).add(frozenset(arguments))
    assert len(called) == 5
    assert min(called.values()) > 30
    assert sum(len(ways) > 1 for ways in given.values()) >= 3  # optional arguments are given or left out


def test_every_argument_can_be_read_off_the_prompt(tmp_path: Path) -> None:
    said_otherwise = {"room", "on", "outdoor"}  # booleans are words, and the hall is in both
    for row in rows("sample://tools?size=500&planted=0", tmp_path):
        prompt = row["messages"][0]["content"].lower()
        arguments = json.loads(row["messages"][-1]["tool_calls"][0]["function"]["arguments"])
        for name, value in arguments.items():
            assert name in said_otherwise or str(value).lower() in prompt, (prompt, name, value)


def test_chat_answers_are_short_and_distinctly_asked(tmp_path: Path) -> None:
    found = rows("sample://chat?size=400&planted=0", tmp_path)
    assert len(prompts(found)) == 400
    for row in found:
        answer = row["messages"][-1]["content"]
        assert 3 < len(answer) < 80
        assert answer[-1] in ".?!"


@pytest.mark.parametrize("name", ["tools", "chat"])
def test_two_percent_of_the_rows_are_spoilt_at_stated_places(tmp_path: Path, name: str) -> None:
    clean = rows(f"sample://{name}?size=700&planted=0", tmp_path)
    planted = rows(f"sample://{name}?size=700", tmp_path)
    at = [index for index, (one, other) in enumerate(zip(clean, planted, strict=True)) if one != other]
    assert at == list(range(49, 700, 50))
    text = json.dumps([planted[index] for index in at], ensure_ascii=False)
    for sign in ("<|im_end|>", "\ufffd", "{{name}}", '"content": ""'):
        assert sign in text
    repeated = [index for index in at if planted[index] == planted[index - 1]]
    assert repeated
    if name == "tools":
        assert "delete_everything" in text
        assert "a lot" in text


@pytest.mark.parametrize("name", ["tools", "chat"])
def test_a_seed_gives_the_same_rows_and_another_seed_others(tmp_path: Path, name: str) -> None:
    uri = f"sample://{name}?size=300&seed="
    one, again, other = (rows(f"{uri}{seed}", tmp_path / place) for seed, place in [(1, "a"), (1, "b"), (2, "c")])
    assert one == again
    assert len(prompts(one) & prompts(other)) < 200
    assert (
        resolve(f"sample://{name}?seed=1") == resolve(f"sample://{name}?seed=1") != resolve(f"sample://{name}?seed=2")
    )


def test_what_cannot_be_generated_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"Did you mean 'tools'.*sample://chat"):
        rows("sample://tool", tmp_path)
    with pytest.raises(BadInput, match=r"only about .* distinct ones"):
        rows("sample://chat?size=50000", tmp_path)
    with pytest.raises(BadInput, match="size=0"):
        rows("sample://chat?size=0", tmp_path)
