"""The formats that instruction data comes in, and how to tell which one a table is in.

A format names the columns it needs, says of the first rows whether they look like it, and reads one
row into turns. A row that it cannot read is Unconvertible, with a reason to count by; never guessed at.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import polars as pl

from tasks.conversations import log_formats, message_formats, plain_formats, tool_formats, trees
from tasks.conversations.canonical import Unconvertible
from tasks.conversations.turns import Reading, messages_of

Row = Mapping[str, Any]
Looks = Callable[[Sequence[Row]], bool]
Gather = Callable[[pl.DataFrame], tuple[pl.DataFrame, list[tuple[int, str, str]]]]


@dataclass(frozen=True)
class Format:
    """One format.

    `read` makes a Reading of a row that has the `required` and `optional` columns, None where they are
    absent. `looks` says of the first rows whether they are in this format; None: only the recipe can name
    it. `other_names`: what sources also call a column. `unless`: columns that show another meaning.
    `gather` makes rows with a `path` of messages from rows of one message, and says what it sets aside.
    """

    name: str
    about: str
    required: tuple[str, ...]
    optional: tuple[str, ...]
    read: Callable[[Row], Reading]
    looks: Looks | None
    other_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    unless: re.Pattern[str] | None = None
    gather: Gather | None = None

    def named(self, table: pl.DataFrame) -> pl.DataFrame:
        """The table with its columns under this format's names; whether they are capitals makes no difference."""
        names = {of: names[0] for of, names in self._columns(table).items() if of not in table.columns}
        return table.rename({ours: of for of, ours in names.items()})

    def _columns(self, table: pl.DataFrame) -> dict[str, list[str]]:
        """For each column of this format those of a table that are called so: under its own name, then its others."""
        ours: dict[str, list[str]] = {}
        for of in (*self.required, *self.optional):
            for name in (of, *self.other_names.get(of, ())):
                ours.setdefault(of, []).extend(column for column in table.columns if column.lower() == name.lower())
        return {of: sorted(names, key=lambda name: name != of) for of, names in ours.items() if names}

    def rivals(self, table: pl.DataFrame) -> tuple[str, list[str]] | None:
        """A column of this format that several of a table's may be, whose rows do not say the same; None: no such."""
        for of, names in self._columns(table).items():
            said = {name: rows for name in names if any(rows := table[name].to_list())}
            if len(said) > 1 and any(rows != said[next(iter(said))] for rows in said.values()):
                return of, list(said)
        return None

    def missing(self, table: pl.DataFrame) -> list[str]:
        """Required columns that a table does not have."""
        return [name for name in self.required if name not in table.columns]

    def fits(self, table: pl.DataFrame) -> bool:
        """Whether a table's columns and rows (the first ones of a source) are in this format."""
        table = self.named(table)
        if self.looks is None or self.missing(table):
            return False
        if self.unless and any(self.unless.fullmatch(name) for name in table.columns):
            return False
        return self.looks([self.row(row) for row in table.to_dicts()])

    def row(self, row: Row) -> Row:
        """A row with every column of the format."""
        return {**dict.fromkeys(self.optional), **row}


def _texts(*names: str) -> Looks:
    """These columns hold text or nothing, and not only nothing."""

    def looks(rows: Sequence[Row]) -> bool:
        return all(isinstance(row[name], str | None) for row in rows for name in names) and all(
            any(row[name] for row in rows) for name in names
        )

    return looks


def _all(*conditions: Looks) -> Looks:
    return lambda rows: all(looks(rows) for looks in conditions)


def _not(condition: Looks) -> Looks:
    return lambda rows: not condition(rows)


def _says(column: str, pattern: str) -> Looks:
    """Some row's column, as text, has the pattern."""
    found = re.compile(pattern)
    return lambda rows: any(found.search(str(row[column])) for row in rows if row[column] is not None)


def _keys(column: str, *keys: str) -> Looks:
    """The first message of every row that has one is an object with these keys."""

    def looks(rows: Sequence[Row]) -> bool:
        seen = []
        for row in rows:
            try:
                seen.append(all(key in messages_of(row[column])[0] for key in keys))
            except Unconvertible:
                continue
        return bool(seen) and all(seen)

    return looks


_TAGS = _says("conversations", r"<tool_call>|<tools>")
_TOOLACE = _all(_says("system", r"list of functions in JSON format"), _says("system", r"\[\s*\{"))
_SOLVED = _says("answer", r"####\s*\S")
_FROM_VALUE = _keys("conversations", "from", "value")
_CHOICES = re.compile(r"(choices?|options?)_?\d*|[A-D]|distractor.*|incorrect.*", re.IGNORECASE)
# A question with a passage, with choices or within messages is not asked by its own text alone.
_NOT_ASKED_ALONE = re.compile(
    rf"{_CHOICES.pattern}|context|passage|documents?|messages|conversations?|tools|functions",
    re.IGNORECASE,
)
_LISTS = {"messages": ("conversations", "conversation", "dialogue")}

_FORMATS = (
    Format(
        "alpaca",
        "instruction and input as the user's text, output; system, history of pairs",
        ("instruction", "output"),
        ("input", "system", "history"),
        plain_formats.alpaca,
        _texts("instruction", "output"),
        {"input": ("context",), "output": ("response",)},
    ),
    Format(
        "alpaca_system",
        "instruction as the system prompt, input as the user's text, output",
        ("instruction", "input", "output"),
        ("history",),
        plain_formats.alpaca_system,
        None,
    ),
    Format(
        "openai",
        "messages of role and content, tool_calls, typed parts, reasoning_content; tools",
        ("messages",),
        ("tools", "functions", "system"),
        message_formats.openai,
        _all(_keys("messages", "role"), _not(log_formats.looks_like_completion)),
        _LISTS,
    ),
    Format(
        "request_log",
        "log of an OpenAI-style API: request {messages, tools} and response {choices}; status, error",
        ("request", "response"),
        ("status", "status_code", "error"),
        log_formats.request_log,
        log_formats.looks_like_request,
        {"request": ("request_body",), "response": ("response_body",)},
    ),
    Format(
        "litellm_log",
        "log of LiteLLM: messages, response {choices}, model_parameters; status, error_str",
        ("messages", "response"),
        ("model_parameters", "optional_params", "tools", "status", "error_str", "error_information"),
        log_formats.litellm_log,
        _all(_keys("messages", "role"), log_formats.looks_like_completion),
    ),
    Format(
        "sharegpt",
        "conversations of from and value (human, gpt, system, function_call, observation, tool); tools, system",
        ("conversations",),
        ("tools", "system"),
        message_formats.sharegpt,
        _all(_FROM_VALUE, _not(_TAGS), _not(_TOOLACE)),
        {"conversations": ("conversation",)},
    ),
    Format(
        "hermes",
        "conversations of from and value with <tools>, <tool_call> and <tool_response> in the text; tools",
        ("conversations",),
        ("tools", "system"),
        message_formats.hermes,
        _all(_FROM_VALUE, _TAGS),
    ),
    Format(
        "toolace",
        "system with a list of functions, conversations with calls as [name(key=value)]",
        ("conversations", "system"),
        (),
        tool_formats.toolace,
        _all(_FROM_VALUE, _TOOLACE, _not(_TAGS)),
    ),
    Format(
        "glaive",
        "system with functions, chat as USER:, ASSISTANT: <functioncall> and FUNCTION RESPONSE: (glaive v2)",
        ("system", "chat"),
        (),
        tool_formats.glaive,
        _says("chat", r"(^|\n)\s*USER:"),
    ),
    Format(
        "glaive_v1",
        "sample with system, functions and the turns of glaive in one text (glaive v1)",
        ("sample",),
        (),
        tool_formats.glaive_v1,
        _says("sample", r"(^|\n)\s*USER:.*\n\s*ASSISTANT:"),
    ),
    Format(
        "xlam",
        "query, tools and answers (calls) as JSON text",
        ("query", "tools", "answers"),
        (),
        tool_formats.xlam,
        _says("answers", "name"),
    ),
    Format(
        "chatml",
        "text of <|im_start|>role ... <|im_end|> turns",
        ("text",),
        (),
        message_formats.chatml,
        _all(_texts("text"), _says("text", r"<\|im_start\|>")),
    ),
    Format(
        "labelled_text",
        "text of turns after ### Human: and ### Assistant:, ### Instruction: and ### Response:, or Human: on a line",
        ("text",),
        (),
        message_formats.labelled,
        _all(_texts("text"), message_formats.looks_labelled),
        unless=re.compile("instruction|prompt|question|query|messages|conversations?", re.IGNORECASE),
    ),
    Format(
        "exchanges",
        "conversation of exchanges: human and assistant, or input and output, and the first one's system; system",
        ("conversation",),
        ("system",),
        message_formats.exchanges,
        lambda rows: (
            _keys("conversation", "human", "assistant")(rows) or _keys("conversation", "input", "output")(rows)
        ),
        {"conversation": ("conversations",)},
    ),
    Format(
        "prompt_completion",
        "prompt (or input, inputs) and completion (or response, output, target), as text or as messages; system",
        ("prompt", "completion"),
        ("system",),
        plain_formats.prompt_completion,
        lambda rows: any(row["completion"] for row in rows),
        {
            "prompt": ("input", "inputs"),
            "completion": ("response", "output", "target", "targets"),
            "system": ("system_prompt",),
        },
        unless=re.compile("instruction|question|query", re.IGNORECASE),
    ),
    Format(
        "question_answer",
        "question (or query, problem) and answer (or response, solution) as text; system, history of pairs, thinking",
        ("question", "answer"),
        ("system", "history", "thinking"),
        plain_formats.question_answer,
        _all(_texts("question", "answer"), _not(_SOLVED)),
        {
            "question": ("query", "problem"),
            "answer": ("response", "solution"),
            "system": ("system_prompt",),
            "thinking": ("complex_cot", "reasoning_content"),
        },
        unless=_NOT_ASKED_ALONE,
    ),
    Format(
        "gsm8k",
        "question, answer with the solution before ####: thinking and answer",
        ("question", "answer"),
        (),
        plain_formats.gsm8k,
        _all(_texts("question", "answer"), _SOLVED),
        unless=_CHOICES,
    ),
    Format(
        "gsm8k_direct",
        "question, answer with the solution before ####: both as text",
        ("question", "answer"),
        (),
        plain_formats.gsm8k_direct,
        None,
    ),
    Format(
        "open_math_reasoning",
        "problem, generated_solution with a <think> block",
        ("problem", "generated_solution"),
        (),
        plain_formats.open_math_reasoning,
        _texts("problem", "generated_solution"),
    ),
    Format(
        "open_assistant",
        "rows of messages with message_id, parent_id, role, text, rank: the best-ranked path of each tree",
        ("message_id", "parent_id", "role", "text"),
        ("rank", "deleted", "review_result"),
        trees.open_assistant,
        _texts("message_id", "text", "role"),
        gather=trees.best_paths,
    ),
    Format(
        "open_assistant_all",
        "the same rows: every path to an answer, best ranks first",
        ("message_id", "parent_id", "role", "text"),
        ("rank", "deleted", "review_result"),
        trees.open_assistant,
        None,
        gather=trees.all_paths,
    ),
    Format(
        "open_assistant_trees",
        "trees as objects: prompt with role, text, rank and replies; the best-ranked path of each",
        ("prompt",),
        (),
        trees.nested,
        _says("prompt", r"['\"]replies['\"]\s*:"),
        unless=re.compile("completion|response"),
    ),
)
FORMATS = {known.name: known for known in _FORMATS}
