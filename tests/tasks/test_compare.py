"""Nights one after another: what is compared with what, and what a damaged record, a kill or a second night does."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from tasks.compare import compare, remember
from tasks.conversations import Conversations
from tasks.quality import Change, Passed, profile_of
from tasks.recipe import Recipe, parse
from tasks.store import Store

ROOT = Path(__file__).resolve().parents[2]


def recipe(**quality: Any) -> Recipe:
    return parse(
        {
            "name": "try",
            "base": {"uri": "file://nowhere"},
            "sources": [{"name": "talk", "uri": "file://rows.jsonl", "kind": "chat", "share": 1.0}],
            "quality": quality,
            "evaluation": {"suites": [{"name": "held_out_loss", "kind": "chat", "role": "target"}]},
        }
    )


def gated(
    store: Store, n: int, *, seed: int = 0, longer: float = 1.0, columns: tuple[str, ...] = ("messages",),
    source: str = "talk", shows: str = "chat",
) -> Conversations:  # fmt: skip
    """A source after the gate, as far as comparing it asks: its manifest and its profile."""
    draw = np.random.default_rng(seed)
    characters = (draw.lognormal(6, 0.8, n) * longer).astype(np.int64) + 1
    kept = pl.DataFrame({"_characters": characters, "tokens": characters // 4, "turns": [2] * n}).with_columns(
        _roles=pl.lit("UA"), _shows=pl.lit(shows), _language=pl.lit(None, pl.String)
    )

    def build(work: Path) -> dict[str, Any]:
        (work / "profile.json").write_text(profile_of(kept, columns, "t").model_dump_json())
        counts = {"rows_in": n, "rows_out": n, "set_aside": {}, "tokens": 1, "supervised_tokens": 1}
        said = {"source": source, "snapshot": "0" * 64, "row_kind": "chat", "format": "openai", "passed": True}
        said |= {"answers": n, "trained_answers": n}
        return {**said, **counts, "findings": ()}

    inputs = {"n": n, "seed": seed, "longer": longer, "columns": columns, "source": source, "shows": shows}
    return store.make(Conversations, inputs, build)[0]


def night(store: Store, source: Conversations, asked: Recipe | None = None) -> Change:
    """A night: compared, and remembered where it passes."""
    asked = asked or recipe()
    change = compare(asked, source, store)
    if change.passed:
        remember(asked, [source], [change], store)
    return change


def rules(change: Change) -> list[str]:
    return [finding.rule for finding in change.findings]


def test_the_first_night_has_nothing_to_compare_with(store: Store) -> None:
    first = night(store, gated(store, 300))
    assert (first.before, first.measures, first.passed) == (None, (), True)


def test_nothing_moved_says_what_was_said_then(store: Store) -> None:
    one, other = gated(store, 300), gated(store, 300, seed=1, longer=4)
    night(store, one)
    moved = night(store, other)
    assert rules(moved) == ["characters_moved", "tokens_moved"]
    assert night(store, other) == moved
    assert len(store.all(Change)) == 2


def test_nights_of_the_same_sort_are_silent_and_have_pages_and_a_picture(store: Store) -> None:
    night(store, gated(store, 400))
    for seed in range(1, 4):
        change = night(store, gated(store, 400, seed=seed))
        assert change.before is not None
        assert rules(change) == []
    folder = store.folder(change)
    page = (folder / "docs" / "index.html").read_text()
    assert "rows_moved (critical): rows now per row then 1 (at least 0.5); then 400, now 400." in page
    assert "<svg" in page
    assert (folder / "drift.png").stat().st_size > 20_000


def test_half_of_the_rows_stop_the_night_until_a_person_lets_it_pass(store: Store) -> None:
    night(store, gated(store, 400))
    halved = gated(store, 150, seed=1)
    for _ in range(2):
        refused = night(store, halved)
        assert rules(refused) == ["rows_moved"]
        assert not refused.passed
        assert "then 400, now 150" in str(refused.findings[0].example)
    # The last night that passed is still the one before.
    assert night(store, gated(store, 380, seed=2)).passed
    let = recipe(rules={"rows_moved": {"severity": "warning"}})
    assert night(store, halved, let).passed
    assert rules(night(store, gated(store, 150, seed=3))) == []


def test_a_column_and_a_kind_that_come_and_go(store: Store) -> None:
    night(store, gated(store, 400, shows="tool"))
    change = night(store, gated(store, 400, seed=1, columns=("messages", "deleted")))
    assert rules(change) == ["column_new", "kind_vanished"]
    assert {finding.rule: finding.stops for finding in change.findings} == {"column_new": False, "kind_vanished": True}


def test_another_recipe_has_nights_of_its_own(store: Store) -> None:
    night(store, gated(store, 400))
    other = recipe().model_copy(update={"name": "other"})
    assert compare(other, gated(store, 10), store).before is None


@pytest.mark.parametrize("damage", ["pointer", "bytes", "empty", "record", "profile", "no profile", "conversations"])
def test_a_damaged_record_is_nothing_to_compare_with(
    damage: str, store: Store, caplog: pytest.LogCaptureFixture
) -> None:
    first = gated(store, 400)
    night(store, first)
    (pointer,) = (store.root / "latest").iterdir()
    record = store.root / "passed" / pointer.read_text() / "manifest.json"
    profile = store.folder(first) / "profile.json"
    if damage == "pointer":
        pointer.write_text("../../nowhere")
    elif damage == "bytes":
        pointer.write_bytes(b"\xff\x00\xfe")
    elif damage == "empty":
        pointer.write_text("")
    elif damage == "record":
        record.write_text(record.read_text()[:40])
    elif damage == "profile":
        profile.write_text(profile.read_text()[:40])
    elif damage == "no profile":
        profile.unlink()
    else:
        (store.folder(first) / "manifest.json").unlink()
    with caplog.at_level(logging.WARNING, logger="nightowl"):
        change = night(store, gated(store, 100, seed=1))
    assert change.before is None
    assert change.passed
    if damage in ("bytes", "record", "profile", "no profile"):
        assert "cannot be read" in caplog.text
    assert night(store, gated(store, 100, seed=2)).before is not None


WRITER = """
import sys, itertools
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_compare import compare, gated, recipe, remember, Store
store, seed = Store(Path(sys.argv[1])), int(sys.argv[2])
for n in itertools.count(300):
    pair = [gated(store, n, seed=seed, source=name) for name in ("one", "two")]
    remember(recipe(), pair, [compare(recipe(), source, Store(store.root / "none")) for source in pair], store)
    print(n, flush=True)
"""


def test_two_nights_at_once_and_a_kill_leave_one_whole_record(store: Store) -> None:
    code = WRITER.format(tests=str(Path(__file__).parent))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(store.root), str(seed)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, text=True,
        )
        for seed in (1, 2)
    ]  # fmt: skip
    try:
        for writer in writers:
            assert writer.stdout
            for _ in range(5):
                assert writer.stdout.readline(), writer.stderr and writer.stderr.read()
            (pointer,) = (store.root / "latest").glob("passed-*")
            passed = store.find(Passed, pointer.read_text())
            assert passed
            pair = [store.find(Conversations, address) for address in passed.conversations.values()]
            assert len({(source.inputs["n"], source.inputs["seed"]) for source in pair if source}) == 1
            assert len(pair) == 2
    finally:
        for writer in writers:
            writer.send_signal(signal.SIGKILL)
            writer.communicate()
    assert store.find(Passed, pointer.read_text())
