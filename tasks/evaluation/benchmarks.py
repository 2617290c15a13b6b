"""Benchmarks in files: their rows as items, in the form that their makers publish.

- Berkeley Function-Calling Leaderboard (simple, multiple, parallel, irrelevance): questions as JSON lines, with the
  answers in `possible_answer/` or `possible_answer__<name>` beside them; an irrelevance file needs none.
- GSM8K: JSON lines of question and answer. IFEval: JSON lines of prompt, instruction_id_list and kwargs.
- MMLU: CSV of question, four choices and the answer, as a letter or as a number from 0, with a header or without.
- The same in Parquet or with lists of choices, as hubs carry them: `hf://openai/gsm8k?subset=main&split=test`, or by
  name: gsm8k, mmlu, ifeval.
- `gym://task?size=&seed=`: questions of reasoning-gym, which its own scorer marks.

Every row becomes an item or is counted with the reason why not; a row that is there twice is one item. Beside row_id,
messages and tools, an item has a `reference`: what the suite's measure needs to know of the right answer, as JSON.
"""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from tasks.conversations import CONVERSATION, canonical_json
from tasks.errors import BadInput
from tasks.evaluation import calls, choice, gym, instructions
from tasks.evaluation.published import NAMES, address, fetched
from tasks.store import Store, digest

ITEMS: dict[str, Any] = {name: CONVERSATION[name] for name in ("row_id", "messages", "tools")} | {
    "reference": pl.String
}
_TYPES = {"dict": "object", "float": "number", "tuple": "array"}  # of the leaderboard, in the words of JSON Schema
Row = dict[str, Any]
Convert = Callable[[Path, Sequence[Row], str], Iterator[Row | str]]


def benchmark_items(place: str, field: str) -> tuple[pl.DataFrame, dict[str, int]]:
    """Items in the order of the file, and how many rows are none, by reason.

    `place`: a file, a folder, a glob, a hub's or gym:// address or a name; `field`: of the recipe, for messages.
    Raises BadInput where nothing is there, or where it is in none of the forms above.
    """
    made: dict[str, Row] = {}
    aside: Counter[str] = Counter()
    if there := address(place):
        rows = _file_rows(str(fetched(there, field, Store.open().root)), field)
    else:
        rows = _gym(place, field) if place.startswith("gym://") else _file_rows(place, field)
    for row in rows:
        if isinstance(row, str):
            aside[row] += 1
        elif row["row_id"] in made:
            aside["is there twice"] += 1
        else:
            made[row["row_id"]] = row
    if not made:
        why = ", ".join(f"{count} {reason}" for reason, count in aside.items()) or "it is empty"
        raise BadInput(field, place, f"holds no items ({why})", "Name the benchmark's own file.")
    return pl.DataFrame(list(made.values()), schema=ITEMS), dict(aside)


def benchmark_prompts(place: str, field: str) -> pl.Series:
    """What each item asks, without choices; raises as `benchmark_items` does."""
    items, _ = benchmark_items(place, field)
    texts = [
        choice.asked("\n".join(turn["content"] or "" for turn in messages if turn["role"] == "user"))
        for messages in items["messages"].to_list()
    ]
    return pl.Series("question", texts, dtype=pl.String)


def _file_rows(place: str, field: str) -> Iterator[Row | str]:
    path = Path(place).expanduser()
    # A hub's folders lie below.
    found = path.rglob("*") if path.is_dir() else path.parent.glob(path.name)
    files = [file for file in sorted(found) if file.is_file() and not _beside(file, path)]
    if not files:
        way_out = (
            "Name a file, a folder or a glob of the benchmark's rows, an address such as hf://openai/gsm8k, or one of"
        )
        raise BadInput(field, place, "is not there", f"{way_out} {', '.join(NAMES)}.")
    for file in files:
        rows = _read(file, field)
        for keys, convert in _FORMS:
            if rows and keys <= rows[0].keys():
                yield from _converted(convert, file, rows, field)
                break
        else:
            columns = ", ".join(sorted(rows[0])) if rows else "no rows"
            raise BadInput(field, str(file), f"is no benchmark that is known here ({columns})", _KNOWN)


def _beside(file: Path, place: Path) -> bool:
    """Whether a file holds no rows of its own: the answers of another one, or what lies about in a repository."""
    within = file.relative_to(place).parts if place.is_dir() else (file.name,)
    hidden = any(part.startswith((".", "possible_answer")) for part in within)
    return hidden or file.suffix.lower() in (".md", ".txt", ".py", "")


def _converted(convert: Convert, file: Path, rows: Sequence[Row], field: str) -> Iterator[Row | str]:
    done = 0
    try:
        for item in convert(file, rows, field):
            yield item
            done += 1
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        problem = f"row {done + 1} is not like the first one ({type(error).__name__}: {error})"
        raise BadInput(field, str(file), problem, "Correct or remove that row.") from error


def _read(file: Path, field: str) -> list[Row]:
    if file.suffix == ".parquet":
        return _parquet_rows(file, field)
    text = _text(file, field)
    if file.suffix == ".csv":
        return _mmlu_rows(list(csv.reader(text.splitlines(keepends=True))))
    try:
        rows = json.loads(text) if text.lstrip().startswith("[") else _lines(text)
    except ValueError as error:
        raise BadInput(field, str(file), f"is no JSON ({error})", _KNOWN) from error
    if not all(isinstance(row, dict) for row in rows):
        raise BadInput(field, str(file), "holds rows that are no objects", _KNOWN)
    return list(rows)


def _text(file: Path, field: str) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadInput(field, str(file), f"is no text in UTF-8 ({error})", _KNOWN) from error


def _parquet_rows(file: Path, field: str) -> list[Row]:
    try:
        return pl.read_parquet(file).to_dicts()
    except (pl.exceptions.PolarsError, OSError) as error:
        raise BadInput(field, str(file), f"cannot be read as Parquet ({error})", _KNOWN) from error


def _lines(text: str) -> list[Any]:
    return [json.loads(line) for line in text.split("\n") if line.strip()]


def _item(question: str | Sequence[Mapping[str, Any]], answer: str, tools: str | None, reference: object) -> Row:
    turns = [{"role": "user", "content": question}] if isinstance(question, str) else list(question)
    none = {"thinking": None, "tool_calls": None, "tool_call_id": None}
    messages = [{"role": t["role"], "content": t["content"], **none} for t in turns]
    messages.append({"role": "assistant", "content": answer, **none})
    about = canonical_json(reference)
    return {
        "row_id": digest([messages, tools, about])[:32],
        "messages": messages,
        "tools": tools,
        "reference": about,
    }


def _leaderboard(file: Path, rows: Sequence[Row], field: str) -> Iterator[Row | str]:
    answers: dict[str, Any] = {}
    if "irrelevance" not in file.name:
        places = [file.parent / "possible_answer" / file.name, file.parent / f"possible_answer__{file.name}"]
        there = next((place for place in places if place.is_file()), None)
        if there is None:
            raise BadInput(field, str(file), "has no answers beside it", f"Put them at {places[0]}.")
        answers = {row["id"]: row["ground_truth"] for row in _read(there, field)}
    for row in rows:
        if len(row["question"]) != 1:
            yield "has several turns"
            continue
        if answers and row["id"] not in answers:
            yield "has no answer in the answer file"
            continue
        expected = [calls.leaderboard_call(entry) for entry in answers.get(row["id"], ())]
        tools = [
            {"type": "function", "function": {**about, "parameters": _json_schema(about["parameters"])}}
            for about in row["function"]
        ]
        told = [call.model_dump(mode="json") | {"omittable": sorted(call.omittable)} for call in expected]
        yield _item(row["question"][0], "", canonical_json(tools), {"calls": told})


def _json_schema(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_json_schema(entry) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    plain = {key: _json_schema(value) for key, value in schema.items()}
    if isinstance(plain.get("type"), str):
        plain["type"] = _TYPES.get(plain["type"], plain["type"])
        if plain["type"] == "any":
            del plain["type"]
    return plain


def _gsm8k(file: Path, rows: Sequence[Row], field: str) -> Iterator[Row | str]:
    for row in rows:
        yield _item(row["question"], row["answer"], None, {})


def _ifeval(file: Path, rows: Sequence[Row], field: str) -> Iterator[Row | str]:
    for row in rows:
        rules = [
            {"rule": name.removeprefix("en:"), "with": {k: v for k, v in given.items() if v is not None}}
            for name, given in zip(row["instruction_id_list"], row["kwargs"], strict=True)
        ]
        if any(rule["rule"] in instructions.runnable() for rule in rules):
            yield _item(row["prompt"], "", None, {"rules": rules})
        else:
            yield f"has no rule that can be run here ({rules[0]['rule']})"


def _mmlu_rows(lines: Sequence[Sequence[str]]) -> list[Row]:
    names = ["question", *choice.LETTERS, "answer"]
    if lines and lines[0][-1].strip().lower() == "answer":
        lines = lines[1:]
    return [dict(zip(names, line, strict=True)) if len(line) == len(names) else {} for line in lines]


def _mmlu(file: Path, rows: Sequence[Row], field: str) -> Iterator[Row | str]:
    for row in rows:
        answer = str(row.get("answer", "")).strip().upper()
        letter = choice.LETTERS[int(answer)] if answer in ("0", "1", "2", "3") else answer
        choices: list[Any] = row["choices"] if "choices" in row else [row.get(name) for name in choice.LETTERS]
        if letter not in tuple(choice.LETTERS) or len(choices) != len(choice.LETTERS) or None in choices:
            yield "has no answer among its choices"
            continue
        yield _item(choice.question(row["question"], choices), letter, None, {"letter": letter, "choices": choices})


def _gym(place: str, field: str) -> Iterator[Row | str]:
    data = gym.questions(place, field)
    for index in range(len(data)):
        entry = data[index]
        yield _item(entry["question"].strip(), str(entry["answer"]), None, {"gym": place, "index": index})


_FORMS: tuple[tuple[set[str], Convert], ...] = (
    ({"id", "question", "function"}, _leaderboard),
    ({"prompt", "instruction_id_list", "kwargs"}, _ifeval),
    ({"question", "A", "answer"}, _mmlu),
    ({"question", "choices", "answer"}, _mmlu),
    ({"question", "answer"}, _gsm8k),
)
_KNOWN = "BFCL, GSM8K and IFEval as JSON lines, MMLU as CSV, or these in Parquet."
