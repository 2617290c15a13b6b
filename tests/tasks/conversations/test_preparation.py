"""What a night takes over from the one before is what it would have made itself, in whatever order it comes."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.conversations import Renderer, prepare, read_conversations, write_rows
from tasks.errors import WorldFailed


class Rows:
    """Raw rows in batches, as a source gives them, which count how many were parsed."""

    def __init__(self, texts: list[str], size: int = 7) -> None:
        self.texts, self.size, self.parsed = texts, size, 0

    def batches(self) -> list[Batch]:
        return [Batch(self, at, self.texts[at : at + self.size]) for at in range(0, len(self.texts), self.size)]


class Batch:
    def __init__(self, rows: Rows, first: int, texts: list[str]) -> None:
        self.rows, self.first, self.texts = rows, first, texts
        digests = b"".join(hashlib.sha256(text.encode()).digest()[:16] for text in texts)
        self.keys = np.frombuffer(digests, "<u8").reshape(-1, 2)

    def __len__(self) -> int:
        return len(self.texts)

    def frame(self, places: np.ndarray | None = None) -> pl.DataFrame:
        at = np.arange(len(self.texts)) if places is None else places
        self.rows.parsed += 0 if len(at) == len(self.texts) and places is None else len(at)
        answers = [None if "bad" in self.texts[n] else f"Answer to {self.texts[n]}." for n in at]
        return pl.DataFrame(
            {
                "source_row": pl.Series(self.first + at, dtype=pl.Int64),
                "instruction": [self.texts[n] for n in at],
                "input": pl.Series([None] * len(at), dtype=pl.String),
                "output": pl.Series(answers, dtype=pl.String),
            }
        )


def judge(rows: pl.DataFrame, render: Callable[[pl.DataFrame], pl.DataFrame]) -> Any:
    return rows, render(rows), pl.DataFrame({"even": rows["source_row"] >= 0})


def night(renderer: Renderer, texts: list[str], folder: Path, earlier: Path | None = None) -> tuple[Rows, Any]:
    rows = Rows(texts)
    folder.mkdir()
    made = prepare(rows.batches, renderer, judge, folder, kind="chat", format="alpaca", earlier=earlier)
    kept = made.facts(folder)["reason"].is_null()
    write_rows(folder, made.index.with_columns(kept=kept), made.segments, source="s", revision="r", kind="chat")
    return rows, made


def everything(folder: Path) -> pl.DataFrame:
    return pl.concat(read_conversations(folder))


@pytest.mark.parametrize("change", ["appended", "inserted", "removed", "shuffled", "replaced"])
def test_only_new_rows_are_made_and_the_result_is_that_of_a_fresh_night(
    change: str, demo_renderer: Renderer, tmp_path: Path
) -> None:
    first = [f"question {n}" if n % 9 else f"bad {n}" for n in range(60)]
    new = [f"news {n}" for n in range(4)]
    second = {
        "appended": [*first, *new],
        "inserted": [*first[:10], *new, *first[10:]],
        "removed": first[::3],
        "shuffled": random.Random(0).sample(first, len(first)),
        "replaced": [*new, *first[4:]],
    }[change]
    night(demo_renderer, first, tmp_path / "first")
    rows, made = night(demo_renderer, second, tmp_path / "second", tmp_path / "first")
    _, fresh = night(demo_renderer, second, tmp_path / "fresh")
    assert made.encoding["rows_prepared"] == len(set(second) - set(first)) == rows.parsed
    assert made.encoding["rows_taken_over"] == len(second) - rows.parsed
    assert everything(tmp_path / "second").equals(everything(tmp_path / "fresh"))
    facts = made.facts(tmp_path / "second")
    assert facts.equals(fresh.facts(tmp_path / "fresh").select(facts.columns))
    assert facts.filter(pl.col("reason").is_not_null()).height == sum("bad" in text for text in second)


def test_a_tree_of_messages_is_whole_wherever_its_batches_end(demo_renderer: Renderer, tmp_path: Path) -> None:
    rows = pl.DataFrame(
        {
            "source_row": pl.Series(range(12), dtype=pl.Int64),
            "message_id": [f"m{n}" for n in range(12)],
            "parent_id": [None if n < 4 else f"m{n - 4}" for n in range(12)],
            "role": [("prompter", "assistant", "prompter")[n // 4] for n in range(12)],
            "text": [f"text {n}" for n in range(12)],
            "rank": pl.Series([0] * 12, dtype=pl.Int64),
        }
    )

    class Part:
        def __init__(self, first: int) -> None:
            self.first, self.keys = first, np.zeros((5, 2), np.uint64)

        def __len__(self) -> int:
            return rows.slice(self.first, 5).height

        def frame(self, places: np.ndarray | None = None) -> pl.DataFrame:
            part = rows.slice(self.first, 5)
            return part if places is None else part[places]

    made = prepare(
        lambda: [Part(first) for first in (0, 5, 10)],
        demo_renderer,
        judge,
        tmp_path,
        kind="chat",
        format="open_assistant",
    )
    reasons = made.facts(tmp_path)["reason"].value_counts()
    assert made.index["source_row"].to_list() == list(range(12))
    assert "without_parent" not in reasons["reason"].to_list()
    assert made.facts(tmp_path)["reason"].null_count() == 4


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(nights=st.lists(st.lists(st.sampled_from([f"row {n}" for n in range(30)]), max_size=40), min_size=2, max_size=4))
def test_whatever_the_nights_hold(
    nights: list[list[str]], demo_renderer: Renderer, tmp_path_factory: pytest.TempPathFactory
) -> None:
    home = tmp_path_factory.mktemp("nights")
    earlier = None
    for number, texts in enumerate(nights):
        night(demo_renderer, texts, home / str(number), earlier)
        earlier = home / str(number)
        read = everything(earlier) if texts else None
        assert [m[0]["content"] for m in read["messages"]] == texts if read is not None else not texts
        if read is not None:
            assert read["source_row"].to_list() == list(range(len(texts)))


def test_many_small_segments_become_one(
    demo_renderer: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.conversations.segments._MANY", 3)
    texts = [f"question {n}" for n in range(40)]
    _, made = night(demo_renderer, texts, tmp_path / "a")
    assert len(made.segments) == len(list((tmp_path / "a" / "segments").iterdir())) == 1
    assert [m[0]["content"] for m in everything(tmp_path / "a")["messages"]] == texts


def test_a_damaged_segment_is_made_anew_and_never_read(demo_renderer: Renderer, tmp_path: Path) -> None:
    texts = [f"question {n}" for n in range(20)]
    night(demo_renderer, texts, tmp_path / "a")
    file = sorted((tmp_path / "a" / "segments").iterdir())[0]
    file.write_bytes(file.read_bytes()[:-50] + bytes(50))
    rows, _ = night(demo_renderer, texts, tmp_path / "b", tmp_path / "a")
    assert 0 < rows.parsed <= 7
    assert [m[0]["content"] for m in everything(tmp_path / "b")["messages"]] == texts
    with pytest.raises(WorldFailed, match="is damaged"):
        everything(tmp_path / "a")


def test_a_row_that_the_fast_encoder_gets_wrong_puts_it_away(
    qwen3: Renderer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [f"question {n} of some length, with words" for n in range(1_200)]
    fresh = Renderer.open(qwen3.folder, qwen3.template.source)
    night(fresh, texts, tmp_path / "right")
    assert fresh.encoder.name.startswith("gigatoken")
    assert fresh.encoder.compared > 64

    wrong = Renderer.open(qwen3.folder, qwen3.template.source)
    slow = wrong.encoder._slow
    calls = iter(range(10**6))

    def differing(given: list[str]) -> Any:
        ids, lengths = slow(given)
        # The comparison of a later batch, made after the fast encoder was taken into use.
        late = wrong.encoder._fast is not None and len(given) > 0 and next(calls) == 6
        return (ids + 1, lengths) if late else (ids, lengths)

    monkeypatch.setattr(wrong.encoder, "_slow", differing)
    _, made = night(wrong, texts, tmp_path / "wrong")
    assert made.encoding["encoder"].startswith("tokenizers")
    assert made.encoding["differing"] == 1
    assert everything(tmp_path / "wrong").equals(everything(tmp_path / "right"))
