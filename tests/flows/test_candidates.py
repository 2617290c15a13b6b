"""`nightowl candidates`: the table, the plot, and what it says where it cannot draw."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from flows.cli_registry import _draw
from flows.tables import candidates_table, champion_table
from tasks.errors import BadInput
from tasks.recipe import Recipe, load
from tasks.registry import Candidate, NightRecord
from tasks.search import Tried

RANK = "training.rank"


@pytest.fixture
def recipe() -> Recipe:
    return load("demo", [f"search.vary=[{{field: {RANK}, low: 4, high: 64, log: true}}]"])[0]


@pytest.fixture
def judged() -> Callable[..., Candidate]:
    def make(version: int, rank: object, verdict: str = "promote", **how: Any) -> Candidate:
        score = 0.3 + version / 10
        return Candidate.model_validate(
            {
                "version": version,
                "adapter": "a",
                "base": "b",
                "aliases": (),
                "verdict": verdict,
                "reasons": (),
                "scores": {"tool_call": score, "final_answer": score, "chat_format": 0.125},
                "intervals": {"tool_call": (score - 0.1, score + 0.1)},
                "run_id": "r",
                "made_at": "",
                "night": "n",
                "name": f"candidate-{version}",
                "values": {RANK: rank} if rank is not None else {},
                "broken": (),
                **how,
            }
        )

    return make


def test_the_table_tells_of_versions_and_of_what_failed(judged: Callable[..., Candidate]) -> None:
    night = NightRecord(
        run_id="n",
        recipe="demo",
        started="2026-11-24T22:09:00",
        seconds=1,
        status="FINISHED",
        outcome=None,
        reason=None,
        verdicts={},
    )
    failed = Tried(
        study="demo/1", trial=2, state="failed", values={RANK: 64, "training.learning_rate": 0.00123456}, settings={},
        night="n", nights=1, candidate="candidate-3", at="", reason="training: out of memory\nand more",
    )  # fmt: skip
    found = [judged(2, 32, "keep", broken=("chat_format",)), judged(1, 16, aliases=("champion",))]
    out = io.StringIO()
    console = Console(file=out, width=200)
    console.print(candidates_table(found, [failed], [night], ["tool_call", "final_answer"]))
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in out.getvalue().splitlines() if "│" in line]
    started = "2026-11-24 22:09"
    assert lines == [
        [started, f"{RANK} 32", "tool_call 0.5", "keep"],
        ["candidate-2", "", "final_answer 0.5", "version 2"],
        ["", "", "guards chat_format", ""],
        [started, f"{RANK} 16", "tool_call 0.4", "promote"],
        ["candidate-1", "", "final_answer 0.4", "version 1 champion"],
        ["", "", "guards ok", ""],
        [started, f"{RANK} 64", "", "failed"],
        ["candidate-3", "training.learning_rate 0.001235", "", "training: out of memory"],
    ]


@pytest.mark.parametrize(("name", "head"), [("plot.png", b"\x89PNG"), ("plot.SVG", b"<?xml")])
def test_the_plot_has_a_panel_a_target_and_an_interval_a_candidate(
    name: str, head: bytes, recipe: Recipe, judged: Callable[..., Candidate], tmp_path: Path
) -> None:
    _draw(recipe, [judged(2, 32, "keep"), judged(1, 16), judged(3, None)], tmp_path / name, None)
    assert (tmp_path / name).read_bytes().startswith(head)


def test_what_is_no_number_is_drawn_by_name(
    recipe: Recipe, judged: Callable[..., Candidate], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    ticks: list[Any] = []
    drawn = Axes.set_xticks
    monkeypatch.setattr(Axes, "set_xticks", lambda axis, *told: (ticks.append(told), drawn(axis, *told)))
    _draw(recipe, [judged(1, "linear"), judged(2, "cosine")], tmp_path / "plot.svg", RANK)
    assert [names for _, names in ticks] == [["cosine", "linear"]] * 2


@pytest.mark.parametrize(
    ("file", "field", "says"),
    [
        ("plot.pdf", None, r"--plot: .*plot\.pdf' is neither a \.png nor a \.svg file"),
        ("plot.png", "training.epochs", r"--against: 'training\.epochs' varied in no candidate .*did: training\.rank"),
        ("nowhere/plot.png", None, r"--plot: .* cannot be written \(No such file or directory\)"),
    ],
)
def test_what_cannot_be_drawn_says_why(
    file: str, field: str | None, says: str, recipe: Recipe, judged: Callable[..., Candidate], tmp_path: Path
) -> None:
    with pytest.raises(BadInput, match=says):
        _draw(recipe, [judged(1, 16)], tmp_path / file, field)


def test_the_champion_is_shown_for_a_person(judged: Callable[..., Candidate]) -> None:
    champion = judged(3, 8, aliases=("champion",), reasons=("it is better",))
    lineage = {"shares": '{"chat": [0.25, 0.2512]}', "sources": "chat hf://org/name@c0ffee", "code": "0.1.0"}
    said = io.StringIO()
    Console(file=said, width=120).print(champion_table("nightowl-demo", champion, lineage))
    shown = ("version 3, champion", "tool_call 0.6 (0.5 to 0.7)", "chat_format 0.125 ", f"{RANK} 8", "it is better")
    for part in shown:
        assert part in said.getvalue()
    assert "chat 25.1% (asked 25.0%)" in said.getvalue()
    assert "hf://org/name@c0ffee" in said.getvalue()
    assert "flow run" not in said.getvalue()  # nothing is known of one
