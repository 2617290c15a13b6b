"""`nightowl check` on files as they come: good ones, bad ones and broken ones."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from flows.cli import app

Check = Callable[..., Result]


def chats(n: int) -> list[Any]:
    asked = [
        {"role": "user", "content": "What comes after {}?"},
        {"role": "assistant", "content": "After {} comes it."},
    ]
    return [{"messages": [{**turn, "content": turn["content"].format(i)} for turn in asked]} for i in range(n)]


def lines(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()


GOOD = lines(chats(40))
LATIN = '{"messages": [{"role": "user", "content": "Un café?"}]}\n'.encode("latin-1")


@pytest.fixture
def check(byte_model: Path, monkeypatch: pytest.MonkeyPatch) -> Check:
    monkeypatch.setenv("COLUMNS", "170")

    def run(data: object, *options: str) -> Result:
        return CliRunner().invoke(app, ["check", str(data), "--model", f"file://{byte_model}", *options])

    return run


BROKEN: dict[str, tuple[bytes, str]] = {
    "cut.jsonl": (GOOD[:-30], r"cut\.jsonl:40: .* is not JSON \(unexpected end of data\)"),
    "cut.json": (json.dumps(chats(9)).encode()[:-30], r"cut\.json:1: .* begins what is not JSON"),
    "open.json": (json.dumps(chats(9)).encode()[:-1], r"open\.json:1: .* ends inside its array"),
    "binary.jsonl": (bytes(range(256)) * 9, r"binary\.jsonl:1: .* is not"),
    "binary.parquet": (bytes(range(256)) * 9, r"binary\.parquet: .* is not a whole Parquet file"),
    "empty.jsonl": (b"", r"empty\.jsonl' yields no rows"),
    "empty.json": (b"[]", r"empty\.json' yields no rows"),
    "empty.csv": (b"instruction,output\n", r"empty\.csv' yields no rows"),
    "empty.parquet": (b"", r"empty\.parquet: .* is not a whole Parquet file"),
    "mixed.jsonl": (GOOD + LATIN + GOOD, r"mixed\.jsonl:41: .* is not UTF-8 text .* Save it as UTF-8"),
    "wide.jsonl": (GOOD.decode().encode("utf-16"), r"wide\.jsonl:1: .* is not UTF-8 text"),
    "latin.csv": ("instruction,output\nWhere?,In the café.\n".encode("latin-1"), r"latin\.csv: .* is not UTF-8 text"),
    "cut.jsonl.gz": (gzip.compress(GOOD)[:-20], r"cut\.jsonl\.gz: .* cannot be unpacked"),
    "plain.jsonl.gz": (GOOD, r"plain\.jsonl\.gz: .* cannot be unpacked \(Not a gzipped file"),
    "numbers.jsonl": (b"1\n2\n", r"numbers\.jsonl:1: '1' is not a JSON object"),
    "nul.jsonl": (GOOD + b"\0\0\n", r"nul\.jsonl:41: .* is not JSON"),
    "deep.json": (b"[" * 100_000, r"deep\.json:1: .* is not a JSON object"),
    "other.jsonl": (b'{"a": 1}\n', r"fits no format\..*\nColumns: a \(Int64\)"),
    "notes.txt": (GOOD, r"notes\.txt, which is no data file"),
    "long.jsonl": (
        GOOD + b'{"messages": "' + b"x" * 100_000_000,
        r"long\.jsonl:41: .{0,120} begins a row of more than 67 MB",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_clear_line(name: str, check: Check, tmp_path: Path) -> None:
    content, says = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    done = check(tmp_path / name)
    assert done.exit_code == 2, done.output
    assert re.search(says, done.stderr), done.stderr
    assert len(done.stderr) < 1500
    told = json.loads(check(tmp_path / name, "--json").stdout)
    assert told["exit_code"] == 2
    assert re.search(says, told["error"])


def test_what_is_no_file(check: Check, tmp_path: Path) -> None:
    (tmp_path / "folder.jsonl").mkdir()
    for place, says in (("folder.jsonl", "is a folder without data files"), ("nothing.jsonl", "does not exist")):
        done = check(tmp_path / place)
        assert done.exit_code == 2
        assert says in done.stderr


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("marked.jsonl", b"\xef\xbb\xbf" + GOOD),
        ("windows.jsonl", GOOD.replace(b"\n", b"\r\n")),
        ("spaced.jsonl", GOOD.replace(b"\n", b"\n\n \n")),
        ("odd name? #1%.jsonl", GOOD),
        ("packed.jsonl.gz", gzip.compress(GOOD)),
        ("marked.csv", b"\xef\xbb\xbfinstruction,output\r\n" + b'What comes after 1?,"After ""1"" comes 2."\r\n' * 3),
    ],
)
def test_what_is_odd_and_right_is_read(name: str, content: bytes, check: Check, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    done = check(tmp_path / name)
    assert done.exit_code == 0, done.output
    assert "rows pass (chat, read as" in done.stdout
    assert "Every row keeps every rule." in done.stdout or "exact_duplicate" in done.stdout


def test_rows_that_cannot_be_read_are_set_aside_with_a_reason(check: Check, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(
        GOOD + lines([{"messages": "no"}, {"messages": None}, {"messages": [{"role": "user", "content": 3}]}])
    )
    done = check(file, "--json")
    (source,) = json.loads(done.stdout)["sources"]
    assert (source["rows_in"], source["rows_out"]) == (43, 40)
    assert sum(source["set_aside"].values()) == 3
    assert done.exit_code == 0  # fewer than quality.max_set_aside
    (found,) = [finding for finding in source["findings"] if finding["rule"] == "unconvertible"]
    assert found["rows"] + sum(source["set_aside"].get(rule, 0) for rule in ("turn_order", "ends_on_assistant")) >= 3
    assert found["row"] >= 40


def test_columns_are_mapped_on_the_command_line(check: Check, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines([{"Frage": f"What comes after {n}?", "Antwort": f"{n + 1} does."} for n in range(20)]))
    told = check(file)
    assert told.exit_code == 2
    assert "--column" in told.output
    assert "Frage: 'What comes after 2?'" in told.output
    done = check(file, "--column", "question=Frage", "--column", "answer=Antwort")
    assert done.exit_code == 0, done.output
    assert "read as question_answer" in done.stdout
    assert "is not FIELD=COLUMN" in check(file, "--column", "question").output


def test_a_line_of_60_mb_is_a_row_like_any_other(check: Check, tmp_path: Path) -> None:
    rows = chats(20)
    rows[7]["log"] = "word " * 12_000_000
    file = tmp_path / "long.jsonl"
    file.write_bytes(lines(rows))
    done = check(file)
    assert done.exit_code == 0, done.output
    assert "20 of 20 rows pass" in done.stdout


def test_the_table_is_sorted_by_severity_and_says_what_to_do(check: Check, tmp_path: Path) -> None:
    rows = chats(40)
    for row in rows[3:20]:
        row["messages"][1]["content"] = "Dear {{customer}}, welcome."
    rows[30]["messages"][1]["content"] = ""
    rows[31]["messages"][1]["content"] = "He said &quot;so&quot;."
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines(rows))
    done = check(file)
    assert done.exit_code == 1
    assert "22 of 40 rows pass (chat, read as openai); the source STOPS THE NIGHT" in done.stdout
    rules = re.findall(r"^│ (\w+) +│ (critical|warning|info)", done.stdout, re.M)
    order = ["critical", "warning", "info"]
    assert [severity for _, severity in rules[1:]] == sorted((s for _, s in rules[1:]), key=order.index)
    assert [rule for rule, _ in rules[:3]] == ["set_aside", "empty_answer", "render_problem"]
    assert re.search(
        r"placeholder +│ warning +│ +17 │ 42\.50% │ +10\.0% │ row 3 assistant: Dear \{\{customer\}\}", done.stdout
    )
    assert "→ Fill the placeholder in, or drop the row." in done.stdout
    pages = re.search(r"pages +(\S+)", done.stdout)
    assert pages
    assert Path(pages[1]).exists()
    let = check(file, "--set", "quality.max_set_aside=0.5")
    assert let.exit_code == 0, let.stdout


@pytest.mark.parametrize(
    ("row", "kind"),
    [
        ({"question": "2 + 2?", "answer": "Two and two are 4.\n#### 4"}, "reasoning"),
        ({"query": "Rome?", "tools": '[{"name": "at"}]', "answers": '[{"name": "at", "arguments": {}}]'}, "tool"),
        ({"instruction": "Say hello.", "output": "Hello."}, "chat"),
    ],
)
def test_the_kind_is_what_the_rows_show(row: dict[str, str], kind: str, check: Check, tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines([{name: f"{text}{' ' * n}" for name, text in row.items()} for n in range(9)]))
    (source,) = json.loads(check(file, "--json").stdout)["sources"]
    assert source["row_kind"] == kind
    assert json.loads(check(file, "--json", "--kind", "chat").stdout)["sources"][0]["row_kind"] == "chat"


def test_what_was_changed_about_rows_is_told(check: Check, tmp_path: Path) -> None:
    rows = chats(20)
    rows[4]["messages"][1]["content"] = "Write to jo.doe@mail.acme-corp.com."
    file = tmp_path / "rows.jsonl"
    file.write_bytes(lines(rows))
    done = check(file, "--set", "quality.sensitive.email_address=redact")
    assert done.exit_code == 0
    assert re.search(r"changed +redacted email_address 1 row; see \S+changed\.parquet", done.stdout)
