from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from tasks.conversations import row_ids

Frame = Callable[..., pl.DataFrame]
Message = Callable[..., dict[str, Any]]


def test_the_id_depends_on_messages_tools_and_kind_alone(frame: Frame, message: Message, weather: str) -> None:
    talk = [message("user", "Hi"), message("assistant", "Hello")]
    same = frame([(talk, None), (talk, None)])
    assert same["row_id"].n_unique() == 1
    assert same["row_id"].str.contains("^[0-9a-f]{32}$").all()
    elsewhere = same.with_columns(pl.lit("other").alias("source"), pl.lit("2").alias("revision"), source_row=pl.lit(9))
    assert row_ids(elsewhere)["row_id"].equals(same["row_id"])
    others = [
        frame([(talk, weather)]),
        frame([(talk, None)], kind="tool"),
        frame([([talk[0], message("assistant", "Hello ")], None)]),
        frame([([talk[0], message("assistant", "Hello", "hm")], None)]),
        frame([([talk[0], message("assistant", "Hello", None, [("f", "{}")])], None)]),
        frame([([message("system", "Hi"), talk[1]], None)]),
    ]
    assert pl.concat([same.head(1), *others])["row_id"].n_unique() == len(others) + 1


def test_no_calls_and_an_empty_list_of_calls_are_the_same(frame: Frame, message: Message) -> None:
    empty = {**message("assistant", "Hello"), "tool_calls": []}
    rows = frame(
        [([message("user", "Hi"), message("assistant", "Hello")], None), ([message("user", "Hi"), empty], None)]
    )
    assert rows["row_id"].n_unique() == 1


def test_the_id_stays_the_same_over_time(frame: Frame, message: Message, weather: str) -> None:
    rows = frame([([message("user", "Hé"), message("assistant", "", "hm", [("f", '{"a":1}')])], weather)], kind="tool")
    assert rows["row_id"].item() == "404303692e9ce5079ec501cb3d2573a2"


def test_an_empty_frame_has_no_ids(frame: Frame) -> None:
    assert row_ids(frame([])).height == 0
