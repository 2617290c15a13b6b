from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.quality import NIGHT_RULES, Measure, Profile, applied, compared, draw_drift, profile_of
from tasks.quality.drift import _chi_squared, _psi
from tasks.quality.profile import bins, edge
from tasks.recipe import Drift, Quality, RuleSetting

BOUNDS = Drift()
LOOKING = Quality(languages=("en", "de"))
COLUMNS = ("messages", "id")


def rows(
    draw: np.random.Generator, n: int, longer: float = 1.0, system: float = 0.2, german: float = 0.1
) -> pl.DataFrame:
    """Rows as a source has them: log-normal lengths, some turns, some with a system prompt, in two languages."""
    characters = (draw.lognormal(6.5, 0.8, n) * longer).astype(np.int64) + 1
    return pl.DataFrame(
        {
            "_characters": characters,
            "tokens": characters // 4 + draw.integers(1, 9, n),
            "turns": 2 * draw.geometric(0.6, n),
            "_roles": np.where(draw.random(n) < system, "SUA", "UA"),
            "_shows": np.where(draw.random(n) < 0.3, "tool", "chat"),
            "_language": np.where(draw.random(n) < german, "de", "en"),
        }
    )


def seen(frame: pl.DataFrame, columns: tuple[str, ...] = COLUMNS, tokenizer: str = "t") -> Profile:
    return profile_of(frame, columns, tokenizer)


def broken(before: Profile, now: Profile, bounds: Drift = BOUNDS, quality: Quality = LOOKING) -> dict[str, str]:
    measures = compared(before, now, bounds, applied(quality, NIGHT_RULES))
    return {measure.rule: measure.severity for measure in measures if not measure.holds}


@pytest.fixture
def draw() -> np.random.Generator:
    return np.random.default_rng(7)


@pytest.mark.parametrize("n", [50, 500, 5_000])
def test_nights_of_the_same_rows_at_large_raise_an_alarm_once_in_a_hundred_at_most(
    n: int, draw: np.random.Generator, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = 200
    alarms = [broken(seen(rows(draw, n)), seen(rows(draw, n))) for _ in range(pairs)]
    false = sum(map(bool, alarms))
    with capsys.disabled():
        print(f"\n{n:6,} rows a night: {false} of {pairs} pairs raised a false alarm", end=" ")
    assert false <= pairs // 100, Counter(rule for alarm in alarms for rule in alarm)


@pytest.mark.parametrize(
    ("moved", "rule"),
    [
        ({"longer": 1.6}, "characters_moved"),
        ({"longer": 0.6}, "tokens_moved"),
        ({"system": 0.6}, "roles_moved"),
        ({"german": 0.5}, "languages_moved"),
    ],
)
@pytest.mark.parametrize("n", [500, 5_000])
def test_what_moved_is_found(n: int, moved: dict[str, float], rule: str, draw: np.random.Generator) -> None:
    found = [broken(seen(rows(draw, n)), seen(rows(draw, n, **moved))) for _ in range(20)]
    assert sum(rule in alarm for alarm in found) >= 19


def test_a_tenth_of_the_rows_far_longer_is_found(draw: np.random.Generator) -> None:
    mixed = pl.concat([rows(draw, 4_000), rows(draw, 1_200, longer=40)])
    assert "characters_moved" in broken(seen(rows(draw, 5_000)), seen(mixed))


@pytest.mark.parametrize(("now", "alarm"), [(1_000, False), (501, False), (499, True), (5_000, False)])
def test_half_of_the_rows_may_go(now: int, alarm: bool, draw: np.random.Generator) -> None:
    frame = rows(draw, 5_000)
    found = broken(seen(frame.head(1_000)), seen(frame.head(now)))
    assert found == ({"rows_moved": "critical"} if alarm else {})
    most = Drift(more_rows=1.0)
    assert ("rows_moved" in broken(seen(frame.head(1_000)), seen(frame.head(now)), most)) == (alarm or now > 2_000)


def test_columns_come_and_go(draw: np.random.Generator) -> None:
    frame = rows(draw, 100)
    now = seen(frame, ("messages", "deleted"))
    assert broken(seen(frame), now) == {"column_vanished": "warning", "column_new": "warning"}
    (gone, new) = (m for m in compared(seen(frame), now, BOUNDS, NIGHT_RULES) if m.rule.startswith("column"))
    assert gone.now == "messages, deleted (id)"
    assert new.now == "messages, deleted (deleted)"


@pytest.mark.parametrize(("tools", "alarm"), [(30, True), (1, False)])
def test_a_kind_that_chance_does_not_leave_out_has_vanished(tools: int, alarm: bool) -> None:
    def source(tool: int) -> Profile:
        frame = rows(np.random.default_rng(1), 1_000)
        shows = pl.Series(["tool"] * tool + ["chat"] * (frame.height - tool))
        return seen(frame.with_columns(_shows=shows))

    assert broken(source(tools), source(0)) == ({"kind_vanished": "critical"} if alarm else {})


def test_the_recipe_says_how_bad_it_is_and_what_is_not_looked_at(draw: np.random.Generator) -> None:
    one, other = seen(rows(draw, 500)), seen(rows(draw, 100, longer=3))
    assert broken(one, other)["rows_moved"] == "critical"
    milder = Quality(
        ignore=("tokens_moved",),
        rules={"rows_moved": RuleSetting(severity="warning"), "characters_moved": RuleSetting(severity="critical")},
    )
    assert broken(one, other, quality=milder) == {"rows_moved": "warning", "characters_moved": "critical"}


def test_tokens_of_another_tokenizer_are_not_compared(draw: np.random.Generator) -> None:
    one, other = seen(rows(draw, 500)), seen(rows(draw, 500, longer=3), tokenizer="another")
    assert set(broken(one, other)) == {"characters_moved"}


def test_an_empty_night_is_fewer_rows_and_nothing_else(draw: np.random.Generator) -> None:
    empty = seen(rows(draw, 0))
    assert set(broken(seen(rows(draw, 100)), empty)) == {"rows_moved"}
    assert broken(empty, seen(rows(draw, 100))) == {}
    assert broken(empty, empty) == {}


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**31), min_size=1, max_size=50))
def test_every_length_lies_in_its_bin(lengths: list[int]) -> None:
    found = pl.DataFrame({"length": lengths}).select(bin=bins(pl.col("length")))["bin"]
    for length, bin in zip(lengths, found, strict=True):
        assert edge(bin) * (1 - 1e-6) <= length < edge(bin + 1) * (1 + 1e-6)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 500)), min_size=2, max_size=12))
def test_the_index_is_what_it_is_defined_as(counts: list[tuple[int, int]]) -> None:
    before, now = [one for one, _ in counts], [other for _, other in counts]
    if not (sum(before) and sum(now)):
        return
    p = (np.array(before) + 0.5) / (sum(before) + len(counts) / 2)
    q = (np.array(now) + 0.5) / (sum(now) + len(counts) / 2)
    from scipy import stats

    value, bound = _psi(before, now, BOUNDS)
    assert value == pytest.approx(stats.entropy(p, q) + stats.entropy(q, p), abs=1e-9)
    assert value == pytest.approx(_psi(now, before, BOUNDS)[0])
    assert bound >= BOUNDS.psi


@pytest.mark.parametrize("freedom", range(1, 12))
def test_quantiles_of_chi_squared(freedom: int) -> None:
    from scipy import stats

    for quantile in (0.9, 0.99, 0.999):
        assert _chi_squared(freedom, quantile) == pytest.approx(stats.chi2.ppf(quantile, freedom), rel=0.04)


def test_the_picture_is_drawn_whatever_there_is(tmp_path: Path, draw: np.random.Generator) -> None:
    def drawn(folder: Path, before: Profile, now: Profile) -> str:
        folder.mkdir()
        draw_drift("talk", before, now, compared(before, now, BOUNDS, NIGHT_RULES), folder)
        assert (folder / "drift.png").read_bytes().startswith(b"\x89PNG")
        return (folder / "drift.svg").read_text()

    one, other = seen(rows(draw, 500)), seen(rows(draw, 200, longer=3))
    text = drawn(tmp_path / "moved", one, other)
    assert "characters_moved" in text
    assert text == drawn(tmp_path / "again", one, other)
    assert "nothing is out of bounds" in drawn(tmp_path / "empty", seen(rows(draw, 0)), one)


def test_a_measure_speaks_of_its_bounds() -> None:
    given: dict[str, Any] = {"rule": "rows_moved", "statistic": "rows", "severity": "critical"}
    measure = Measure(**given, before="10,000", now="4,000", value=0.4, low=0.5)
    assert measure.told() == "rows now per row then 0.4 (at least 0.5); then 10,000, now 4,000"
