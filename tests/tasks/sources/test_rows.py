"""Files of every form through fetch and read_batches: nothing is lost, and what is malformed is named by line."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
from decimal import Decimal
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.errors import BadInput
from tasks.fetch import fetch
from tasks.recipe import Source
from tasks.sources import read_batches
from tasks.sources.columns import frame, observe
from tasks.sources.records import read_pieces
from tasks.store import Store

ROWS = [{"q": "a\nb", "n": 1}, {"q": "ü", "n": None, "late": True}, {"q": "c", "n": 3}]


def read(uri: str, store: Store) -> pl.DataFrame:
    snapshot = fetch(Source(name="s", uri=uri, kind="chat", share=1), store)
    frames = [batch.frame() for batch in read_batches(store.folder(snapshot), snapshot)]
    assert sum(frame.height for frame in frames) == snapshot.rows
    assert all(frame.schema == frames[0].schema for frame in frames)
    return pl.concat(frames)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def parquet_of(values: list[bytes], *names: str) -> bytes:
    """A column of text that may be none, and further columns of any name."""
    columns = [pa.array(values).view(pa.string())] * (1 + len(names))
    written = io.BytesIO()
    pq.write_table(pa.Table.from_arrays(columns, ["a", *names]), written)
    return written.getvalue()


def json_lines(rows: list[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


@pytest.mark.parametrize("pack", ["", ".gz", ".zst"])
@pytest.mark.parametrize(
    "form", ["jsonl", "json", "pretty.json", "objects.json", "array.jsonl", "pretty.jsonl", "parquet"]
)
def test_every_form_gives_the_same_rows(store: Store, tmp_path: Path, form: str, pack: str) -> None:
    path = tmp_path / f"data.{form}{pack}"
    if form == "parquet":
        pl.DataFrame(ROWS).write_parquet(path)
        content = path.read_bytes()
    else:
        content = {
            "jsonl": b"\xef\xbb\xbf" + json_lines(ROWS) + b"\n",
            "json": json.dumps(ROWS).encode(),
            "pretty.json": json.dumps(ROWS, indent=2).encode(),
            "array.jsonl": b"\xef\xbb\xbf\n " + json.dumps(ROWS).encode(),
            "pretty.jsonl": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
            "objects.json": "\n".join(json.dumps(row, indent=1) for row in ROWS).encode(),
        }[form]
    packed = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.ZstdCompressor().compress}[pack](content)
    path.write_bytes(packed)
    found = read(f"file://{path}", store)
    assert found.to_dicts() == [
        {"q": "a\nb", "n": 1, "late": None, "source_row": 0},
        {"q": "ü", "n": None, "late": True, "source_row": 1},
        {"q": "c", "n": 3, "late": None, "source_row": 2},
    ]
    assert found.schema["source_row"] == pl.Int64


def test_csv_cells_are_text_and_a_header_can_be_absent(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('q,a\n"x, ""y""\nz",007\n', encoding="utf-8")
    assert read(f"file://{tmp_path}/a.csv", store).to_dicts() == [{"q": 'x, "y"\nz', "a": "007", "source_row": 0}]
    assert read(f"file://{tmp_path}/a.csv?header=false", store)["column_2"].to_list() == ["a", "007"]
    (tmp_path / "c.csv").write_text(",q,\n0,a,x\n", encoding="utf-8")
    assert read(f"file://{tmp_path}/c.csv", store).to_dicts() == [
        {"column_1": "0", "q": "a", "column_3": "x", "source_row": 0}
    ]
    (tmp_path / "b.tsv").write_text("q\ta\n1\t2\n", encoding="utf-8")
    assert read(f"file://{tmp_path}/b.tsv", store).to_dicts() == [{"q": "1", "a": "2", "source_row": 0}]


def test_rows_are_numbered_over_all_files_in_the_order_of_their_names(store: Store, tmp_path: Path) -> None:
    (tmp_path / "in" / "sub").mkdir(parents=True)
    (tmp_path / "in" / "b.jsonl").write_bytes(json_lines([{"x": "b0"}, {"x": "b1"}]))
    (tmp_path / "in" / "sub" / "a.csv").write_text("y\nc0\n")
    (tmp_path / "in" / "notes.txt").write_text("no rows")
    found = read(f"file://{tmp_path}/in", store)
    assert found["source_row"].to_list() == [0, 1, 2]
    assert found["x"].to_list() == ["b0", "b1", None]
    assert read(f"file://{tmp_path}/in/**/*.csv", store)["y"].to_list() == ["c0"]


def test_nesting_keeps_one_level_and_loses_nothing_below(store: Store, tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "3"}, {"role": "x", "calls": [{"a": {"n": 3}}]}], "tags": ["a"]},
        {"messages": [{"role": "user", "content": [{"type": "text"}]}], "tags": [], "mixed": "3", "extra": {"k": None}},
        {"messages": [], "tags": None, "mixed": 3},
    ]
    (tmp_path / "a.jsonl").write_bytes(json_lines(rows))
    found = read(f"file://{tmp_path}/a.jsonl", store)
    messages = found["messages"].to_list()
    assert messages[0][0] == {"role": "user", "content": "3", "calls": None}
    assert json.loads(messages[0][1]["calls"]) == [{"a": {"n": 3}}]
    assert json.loads(messages[1][0]["content"]) == [{"type": "text"}]
    assert messages[2] == []
    assert found["tags"].to_list() == [["a"], [], None]
    assert found["mixed"].to_list() == [None, "3", "3"]
    assert found["extra"].to_list() == [None, '{"k":null}', None]


def test_a_parquet_struct_field_that_is_null_is_absent_from_its_json_text(store: Store, tmp_path: Path) -> None:
    tools = [{"f": {"a": 1, "b": None}}, {"f": {"a": None, "b": 2}}]
    pl.DataFrame({"tool": tools, "d": [Decimal("1.50")] * 2}).write_parquet(tmp_path / "a.parquet")
    found = read(f"file://{tmp_path}/a.parquet", store)
    assert found["tool"].to_list() == ['{"f":{"a":1}}', '{"f":{"b":2}}']
    assert found["d"].to_list() == ["1.50", "1.50"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": \n', r"a\.jsonl:3: .* is not JSON"),
        ("a.jsonl", b"{}\n{}\n", r"has rows without any field"),
        ("a.jsonl", b'[{"a": 1},\n{"a": 2}', r"ends inside its array"),
        ("a.jsonl", b'{\n"a": 1\n', r"a\.jsonl:1: .* is not JSON"),
        ("a.parquet", parquet_of([b"a", b"\xff"]), r"a\.parquet: .*not a whole Parquet file"),
        ("a.parquet", parquet_of([b"a"], "a"), r"a\.parquet: 'a' is the name of two columns"),
        ("a.jsonl", b'{"a": 1}\n[1]\n', r"a\.jsonl:2: .* is not a JSON object"),
        ("a.jsonl", b'{"a": "\xff"}\n', r"a\.jsonl:1: .* is not UTF-8 text"),
        ("a.json", b'[{"a": 1},\n{"a": }]', r"a\.json:2: .* is not JSON"),
        ("a.json", b'[{"a": 1},\n3]', r"a\.json:2: .* is not a JSON object"),
        ("a.json", b'[{"a": 1},\n{"a": NaN}]', r"a\.json:2: .* is not JSON"),
        ("a.json", b'[\n{"a": "\\ud800"}]', r"a\.json:2: .* is not JSON"),
        ("a.jsonl", b'{"a": "\\ud800"}', r"a\.jsonl:1: .* is not JSON"),
        ("a.json", b'[{"a": 1}\n', r"ends inside its array"),
        ("a.json", b'[{"a": 1}] {"a": 2}', r"is not a JSON object"),
        ("a.json", b'{"a": "\xff\xff"}', r"is not UTF-8"),
        ("a.csv", b"a,b\n1,2\n3\n", r"a\.csv:3: .* has 1 cells where the first line has 2"),
        ("a.csv", b"a,a\n1,2\n", r"a\.csv:1: .* is no header"),
        ("a.csv", b'a,b\n1,"2\n', r"is not CSV"),
        ("a.csv", b"a,b\n\xff,2\n", r"is not UTF-8"),
        ("a.parquet", b"PAR1 not really", r"is not a whole Parquet file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9999)[:-20], r"cannot be unpacked"),
        ("a.jsonl.gz", b"plain", r"cannot be unpacked"),
        ("a.jsonl.zst", zstandard.ZstdCompressor().compress(b'{"a": 1}\n' * 9999)[:-5], r"cannot be unpacked"),
        ("a.jsonl.zst", b"plain text", r"cannot be unpacked"),
        ("a.jsonl", b"", r"yields no rows"),
        ("a.json", b"[]", r"yields no rows"),
        ("a.csv", b"a,b\n", r"yields no rows"),
        ("a.jsonl", b'{"source_row": 1}', r"source_row"),
        ("a.txt", b"x", r"is no data file"),
    ],
)
def test_what_is_malformed_is_one_error_that_says_where(
    store: Store, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=f"(?s){message}"):
        read(f"file://{tmp_path}/{name}", store)
    assert not list(store.root.glob("snapshot/*"))


def test_several_zstandard_frames_are_one_file(store: Store, tmp_path: Path) -> None:
    frames = [zstandard.ZstdCompressor().compress(json_lines([{"a": n}])) for n in range(3)]
    (tmp_path / "a.jsonl.zst").write_bytes(b"".join(frames))
    assert read(f"file://{tmp_path}/a.jsonl.zst", store)["a"].to_list() == [0, 1, 2]


def test_batches_are_bounded_in_rows_and_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.sources.records.BATCH_BYTES", 10_000)
    monkeypatch.setattr("tasks.sources.records._PIECE", 1000)
    rows = [{"a": "x" * (n % 3000), "n": n} for n in range(200)]
    (tmp_path / "a.jsonl").write_bytes(json_lines(rows))
    (tmp_path / "a.json").write_text(json.dumps(rows, indent=1))
    for name in ("a.jsonl", "a.json"):
        batches = list(read_pieces(tmp_path / name, name))
        assert [row for batch in batches for row in batch.records()] == rows
        assert max(sum(len(row["a"]) for row in batch.records()) for batch in batches) < 13_000


WHOLE = st.integers(-(2**70), 2**70) | st.sampled_from([2**53, 2**53 + 1, 2**63 - 1, 2**63])
JSON = st.recursive(
    st.none() | st.booleans() | WHOLE | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.sampled_from([b"\n", b"\r\n", b" ", b"\v", b"{}", b"12", b"\xef\xbb\xbf"]), max_size=12).map(b"".join),
    st.integers(1, 9),
    st.integers(1, 3),
)
def test_lines_are_those_of_the_file_without_blanks_wherever_a_piece_of_it_ends(
    tmp_path: Path, content: bytes, size: int, rows: int
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tasks.sources.records.BATCH_BYTES", size)
        patch.setattr("tasks.sources.records.BATCH_ROWS", rows)
        pieces = list(read_pieces(path, path.name))
    assert all(0 < len(piece) <= rows for piece in pieces)
    found = [text for piece in pieces for text in piece.texts(range(len(piece)))]
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    assert found == [line.strip() for line in lines if line.strip()]
    keys = [key for piece in pieces for key in piece.keys().tobytes().hex(" ", 16).split()]
    assert keys == [hashlib.sha256(line).hexdigest()[:32] for line in found]
    assert [int(number) for piece in pieces for number in piece.numbers] == [  # type: ignore[attr-defined]
        number for number, line in enumerate(lines, 1) if line.strip()
    ]


@given(st.lists(st.dictionaries(st.sampled_from("abc"), JSON, max_size=3), min_size=1, max_size=5))
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_json_holds_fits_into_its_columns_and_comes_back(records: list[dict[str, Any]]) -> None:
    columns: dict[str, Any] = {}
    observe(columns, records)
    found = frame(columns, records)
    for record, row in zip(records, found.to_dicts() or [{}] * len(records), strict=True):
        for name, value in record.items():
            assert _same(value, row[name]), (value, row[name], columns[name])


def _same(value: Any, cell: Any) -> bool:
    """Whether a cell holds a value: itself, its JSON text, or both within a list of scalars or of structs."""
    if isinstance(cell, str) and not isinstance(value, str):
        return bool(json.loads(cell) == value)
    if isinstance(value, list) and isinstance(cell, list):
        return len(value) == len(cell) and all(_same(one, other) for one, other in zip(value, cell, strict=True))
    if isinstance(value, dict) and isinstance(cell, dict):
        return all(_same(value.get(name), inner) for name, inner in cell.items())
    return bool(value == cell)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("one.jsonl", b'{"q": "' + b"x" * 3000 + b'"}', r"one\.jsonl:1: .*begins a row of more than"),
        ("array.jsonl", b'[{"q": "' + b"x" * 9000 + b'"}]', r"array\.jsonl:1: .*begins a row of more than"),
        ("late.jsonl", b'{"q": 1}\n{"q": "' + b"x" * 3000 + b'"}', r"late\.jsonl:2: .*begins a row of more than"),
        ("whole.json", b'{"rows": ["' + b"x" * 9000 + b'"]}', r"whole\.json:1: .*begins a row of more than"),
        ("open.csv", b'q,a\n1,"' + b"x" * 3000, r"open\.csv:\d+: .*field larger than field limit"),
    ],
)
def test_a_row_without_end_is_an_error_before_it_fills_the_memory(
    store: Store, tmp_path: Path, name: str, content: bytes, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.records.ROW_BYTES", 2000)
    monkeypatch.setattr("tasks.sources.records._PIECE", 500)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(BadInput, match=message):
        read(f"file://{tmp_path / name}", store)


def test_rows_keyed_by_something_else_than_names_do_not_make_a_column_of_each(store: Store, tmp_path: Path) -> None:
    scores = [{"q": "a", "scores": [{f"doc{n}": 1, f"doc{n + 1}": 2}]} for n in range(300)]
    (tmp_path / "inner.jsonl").write_bytes(json_lines(scores))
    frame = read(f"file://{tmp_path / 'inner.jsonl'}", store)
    assert frame.schema["scores"] == pl.List(pl.String)
    assert [json.loads(row[0]) for row in frame["scores"].to_list()] == [row["scores"][0] for row in scores]
    (tmp_path / "outer.jsonl").write_bytes(json_lines([{f"id{n}": "a"} for n in range(3000)]))
    with pytest.raises(BadInput, match=r"3000 different keys \(id0, id1, id2, \.\.\.\)"):
        read(f"file://{tmp_path / 'outer.jsonl'}", store)


def test_wide_rows_of_parquet_are_read_a_few_at_a_time(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.sources.records.BATCH_BYTES", 10_000)
    wide = pl.DataFrame({"q": [f"{n} " + "x" * 1000 for n in range(100)]})
    wide.write_parquet(tmp_path / "wide.parquet", compression="uncompressed")
    sizes = [len(piece) for piece in read_pieces(tmp_path / "wide.parquet", "wide.parquet")]
    assert max(sizes) <= 10
    assert read(f"file://{tmp_path / 'wide.parquet'}", store)["q"].equals(wide["q"])
