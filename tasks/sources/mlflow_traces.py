"""`mlflow://experiment`: traces of an application that people rated, as rows of a request log.

A trace is an example when a person gave it a thumbs-up and nobody a thumbs-down; what a judge or a script
says of it does not count. Feedback comes after its trace, days later maybe, so traces of the last week are
looked at again each night. The experiment is on MLFLOW_TRACKING_URI, by default in the home.

Traces are listed without their spans, and spans are asked for trace by trace where people liked it: a search with
spans returns traces grouped by where these lie, out of order, and leaves out those that have none (MLflow 3.17).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import orjson

from tasks.errors import WorldFailed
from tasks.sources.hub import Trouble, with_retries
from tasks.sources.permission import microseconds, moment, now
from tasks.sources.pin import BrokenOff, Unreachable
from tasks.sources.stream import Row, Wanted
from tasks.sources.uri import SourceUri, nearest

NOT_FINISHED = "not_finished"
FAILED = "failed_trace"
NO_FEEDBACK = "no_feedback"
DISLIKED = "disliked"
UNCLEAR = "unclear_feedback"
NOT_A_CHAT = "not_a_chat"
NO_SPANS = "no_spans"

_PAGE = 100
# What this source tries again itself, the client need not; both wait minutes for a server that is not there.
_CLIENT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}
_COLUMNS = ("trace_id", "timestamp", "request", "response", "tags")
_UP = ("true", "yes", "up", "thumbs_up", "thumbs-up", "thumbsup", "positive", "good", "like", "liked", "correct", "1")
_DOWN = (
    "false", "no", "down", "thumbs_down", "thumbs-down", "thumbsdown", "negative", "bad", "dislike", "disliked",
    "incorrect", "0", "-1",
)  # fmt: skip


class LikedTraces:
    """An experiment's traces as a stream, by their time and id; those that nobody likes are set aside.

    The URI's `filter` is one of MLflow's trace filters, `feedback` the name of the assessment that counts (all
    of people's, where it is not given).
    """

    unit = 1000  # milliseconds
    overlap = 7 * 86_400.0

    def __init__(self, uri: SourceUri, wanted: Wanted) -> None:
        self.uri = uri
        self.tracking = wanted.tracking_uri or ""
        wanted.permission.require(_COLUMNS, uri)
        self.client: Any = None
        self.experiment = ""
        self.set: list[str] = []

    def __enter__(self) -> LikedTraces:
        from mlflow.tracking import MlflowClient

        self.set = [name for name in _CLIENT if name not in os.environ]
        os.environ.update({name: _CLIENT[name] for name in self.set})
        try:
            self.client = MlflowClient(tracking_uri=self.tracking)
            self.experiment = with_retries(self, self._find)
        except BaseException:
            self.__exit__()
            raise
        return self

    def count(self, before: int) -> None:
        return None  # traces are counted by listing them

    def __exit__(self, *_: object) -> None:
        self.client = None
        for name in self.set:
            os.environ.pop(name, None)

    def _find(self) -> str:
        """The experiment's id."""
        found = self.client.get_experiment_by_name(self.uri.path)
        if found is None:
            names = [e.name for e in self.client.search_experiments(max_results=200)]
            way_out = f"{nearest(self.uri.path, names)}Its experiments: {', '.join(sorted(names)[:20])}."
            raise self.uri.bad(f"names no experiment on {self.tracking}", way_out)
        if not found.lifecycle_stage:
            raise ConnectionError("the answer ends before its content")  # which the client takes for an empty one
        if found.lifecycle_stage != "active":
            way_out = f"Restore it: mlflow experiments restore -x {found.experiment_id}."
            raise self.uri.bad(f"names a deleted experiment on {self.tracking}", way_out)
        return str(found.experiment_id)

    def now(self) -> int:
        return microseconds(now()) // 1000

    def rows(self, *, after: tuple[Any, ...] | None, since: int | None) -> Iterator[Row]:
        conditions = [self.uri.params["filter"]] if "filter" in self.uri.params else []
        if after is not None or since is not None:
            conditions.append(f"timestamp_ms >= {since if since is not None else after[0]}")  # type: ignore[index]
        token = None
        while True:
            with self._explained():
                page = self.client.search_traces(
                    locations=[self.experiment],
                    filter_string=" AND ".join(conditions) or None,
                    order_by=["timestamp_ms ASC", "request_id ASC"],
                    max_results=_PAGE,
                    page_token=token,
                    include_spans=False,
                )
            for trace in page:
                row = self._row(trace)
                if after is None or row.key > after:
                    yield row
            token = page.token
            if not token:
                return

    def row(self, line: bytes) -> Row:
        record = orjson.loads(line)
        key = (microseconds(datetime.fromisoformat(record["timestamp"])) // 1000, record["trace_id"])
        return Row(key[0], key, record, line)

    def _row(self, trace: Any) -> Row:
        info = trace.info
        key = (info.request_time, info.trace_id)
        aside = _aside(info, _verdict(info.assessments, self.uri.params.get("feedback")))
        if not aside:
            spans = self._spans(info.trace_id)
            request, response = _exchange(spans or [])
            aside = NO_SPANS if spans is None else NOT_A_CHAT if request is None else None
        if aside:
            return Row(info.request_time, key, {}, b"", aside)
        record = {
            "trace_id": info.trace_id,
            "timestamp": moment(info.request_time * 1000).isoformat(timespec="milliseconds"),
            "request": request,
            "response": response,
            "tags": {name: value for name, value in info.tags.items() if not name.startswith("mlflow.")},
        }
        return Row(info.request_time, key, record, orjson.dumps(record, default=str))

    def _spans(self, trace_id: str) -> list[Any] | None:
        """A trace's spans in the order of their start; None where they have been lost."""
        from mlflow.exceptions import MlflowException

        with self._explained():
            try:
                trace = self.client.get_trace(trace_id, display=False)
            except MlflowException as error:
                if error.error_code in ("NOT_FOUND", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"):
                    return None
                raise
        return sorted(trace.data.spans, key=lambda span: span.start_time_ns)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            trouble = self.explain(error)
            if trouble is None:
                raise
            if trouble.again:
                problem = f"{self.tracking} broke off ({_said(error)})"
                place = f"{self.uri.field}: {self.uri.text}"
                raise BrokenOff(place, problem, "Run again; what was read is kept.") from error
            raise trouble.error from error

    def explain(self, error: Exception) -> Trouble | None:
        """What an exception of the client means, for `with_retries`."""
        import requests
        import sqlalchemy.exc
        from mlflow.exceptions import MlflowException

        place, said = f"{self.uri.field}: {self.uri.text}", _said(error)
        gone = (requests.RequestException, sqlalchemy.exc.SQLAlchemyError, OSError)
        if isinstance(error, gone) or (
            isinstance(error, MlflowException)
            and (isinstance(error.__cause__, requests.RequestException) or "API request to" in said)
            and not _STATUS.search(said)
        ):
            way_out = "Check MLFLOW_TRACKING_URI and that it runs; what was read before can be used offline."
            return Trouble(Unreachable(place, f"{self.tracking} cannot be reached ({said})", way_out), again=True)
        if not isinstance(error, MlflowException):
            return None
        status = int(found[1]) if (found := _STATUS.search(said)) else error.get_http_status_code()
        if status in (401, 403):
            way_out = "Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
            return Trouble(WorldFailed(place, f"{self.tracking} refuses to be read ({said})", way_out), again=False)
        if error.error_code in ("INVALID_PARAMETER_VALUE", "BAD_REQUEST"):
            return Trouble(self.uri.bad(f"has a filter that MLflow refuses ({said})", "Correct ?filter=."), again=False)
        problem = f"{self.tracking} failed ({said})"
        return Trouble(WorldFailed(place, problem, "Run again later; see its log."), status >= 500 or status == 429)


# How the client tells of an answer that is none of MLflow's own.
_STATUS = re.compile(r"(?:failed with error code|too many) (\d{3})\b")


def _said(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _exchange(spans: list[Any]) -> tuple[Any, Any]:
    """Request and response of a trace's spans: the root's, where it is a chat completion, else its last call's.

    The last call of an agent's trace holds the conversation up to the answer that people rated.
    """
    root = next((span for span in spans if span.parent_id is None), None)
    for span in [root, *reversed(spans)]:
        if span is not None and _has(span.inputs, "messages") and _has(span.outputs, "choices"):
            return span.inputs, span.outputs
    if root is not None and _has(root.inputs, "messages"):
        # An application of one's own may hand out the answer alone.
        answer = root.outputs if isinstance(root.outputs, dict) else {"content": root.outputs}
        if isinstance(answer.get("content"), str):
            message = {**answer, "role": "assistant"}
            return root.inputs, {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]}
    return None, None


def _has(value: Any, key: str) -> bool:
    return isinstance(value, dict) and bool(value.get(key))


def _verdict(assessments: list[Any], name: str | None) -> list[str]:
    """What each person said last, as up, down or unclear."""
    said: dict[tuple[str, str | None], str] = {}
    for given in sorted(assessments or [], key=lambda a: a.last_update_time_ms or a.create_time_ms or 0):
        if given.feedback is None or given.valid is False or given.error is not None:
            continue
        if given.source.source_type != "HUMAN" or (name and given.name != name):
            continue
        value = given.feedback.value
        text = str(int(value) if isinstance(value, float) and value.is_integer() else value).strip().lower()
        said[given.name, given.source.source_id] = "up" if text in _UP else "down" if text in _DOWN else "unclear"
    return list(said.values())


def _aside(info: Any, verdict: list[str]) -> str | None:
    state = info.state.value if hasattr(info.state, "value") else str(info.state)
    if state == "IN_PROGRESS":
        return NOT_FINISHED
    if state == "ERROR":
        return FAILED
    if "down" in verdict:
        return DISLIKED
    if "up" not in verdict:
        return UNCLEAR if verdict else NO_FEEDBACK
    return None
