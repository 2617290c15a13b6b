"""`mlflow://` on a real tracking database."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest

from tasks.conversations import convert, detect
from tasks.errors import BadInput
from tasks.fetch import fetch
from tasks.recipe import Source
from tasks.registry import client
from tasks.sources import read_batches
from tasks.store import Store


def source(uri: str = "mlflow://chat", **fields: Any) -> Source:
    return Source(name="own", uri=uri, kind="chat", share=1, **fields)


def trace(answer: str, **feedback: Any) -> str:
    """A trace of one chat completion, and what people (by name) said of it; its id."""
    import mlflow
    from mlflow.entities import AssessmentSource

    mlflow.set_experiment("chat")
    with mlflow.start_span(name="completion", span_type="CHAT_MODEL") as span:
        span.set_inputs({"model": "m", "messages": [{"role": "user", "content": "Hi"}]})
        message = {"role": "assistant", "content": answer}
        span.set_outputs({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    mlflow.flush_trace_async_logging()
    for who, value in feedback.items():
        person = AssessmentSource(source_type="LLM_JUDGE" if who == "judge" else "HUMAN", source_id=who)
        mlflow.log_feedback(trace_id=span.trace_id, name="thumbs", value=value, source=person)
    return str(span.trace_id)


def test_liked_traces_become_conversations_and_late_feedback_counts(tmp_path: Path) -> None:
    import mlflow
    from mlflow.entities import AssessmentSource

    client()
    store = Store(tmp_path / "store")
    trace("liked", ann=True)
    disputed = trace("disputed", ann=True, bob=False)
    unrated = trace("unrated")
    trace("judged", judge=True)
    trace("unclear", ann="maybe")
    first = fetch(source(), store)
    assert (first.rows, first.rows_in) == (1, 5)
    assert first.set_aside == {"disliked": 1, "no_feedback": 2, "unclear_feedback": 1}
    assert fetch(source(), store) == first
    raw = pl.concat(batch.frame() for batch in read_batches(store.folder(first), first))
    assert detect(raw) == "request_log"
    conversations, _ = convert(raw, source="s", revision="r", kind="chat")
    assert [m["content"] for m in conversations["messages"][0]] == ["Hi", "liked"]
    for trace_id, who in ((unrated, "ann"), (disputed, "bob")):
        person = AssessmentSource(source_type="HUMAN", source_id=who)
        mlflow.log_feedback(trace_id=trace_id, name="thumbs", value=True, source=person)
    assert fetch(source(), store).rows == 3


@pytest.mark.parametrize(
    ("uri", "message"),
    [("mlflow://chatt", "Did you mean 'chat'"), ("mlflow://chat?filter=nonsense", "a filter that MLflow refuses")],
)
def test_an_experiment_or_a_filter_that_is_wrong_is_bad_input(tmp_path: Path, uri: str, message: str) -> None:
    client()
    trace("liked", ann=True)
    with pytest.raises(BadInput, match=message):
        fetch(source(uri), Store(tmp_path / "store"))
