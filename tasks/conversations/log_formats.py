"""Logs of requests to an OpenAI-style chat API, as gateways record them: one row a request and its response.

The response is a chat completion, the chunks of a streamed one or their server-sent events as text; either
side may be JSON text, or wrapped in a `body`. What failed, came back empty or was cut off teaches nothing
and is set aside with its reason.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tasks.conversations.canonical import Unconvertible, loads
from tasks.conversations.message_formats import openai
from tasks.conversations.turns import Reading, messages_of

Row = Mapping[str, Any]

_FAILED = ("failure", "failed", "error", "errored", "timeout", "timed_out", "cancelled", "canceled", "aborted", "abort")


def request_log(row: Row) -> Reading:
    """request {messages, tools, ...} and response {choices: [{message}]}; status, status_code, error."""
    return _reading(_object(row["request"], "request_not_object"), row)


def litellm_log(row: Row) -> Reading:
    """LiteLLM's payload: messages and response as columns, tools among model_parameters; status, error_str."""
    parameters = _object(row["model_parameters"] or row["optional_params"], "request_not_object") or {}
    request = {**parameters, "messages": row["messages"]}
    if row["tools"]:
        request["tools"] = row["tools"]
    return _reading(request, row)


def looks_like_request(rows: Sequence[Row]) -> bool:
    """Whether the `request` column holds requests for a chat completion."""
    return _some(rows, "request", "messages")


def looks_like_completion(rows: Sequence[Row]) -> bool:
    """Whether the `response` column, if there is one, holds chat completions."""
    return _some(rows, "response", "choices")


def _some(rows: Sequence[Row], column: str, key: str) -> bool:
    for row in rows:
        value = row.get(column)
        # The chunks of a stream, and what is no JSON at all, are left to the reading of each row.
        try:
            found = _object(value, "not_an_object") if value else None
        except Unconvertible:
            found = value
        if isinstance(found, Mapping) and key in found:
            return True
        if isinstance(found, list | str) and f'"{key}"' in str(found).replace("'", '"'):
            return True
    return False


def _reading(request: Any, row: Row) -> Reading:
    response = _response(row["response"])
    _must_have_worked(row, response)
    if not isinstance(request, Mapping) or not request.get("messages"):
        raise Unconvertible("not_a_chat", f"a request without messages: {str(request)[:200]}")
    message = _answer(response)
    given = {name: request.get(name) for name in ("tools", "functions", "system")}
    return openai({**given, "messages": [*messages_of(request["messages"]), message]})


def _response(value: Any) -> Any:
    """The response as an object or as a list of chunks; None where there is none."""
    if isinstance(value, str):
        text = value.strip()
        if text.startswith(("data:", "event:", ":")):
            return _events(text)
        value = loads(text, "response_not_json") if text else None
    if isinstance(value, list):
        return [_object(chunk, "response_not_json") for chunk in value]
    return _object(value, "response_not_json")


def _events(text: str) -> list[Any]:
    """The objects of server-sent events."""
    data = [line.removeprefix("data:").strip() for line in text.splitlines() if line.startswith("data:")]
    return [loads(piece, "response_not_json") for piece in data if piece and piece != "[DONE]"]


def _object(value: Any, reason: str) -> Any:
    """An object, given as one or as JSON text, out of the `body` that some gateways wrap it in."""
    if isinstance(value, str):
        value = loads(value, reason) if value.strip() else None
    if isinstance(value, Mapping):
        body = value.get("body")
        if body and not {"messages", "choices"} & value.keys():
            inner = _object(body, reason)
            if isinstance(inner, Mapping):
                return {"status_code": value.get("status_code"), **inner}
        return value
    if value is None:
        return None
    raise Unconvertible(reason, f"{type(value).__name__}: {str(value)[:200]}")


def _must_have_worked(row: Row, response: Any) -> None:
    parts = [response, *response] if isinstance(response, list) else [response]
    said = [row.get(name) for name in ("error", "error_str", "error_information")]
    said += [part.get("error") for part in parts if isinstance(part, Mapping)]
    for error in said:
        if error and error not in ("{}", "null", "None") and not _is_blank(error):
            raise Unconvertible("failed_request", str(error))
    states = [row.get("status"), row.get("status_code")]
    states += [part.get("status_code") for part in parts if isinstance(part, Mapping)]
    for state in states:
        text = str(state if state is not None else "").strip().lower()
        if text in _FAILED or (text.isdigit() and int(text) >= 400):
            raise Unconvertible("failed_request", f"status {state}")
    if not response:
        raise Unconvertible("no_response", "the response is empty")


def _is_blank(value: Any) -> bool:
    """An object without anything in it, as some gateways write for every request: {"error_code": "", ...}."""
    if isinstance(value, str) and value.startswith("{"):
        try:
            value = loads(value, "not_json")
        except Unconvertible:
            return False
    return isinstance(value, Mapping) and not any(value.values())


def _answer(response: Any) -> Mapping[str, Any]:
    """The assistant's message of a completion or of its chunks."""
    chunks = response if isinstance(response, list) else [response]
    choices = [choice for chunk in chunks if isinstance(chunk, Mapping) for choice in _choices(chunk)]
    if not choices:
        raise Unconvertible("no_answer", f"no choices in {str(response)[:200]}")
    first = min(choice.get("index") or 0 for choice in choices)
    choices = [choice for choice in choices if (choice.get("index") or 0) == first]
    message = next((c["message"] for c in choices if isinstance(c.get("message"), Mapping)), None)
    streamed = message is None
    if message is None:
        message = _put_together(choice.get("delta") for choice in choices)
    finished = next((c["finish_reason"] for c in reversed(choices) if c.get("finish_reason")), None)
    if finished in ("length", "max_tokens") or (streamed and finished is None):
        raise Unconvertible("cut_off", f"finish_reason {finished}")
    if finished == "content_filter" or message.get("refusal"):
        raise Unconvertible("refused", str(message.get("refusal") or finished))
    if finished in _FAILED:
        raise Unconvertible("failed_request", f"finish_reason {finished}")
    if not (message.get("content") or message.get("tool_calls") or message.get("function_call")):
        raise Unconvertible("no_answer", f"neither text nor calls in {str(dict(message))[:200]}")
    return {**message, "role": "assistant"}


def _choices(chunk: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = chunk.get("choices")
    found = loads(found, "response_not_json") if isinstance(found, str) else found
    return [choice for choice in found or [] if isinstance(choice, Mapping)]


def _put_together(deltas: Iterable[Any]) -> dict[str, Any]:
    """One message of the deltas of a streamed one."""
    message: dict[str, Any] = {}
    calls: dict[int, dict[str, str]] = {}
    for delta in deltas:
        if not isinstance(delta, Mapping):
            continue
        for name in ("content", "reasoning_content", "reasoning", "refusal"):
            if delta.get(name):
                message[name] = message.get(name, "") + delta[name]
        pieces = [(call.get("index") or 0, call.get("function")) for call in delta.get("tool_calls") or []]
        if delta.get("function_call"):
            pieces.append((0, delta["function_call"]))
        for index, function in pieces:
            call = calls.setdefault(index, {"name": "", "arguments": ""})
            for name in call:
                call[name] += (function or {}).get(name) or ""
    if calls:
        message["tool_calls"] = [{"type": "function", "function": calls[index]} for index in sorted(calls)]
    return message
