"""Benchmarks from a hub, by address and by name, with the real client against the loopback hub."""

from __future__ import annotations

import io
import json
from typing import Any

import polars as pl
import pytest

from tasks.errors import BadInput, NightowlError
from tasks.evaluation import published
from tasks.evaluation.benchmarks import benchmark_items

FIELD = "evaluation.suites.maths.data"


@pytest.fixture(autouse=True)
def afresh() -> None:
    published.fetched.cache_clear()


def parquet(rows: list[dict[str, Any]]) -> bytes:
    file = io.BytesIO()
    pl.DataFrame(rows).write_parquet(file)
    return file.getvalue()


def sums(*numbers: int) -> bytes:
    return parquet([{"question": f"What is {n} + 1?", "answer": f"#### {n + 1}"} for n in numbers])


def test_a_benchmark_by_name_is_pinned_and_kept(
    hub: Any, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    repository = hub.repository("dataset", "openai/gsm8k")
    others = {"README.md": b"# Sums", "main/train-00000-of-00001.parquet": sums(7, 8)}
    repository.commit({"main/test-00000-of-00001.parquet": sums(1, 2, 2), **others})
    items, aside = benchmark_items("gsm8k", FIELD)
    assert (items.height, aside) == (2, {"is there twice": 1})
    # It moved: this process stays with the commit that it began with; the next one follows.
    repository.commit({"main/test-00000-of-00001.parquet": sums(1, 2, 3), **others})
    assert benchmark_items("gsm8k", FIELD)[0].height == 2
    published.fetched.cache_clear()
    assert benchmark_items("gsm8k", FIELD)[0].height == 3
    # The hub is away: what the store has of it, and a word.
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    published.fetched.cache_clear()
    assert benchmark_items("hf://openai/gsm8k?subset=main&split=test", FIELD)[0].height == 3
    assert "Going on with commit" in caplog.text
    published.fetched.cache_clear()
    with pytest.raises(NightowlError):
        benchmark_items("mmlu", FIELD)


def test_choices_in_a_list(hub: Any) -> None:
    rows = [{"question": f"Q{n}?", "subject": "x", "choices": list("abcd"), "answer": n % 4} for n in range(6)]
    hub.repository("dataset", "cais/mmlu").commit({"all/test-00000-of-00001.parquet": parquet(rows)})
    items, aside = benchmark_items("mmlu", FIELD)
    assert [json.loads(text)["letter"] for text in items["reference"]] == list("ABCDAB")
    assert aside == {}


def test_what_is_not_there_is_an_error_and_no_download(hub: Any) -> None:
    for place in ("data/gsm8k.jsonl", "./gsm8k", "gsm8k.jsonl", "triviaqa", "/nowhere/mmlu"):
        with pytest.raises(BadInput, match=r"evaluation\.suites\.maths\.data.*is not there"):
            benchmark_items(place, FIELD)
    assert hub.requests == []
