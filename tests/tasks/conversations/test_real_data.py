"""Real data sets through conversion and rendering: what goes in, comes out and is set aside.

    NIGHTOWL_SHARED_DATA=FOLDER python tests/tasks/conversations/test_real_data.py

prints the table of every data file in the folder, fetched as a source is: format, rows in, converted, set aside by
reason, or why none fits.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections import Counter
from pathlib import Path

import polars as pl
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tasks.conversations import Renderer, canonical_tools, convert, detect
from tasks.errors import BadInput
from tasks.fetch import fetch
from tasks.recipe import Source
from tasks.sources import read_batches
from tasks.store import Store


def rows_of(file: Path) -> pl.DataFrame:
    text = file.read_text(encoding="utf-8")
    records = json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines()]
    # As sources hand them over: what is nested more than once is JSON text.
    flat = [
        {k: json.dumps(v) if isinstance(v, list) and not file.name.startswith("gsm") else v for k, v in record.items()}
        for record in records
    ]
    return pl.DataFrame(flat, infer_schema_length=None).with_columns(source_row=pl.int_range(pl.len(), dtype=pl.Int64))


@pytest.mark.parametrize(
    ("file", "form", "rows", "with_tools"),
    [
        ("gsm8k/test.jsonl", "gsm8k", 1319, 0),
        ("llamafactory_tools/glaive_toolcall_en_demo.json", "sharegpt", 300, 191),
        ("llamafactory_tools/identity.json", "alpaca", 91, 0),
        ("fastchat/data__dummy_conversation.json", "sharegpt", 500, 0),
    ],
)
def test_a_real_data_set_is_converted_and_rendered_whole(
    shared_data: Path, demo_renderer: Renderer, file: str, form: str, rows: int, with_tools: int
) -> None:
    raw = rows_of(shared_data / file)
    assert detect(raw) == form
    conversations, aside = convert(raw, source=file, revision="1", kind="chat", format=None, columns=None)
    assert (conversations.height, aside.height) == (rows, 0)
    assert conversations["tools"].is_not_null().sum() == with_tools
    rendered = demo_renderer.render(conversations)
    assert rendered["problem"].drop_nulls().to_list() == []
    turns = conversations["messages"].list.eval(pl.element().struct.field("role") == "assistant").list.sum()
    assert (rendered["trained_turns"] == turns).all()


def test_calls_of_real_data_are_in_what_is_trained(shared_data: Path, demo_renderer: Renderer) -> None:
    raw = rows_of(shared_data / "llamafactory_tools/glaive_toolcall_en_demo.json")
    conversations, _ = convert(raw, source="s", revision="1", kind="tool", format=None, columns=None)
    calls = 0
    for talk, row in zip(
        conversations["messages"], demo_renderer.render(conversations).iter_rows(named=True), strict=True
    ):
        pairs = zip(row["input_ids"], row["loss_mask"], strict=True)
        written = demo_renderer.decode([token for token, trained in pairs if trained])
        read = [c for turn in written.split("<|im_end|>") for c in demo_renderer.parse_answer(turn).tool_calls]
        given = [call for message in talk.to_list() for call in message["tool_calls"] or ()]
        assert [call.model_dump() for call in read] == given
        calls += len(given)
    assert calls > 150


@pytest.mark.parametrize("file", ["self_instruct/seed_tasks.jsonl", "ifeval/en_input_data.jsonl"])
def test_data_without_answers_fits_no_format(shared_data: Path, file: str) -> None:
    with pytest.raises(BadInput, match="fits no format"):
        detect(rows_of(shared_data / file))


def test_every_tool_of_a_function_calling_benchmark_becomes_valid_json_schema(shared_data: Path) -> None:
    kinds = set()
    for file in sorted((shared_data / "bfcl").glob("BFCL_v4_*.json")):
        for line in file.read_text(encoding="utf-8").splitlines():
            declared = json.loads(line)["function"]
            text = canonical_tools(declared)
            assert text is not None
            assert [tool["function"]["name"] for tool in json.loads(text)] == [tool["name"] for tool in declared]
            kinds |= {
                schema.get("type")
                for tool in json.loads(text)
                for schema in tool["function"]["parameters"]["properties"].values()
                if isinstance(schema.get("type"), str)
            }
    assert kinds <= {"string", "integer", "number", "boolean", "array", "object"}


def line_of(file: Path, store: Store) -> str:
    snapshot = fetch(Source(name="real", uri=f"file://{file}", kind="chat", share=1.0), store)
    raw = pl.concat(batch.frame() for batch in read_batches(store.folder(snapshot), snapshot))
    try:
        form = detect(raw)
    except BadInput as error:
        columns = ", ".join(name for name in raw.columns if name != "source_row")
        why = "fits no format" if "fits no format" in str(error) else "ambiguous"
        return f"{why:18} {snapshot.rows:6} {0:9}  columns {columns}"
    rows, aside = convert(raw, source="", revision="", kind="chat", format=form)
    assert rows.height + aside.height == snapshot.rows
    reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(aside["reason"]).most_common())
    return f"{form:18} {snapshot.rows:6} {rows.height:9}  {reasons or '-'}"


def main() -> None:
    folder = Path(os.environ["NIGHTOWL_SHARED_DATA"])
    print(f"{'file':52} {'format':18} {'rows':>6} {'converted':>9}  set aside")
    with tempfile.TemporaryDirectory() as place:
        for file in sorted(path for ending in ("json", "jsonl", "csv") for path in folder.rglob(f"*.{ending}")):
            print(f"{str(file.relative_to(folder))[-52:]:52} {line_of(file, Store(Path(place)))}")


if __name__ == "__main__":
    main()
