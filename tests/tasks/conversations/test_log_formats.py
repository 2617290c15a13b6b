"""Request logs as gateways write them, from files on disk to conversations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pytest

from tasks.conversations import convert, detect
from tasks.fetch import fetch
from tasks.recipe import Source
from tasks.sources import read_batches
from tasks.store import Store

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Weather in Oslo?"}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "Weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
]
CALLS = [
    {
        "id": "call_1",
        "type": "function",
        "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
    }
]


def completion(message: dict[str, Any], finish: str | None = "stop", **more: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": None, **message}}
    return {"id": "c1", "object": "chat.completion", "choices": [choice], "usage": {"total_tokens": 9}, **more}


def row(response: Any, request: Any = None, **more: Any) -> dict[str, Any]:
    given = {"model": "m", "messages": MESSAGES, "tools": TOOLS, "temperature": 0.2} if request is None else request
    return {"timestamp": 1, "workload_id": "chat", "client_id": "x", "request": given, "response": response, **more}


def read(tmp_path: Path, rows: list[dict[str, Any]], **options: Any) -> tuple[pl.DataFrame, pl.DataFrame, str]:
    """Conversations, rows set aside and the detected format of rows in a file."""
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"".join(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in rows))
    store = Store(tmp_path / "store")
    snapshot = fetch(Source(name="log", uri=f"file://{path}", kind="chat", share=1), store)
    raw = pl.concat(batch.frame() for batch in read_batches(store.folder(snapshot), snapshot))
    found = options.pop("format", None) or detect(raw)
    conversations, aside = convert(raw, source="s", revision="r", kind="chat", format=found, **options)
    assert conversations.height + aside.height == len(rows)
    return conversations, aside, found


def last(conversations: pl.DataFrame, row: int = 0) -> dict[str, Any]:
    return dict(conversations["messages"][row][-1])


@pytest.mark.parametrize("as_text", [False, True])
def test_requests_and_responses_become_conversations(tmp_path: Path, as_text: bool) -> None:
    rows = [
        row(completion({"content": "Rain.", "reasoning_content": "Look outside."})),
        row(completion({"tool_calls": CALLS}, "tool_calls")),
        row({"status_code": 200, "body": completion({"content": "Sun."})}, {"body": {"messages": MESSAGES}}),
    ]
    if as_text:
        rows = [{**r, "request": json.dumps(r["request"]), "response": json.dumps(r["response"])} for r in rows]
    conversations, aside, found = read(tmp_path, rows)
    assert (found, aside.height) == ("request_log", 0)
    assert [m["role"] for m in conversations["messages"][0]] == ["system", "user", "assistant"]
    assert (last(conversations)["content"], last(conversations)["thinking"]) == ("Rain.", "Look outside.")
    assert last(conversations, 1)["tool_calls"] == [{"name": "get_weather", "arguments": '{"city":"Oslo"}'}]
    assert json.loads(conversations["tools"][1])[0]["function"]["name"] == "get_weather"
    assert (last(conversations, 2)["content"], conversations["tools"][2]) == ("Sun.", None)


def test_streamed_responses_are_put_together(tmp_path: Path) -> None:
    def chunk(delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

    text = [chunk({"role": "assistant"}), chunk({"content": "Ra"}), chunk({"content": "in."}), chunk({}, "stop")]
    call = [
        chunk({"tool_calls": [{"index": 0, "id": "a", "function": {"name": "get_weather", "arguments": ""}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"city": "O'}}]}),
        chunk({"tool_calls": [{"index": 1, "id": "b", "function": {"name": "get_weather", "arguments": "{}"}}]}),
        chunk({"tool_calls": [{"index": 0, "function": {"arguments": 'slo"}'}}]}, "tool_calls"),
        {"object": "chat.completion.chunk", "choices": [], "usage": {"total_tokens": 3}},
    ]
    events = "".join(f"data: {json.dumps(piece)}\n\n" for piece in text) + "data: [DONE]\n\n"
    conversations, aside, _ = read(tmp_path, [row(text), row(call), row(events), row(text[:-1]), row(events[:60])])
    assert [last(conversations, n)["content"] for n in range(3)] == ["Rain.", "", "Rain."]
    calls = [(made["name"], made["arguments"]) for made in last(conversations, 1)["tool_calls"]]
    assert calls == [("get_weather", '{"city":"Oslo"}'), ("get_weather", "{}")]
    assert dict(aside.select("source_row", "reason").iter_rows()) == {3: "cut_off", 4: "response_not_json"}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(None), "no_response"),
        (row(""), "no_response"),
        (row({}), "no_response"),
        (row({"error": {"message": "overloaded", "code": 529}}), "failed_request"),
        (row(completion({"content": "x"}), status="failure"), "failed_request"),
        (row(completion({"content": "x"}), status_code=500), "failed_request"),
        (row({"status_code": 429, "body": {"error": "slow down"}}), "failed_request"),
        (row(completion({"content": "x"}), error="timed out"), "failed_request"),
        (row("Internal Server Error"), "response_not_json"),
        (row({"id": "c1", "choices": []}), "no_answer"),
        (row(completion({"content": ""})), "no_answer"),
        (row(completion({"content": "half a sen"}, "length")), "cut_off"),
        (row(completion({"content": "I"}, "content_filter")), "refused"),
        (row(completion({"refusal": "I can't."})), "refused"),
        (row(completion({"content": "x"}), {"model": "m", "input": "embed me"}), "not_a_chat"),
        (row(completion({"content": "x"}), {"messages": [{"role": "wizard", "content": "x"}]}), "unknown_role"),
    ],
)
def test_what_failed_teaches_nothing_and_is_set_aside_with_its_reason(
    tmp_path: Path, bad: dict[str, Any], reason: str
) -> None:
    conversations, aside, found = read(tmp_path, [row(completion({"content": "Rain."})), bad])
    assert found == "request_log"
    assert conversations.height == 1
    assert aside.select("source_row", "reason").rows() == [(1, reason)]


def test_litellms_columns_are_told_from_plain_messages(tmp_path: Path) -> None:
    litellm = {
        "id": "r1",
        "call_type": "acompletion",
        "status": "success",
        "messages": MESSAGES,
        "response": completion({"tool_calls": CALLS}, "tool_calls"),
        "model_parameters": {"tools": TOOLS, "temperature": 0},
        "error_str": None,
        "error_information": {"error_code": "", "error_class": "", "error_message": ""},
        "startTime": 1.5,
    }
    failed = {**litellm, "status": "failure", "response": {}, "error_str": "RateLimitError: ..."}
    conversations, aside, found = read(tmp_path, [litellm, failed])
    assert (found, aside["reason"].to_list()) == ("litellm_log", ["failed_request"])
    assert last(conversations)["tool_calls"][0]["name"] == "get_weather"
    assert json.loads(conversations["tools"][0])[0]["function"]["name"] == "get_weather"
    plain = {"messages": [*MESSAGES, {"role": "assistant", "content": "Rain."}], "response": "unrelated"}
    assert read(tmp_path, [plain])[2] == "openai"
