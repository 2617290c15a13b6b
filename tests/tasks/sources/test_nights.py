"""A team's own streams through the command line, night after night, as a person would try them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml
from typer.testing import CliRunner

from flows.cli import app
from tasks.sources.postgresql import Query
from tasks.sources.s3 import Bucket


@pytest.fixture
def base(byte_model: Path) -> str:
    """The URI of a base model as far as data needs one."""
    return f"file://{byte_model}"


def nightowl(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0, (done.output, done.exception)
    told: dict[str, Any] = json.loads(done.stdout)
    return told


def question(number: int, of: str) -> tuple[str, str]:
    words = ["river", "copper", "lantern", "meadow", "violin", "harbour", "walnut", "glacier", "pepper", "saddle"]
    named = " ".join(words[int(digit)] for digit in str(number * 7919))
    return f"What does the {of} say about {named}?", f"The {of} number {number} tells of {named}, and of nothing else."


def objects(first: int, last: int) -> bytes:
    pairs = [question(number, "bucket") for number in range(first, last)]
    return "".join(json.dumps({"prompt": a, "completion": b}) + "\n" for a, b in pairs).encode()


def insert(database: Any, first: int, last: int) -> None:
    for number in range(first, last):
        prompt, completion = question(number, "table")
        database("INSERT INTO log VALUES (%s, now(), %s, %s)", (number, prompt, completion))


@pytest.fixture
def table(database: Any) -> Any:
    database("CREATE TABLE log (id bigint PRIMARY KEY, at timestamptz, prompt text, completion text)")
    insert(database, 0, 60)
    return database


def test_check_reads_each_kind_of_stream(base: str, bucket: Any, table: Any) -> None:
    import mlflow
    from mlflow.entities import AssessmentSource

    from tasks.registry import client

    bucket.put("logs/date=2026-11-23/a.jsonl", objects(0, 40))
    (seen,) = nightowl("check", "s3://logs/logs", "--model", base)["sources"]
    assert (seen["rows_in"], seen["rows_out"], seen["passed"]) == (40, 40, True)
    query = ["--query", "SELECT * FROM log", "--cursor", "id"]
    (seen,) = nightowl("check", table.uri, *query, "--model", base)["sources"]
    assert (seen["rows_in"], seen["rows_out"], seen["passed"]) == (60, 60, True)

    client()
    mlflow.set_experiment("chat")
    for number in range(3):
        prompt, completion = question(number, "trace")
        with mlflow.start_span(name="completion", span_type="CHAT_MODEL") as span:
            span.set_inputs({"model": "m", "messages": [{"role": "user", "content": prompt}]})
            message = {"role": "assistant", "content": completion}
            span.set_outputs({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
        mlflow.flush_trace_async_logging()
        person = AssessmentSource(source_type="HUMAN", source_id="ann")
        mlflow.log_feedback(trace_id=span.trace_id, name="thumbs", value=number != 1, source=person)
    (seen,) = nightowl("check", "mlflow://chat", "--model", base)["sources"]
    assert (seen["rows_in"], seen["rows_out"], seen["passed"]) == (2, 2, True)


def test_a_second_night_reads_only_what_is_new_and_its_splits_hold_both_nights(
    base: str, bucket: Any, table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = {
        "name": "streams",
        "base": {"uri": base, "max_length": 2000},
        "sources": [
            {"name": "logs", "uri": "s3://logs/logs", "kind": "chat", "share": 0.5},
            {
                "name": "table",
                "uri": table.uri,
                "query": "SELECT * FROM log",
                "cursor": ["at", "id"],
                "overlap": 0,
                "kind": "chat",
                "share": 0.5,
            },
        ],
        "mixture": {"near_duplicates": None, "contamination_ngram": None},
        "evaluation": {"suites": [{"name": "held_out_loss", "kind": "chat", "role": "target"}]},
    }
    (tmp_path / "streams.yaml").write_text(yaml.safe_dump(recipe))
    transferred: list[str] = []
    read: list[int] = []
    get, row = Bucket.get, Query.row
    monkeypatch.setattr(Bucket, "get", lambda *of: (transferred.append(of[2].name), get(*of)))
    monkeypatch.setattr(Query, "row", lambda *of: (found := row(*of), read.append(found.record["id"]))[0])

    def night() -> tuple[dict[str, Any], str]:
        """What `nightowl mix` says, and the text of all conversations in its splits."""
        transferred.clear()
        read.clear()
        told = nightowl("mix", str(tmp_path / "streams.yaml"))
        splits = [pl.read_parquet(file) for file in Path(told["folder"]).rglob("*.parquet")]
        return told, str([frame["messages"].to_list() for frame in splits if "messages" in frame.columns])

    def rows(mixture: dict[str, Any]) -> int:
        return sum(split["rows"] for split in mixture["splits"].values()) + sum(mixture["set_aside"].values())

    bucket.put("logs/date=2026-11-23/a.jsonl", objects(0, 60))
    first, _ = night()
    assert (transferred, read) == (["date=2026-11-23/a.jsonl"], list(range(60)))
    assert rows(first) == 120

    again, _ = night()
    assert again["address"] == first["address"]
    assert (transferred, read) == ([], [])

    bucket.put("logs/date=2026-11-24/b.jsonl", objects(60, 80))
    insert(table, 60, 80)
    second, held = night()
    assert (transferred, read) == (["date=2026-11-24/b.jsonl"], list(range(60, 80)))
    assert rows(second) == 160
    assert set(second["set_aside"]) <= {"above share"}
    for of in ("bucket", "table"):
        for of_a_night in (range(60), range(60, 80)):
            present = [number for number in of_a_night if question(number, of)[1] in held]
            assert len(present) > 0.8 * len(of_a_night)
