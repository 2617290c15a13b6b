"""Each format is read from the rows that its data sets hold, through Polars frames as sources hand them over."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.conversations import CONVERSATION, convert, detect, formats
from tasks.errors import BadInput
from tasks.sources.columns import Columns, frame, observe

Turn = tuple[str, str, str | None, list[tuple[str, str]] | None]


def raw(rows: list[dict[str, Any]]) -> pl.DataFrame:
    columns: Columns = {}
    observe(columns, rows)
    return frame(columns, rows).with_columns(source_row=pl.int_range(pl.len(), dtype=pl.Int64))


def read(rows: list[dict[str, Any]], **options: Any) -> tuple[pl.DataFrame, pl.DataFrame]:
    conversations, aside = convert(
        raw(rows), source="s", revision="r", kind="chat", **{"format": None, "columns": None, **options}
    )
    assert conversations.schema == pl.Schema(CONVERSATION)
    assert sorted([*conversations["source_row"], *aside["source_row"]]) == list(range(len(rows)))
    return conversations, aside


def turns(conversations: pl.DataFrame, row: int = 0) -> list[Turn]:
    return [
        (
            m["role"],
            m["content"],
            m["thinking"],
            [(call["name"], call["arguments"]) for call in m["tool_calls"]] if m["tool_calls"] else None,
        )
        for m in conversations["messages"][row].to_list()
    ]


def tool_names(conversations: pl.DataFrame, row: int = 0) -> list[str]:
    return [tool["function"]["name"] for tool in json.loads(conversations["tools"][row])]


def plain(*pairs: tuple[str, str]) -> list[Turn]:
    return [(role, content, None, None) for role, content in pairs]


WEATHER = {"name": "get_weather", "description": "Weather.", "parameters": {"city": {"type": "str"}}}
OSLO = [("get_weather", '{"city":"Oslo"}')]
TOOL_TALK: list[Turn] = [
    ("user", "Weather?", None, None),
    ("assistant", "", None, OSLO),
    ("tool", "clear", None, None),
    ("assistant", "Clear.", None, None),
]

EXAMPLES: dict[str, tuple[dict[str, Any], list[Turn], list[str]]] = {
    "alpaca": (
        {"instruction": "Add.", "input": "1 + 1", "output": " 2\n"},
        plain(("user", "Add.\n\n1 + 1"), ("assistant", "2")),
        [],
    ),
    "alpaca with history": (
        {"instruction": "And you?", "input": "", "output": "Fine.", "system": "Be kind.", "history": [["Hi", "Hello"]]},
        plain(
            ("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello"), ("user", "And you?"), ("assistant", "Fine.")
        ),
        [],
    ),
    "openai": (
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello", "reasoning_content": "A greeting."},
            ]
        },
        [("system", "Be brief.", None, None), ("user", "Hi", None, None), ("assistant", "Hello", "A greeting.", None)],
        [],
    ),
    "openai with tools": (
        {
            "messages": [
                {"role": "user", "content": "Weather?", "tool_calls": None},
                {
                    "role": "assistant",
                    "content": None,
                    "tool_calls": [
                        {
                            "id": "1",
                            "type": "function",
                            "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'},
                        }
                    ],
                },
                {"role": "tool", "content": "clear", "tool_calls": None},
                {"role": "assistant", "content": "Clear.", "tool_calls": None},
            ],
            "tools": [{"type": "function", "function": WEATHER}],
        },
        TOOL_TALK,
        ["get_weather"],
    ),
    "openai as JSON text": (
        {
            "conversation": json.dumps(
                [
                    {"role": "user", "content": [{"type": "text", "text": "Weather?"}]},
                    {"role": "assistant", "function_call": {"name": "get_weather", "arguments": {"city": "Oslo"}}},
                    {"role": "function", "content": "clear", "name": "get_weather"},
                    {"role": "assistant", "content": "Clear."},
                ]
            ),
            "functions": json.dumps([WEATHER]),
        },
        TOOL_TALK,
        ["get_weather"],
    ),
    "sharegpt": (
        {
            "conversations": [
                {"from": "human", "value": "Weather?"},
                {"from": "function_call", "value": '{"name": "get_weather", "arguments": {"city": "Oslo"}}'},
                {"from": "observation", "value": "clear"},
                {"from": "gpt", "value": "Clear."},
            ],
            "tools": json.dumps([WEATHER]),
        },
        TOOL_TALK,
        ["get_weather"],
    ),
    "FineTome": (
        {
            "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello"}],
            "source": "somewhere",
            "score": 5.1,
        },
        plain(("user", "Hi"), ("assistant", "Hello")),
        [],
    ),
    "hermes": (
        {
            "id": "1",
            "conversations": [
                {
                    "from": "system",
                    "value": "You are a function calling AI model. You are provided with function signatures within "
                    f"<tools> </tools> XML tags.\n<tools>\n{json.dumps([WEATHER])}\n</tools>\nFor each function call "
                    "return a JSON object within <tool_call> </tool_call> tags.",
                },
                {"from": "human", "value": "Weather?"},
                {
                    "from": "gpt",
                    "value": "<tool_call>{'name': 'get_weather', 'arguments': {'city': 'Oslo'}}</tool_call>",
                },
                {"from": "tool", "value": "<tool_response>\nclear\n</tool_response>"},
                {"from": "gpt", "value": "Clear."},
            ],
        },
        TOOL_TALK,
        ["get_weather"],
    ),
    "toolace": (
        {
            "system": "You compose functions. Here is a list of functions in JSON format that you can invoke:\n"
            + json.dumps([{**WEATHER, "name": "Weather (Now)"[:7]}])
            + "\nShould you decide to return the function call(s), put it in the format of [func1(params_name=value)]",
            "conversations": [
                {"from": "user", "value": "Weather?"},
                {
                    "from": "assistant",
                    "value": '[Weather(city="Oslo, \\"N\\"", days=[1, 2], full=true, '
                    "at={\"a\": null}), Air Quality(x='y')]",
                },
                {"from": "tool", "value": '[{"sky": "clear"}, {"air": "good"}]'},
                {"from": "assistant", "value": "Clear."},
            ],
        },
        [
            ("user", "Weather?", None, None),
            (
                "assistant",
                "",
                None,
                [
                    ("Weather", '{"at":{"a":null},"city":"Oslo, \\"N\\"","days":[1,2],"full":true}'),
                    ("Air Quality", '{"x":"y"}'),
                ],
            ),
            ("tool", '{"sky": "clear"}', None, None),
            ("tool", '{"air": "good"}', None, None),
            ("assistant", "Clear.", None, None),
        ],
        ["Weather"],
    ),
    "glaive": (
        {
            "system": "SYSTEM: You are a helpful assistant with access to the following functions. Use them -\n"
            + json.dumps(WEATHER, indent=4)
            + "\n"
            + json.dumps({"name": "other", "parameters": {}}, indent=4),
            "chat": 'USER: Weather?\n\n\nASSISTANT: <functioncall> {"name": "get_weather", '
            '"arguments": \'{"city": "Oslo"}\'} '
            "<|endoftext|>\n\n\nFUNCTION RESPONSE: clear\n\n\nASSISTANT: Clear. <|endoftext|>\n\n\n",
        },
        TOOL_TALK,
        ["get_weather", "other"],
    ),
    "xlam": (
        {
            "id": 7,
            "query": "Weather?",
            "tools": json.dumps([WEATHER]),
            "answers": '[{"name": "get_weather", "arguments": {"city": "Oslo"}}]',
        },
        TOOL_TALK[:2],
        ["get_weather"],
    ),
    "chatml": (
        {
            "text": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n"
            "<|im_start|>assistant\n<think>\nhm\n</think>\n\nHello<|im_end|>\n"
        },
        [("system", "Be brief.", None, None), ("user", "Hi", None, None), ("assistant", "Hello", "hm", None)],
        [],
    ),
    "prompt and completion": (
        {"prompt": "Hi", "completion": "Hello"},
        plain(("user", "Hi"), ("assistant", "Hello")),
        [],
    ),
    "prompt and completion of messages": (
        {"prompt": [{"role": "user", "content": "Hi"}], "completion": [{"role": "assistant", "content": "Hello"}]},
        plain(("user", "Hi"), ("assistant", "Hello")),
        [],
    ),
    "question and answer": ({"question": "Hi?", "answer": "Hello"}, plain(("user", "Hi?"), ("assistant", "Hello")), []),
    "instruction and response": (
        {"instruction": "Who?", "context": "Ada wrote it.", "response": "Ada", "category": "closed_qa"},
        plain(("user", "Who?\n\nAda wrote it."), ("assistant", "Ada")),
        [],
    ),
    "query and response with history": (
        {"query": "And you?", "response": "Fine", "history": [["Hi", "Hello"]]},
        plain(("user", "Hi"), ("assistant", "Hello"), ("user", "And you?"), ("assistant", "Fine")),
        [],
    ),
    "system prompt, question and response": (
        {"id": "flan.1", "system_prompt": "Be brief.", "question": "Hi?", "response": "Hello"},
        plain(("system", "Be brief."), ("user", "Hi?"), ("assistant", "Hello")),
        [],
    ),
    "thinking in a column, and capitals": (
        {"Question": "1+1?", "Complex_CoT": "Easy.", "Response": "2"},
        [("user", "1+1?", None, None), ("assistant", "2", "Easy.", None)],
        [],
    ),
    "input of messages and output": (
        {"input": [{"role": "user", "content": "Hi"}], "output": "<think>hm</think>Hello", "reasoning": "on"},
        [("user", "Hi", None, None), ("assistant", "Hello", "hm", None)],
        [],
    ),
    "exchanges": (
        {
            "conversation": [
                {"system": "Be brief.", "input": "Hi", "output": "Hello"},
                {"input": "And?", "output": "No"},
            ]
        },
        plain(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "And?"), ("assistant", "No")),
        [],
    ),
    "labelled text": (
        {"text": "### Human: Hi### Assistant: Hello\nthere### Human: And?### Assistant: No"},
        plain(("user", "Hi"), ("assistant", "Hello\nthere"), ("user", "And?"), ("assistant", "No")),
        [],
    ),
    "labelled text of an instruction": (
        {"text": "Below is a task.\n\n### Instruction:\nAdd.\n\n### Input:\n1 and 1\n\n### Response:\n2"},
        plain(("system", "Below is a task."), ("user", "Add.\n\n1 and 1"), ("assistant", "2")),
        [],
    ),
    "labels on lines": (
        {"text": "\n\nHuman: Hi\n\nAssistant: Hello"},
        plain(("user", "Hi"), ("assistant", "Hello")),
        [],
    ),
    "gsm8k": (
        {"question": "How many?", "answer": "There are 2*3=<<2*3=6>>6.\n#### 1,006"},
        [("user", "How many?", None, None), ("assistant", "1,006", "There are 2*3=6.", None)],
        [],
    ),
    "OpenMathReasoning": (
        {"problem": "1+1?", "generated_solution": "<think>\nEasy.\n</think>\n\n\\boxed{2}", "expected_answer": "2"},
        [("user", "1+1?", None, None), ("assistant", "\\boxed{2}", "Easy.", None)],
        [],
    ),
    "Open Assistant trees": (
        {
            "message_tree_id": "a",
            "prompt": json.dumps(
                {
                    "role": "prompter",
                    "text": "Hi",
                    "replies": [
                        {"role": "assistant", "text": "No", "rank": 1, "replies": []},
                        {
                            "role": "assistant",
                            "text": "Hello",
                            "rank": 0,
                            "replies": [{"role": "prompter", "text": "?", "replies": []}],
                        },
                    ],
                }
            ),
        },
        plain(("user", "Hi"), ("assistant", "Hello")),
        [],
    ),
}


@pytest.mark.parametrize("example", EXAMPLES)
def test_a_format_is_detected_and_read(example: str) -> None:
    row, expected, tools = EXAMPLES[example]
    conversations, aside = read([row])
    assert aside.height == 0
    assert turns(conversations) == expected
    assert (tool_names(conversations) if conversations["tools"][0] else []) == tools


def test_every_format_that_can_be_detected_has_an_example() -> None:
    detected = {detect(raw([row])) for row, _, _ in EXAMPLES.values()}
    elsewhere = {
        "glaive_v1",
        "alpaca_system",
        "gsm8k_direct",
        "open_assistant",
        "open_assistant_all",
        "request_log",
        "litellm_log",
    }
    assert detected | elsewhere == set(formats())


def test_instruction_is_the_system_prompt_where_the_recipe_says_so() -> None:
    rows = [{"instruction": "Be brief.", "input": "Hi", "output": "Hello"}]
    expected = plain(("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"))
    assert turns(read(rows, format="alpaca_system")[0]) == expected
    mapping = {"system": "instruction", "question": "input", "answer": "output"}
    assert turns(read(rows, columns=mapping)[0]) == expected


def test_gsm8k_can_be_read_without_thinking() -> None:
    conversations, _ = read([EXAMPLES["gsm8k"][0]], format="gsm8k_direct")
    assert turns(conversations)[1] == ("assistant", "There are 2*3=6.\n\nAnswer: 1,006", None, None)


def test_columns_are_mapped() -> None:
    rows = [{"Frage": "Hi?", "Antwort": "Hello", "question": "not this one"}]
    assert turns(read(rows, columns={"question": "Frage", "answer": "Antwort"})[0]) == plain(
        ("user", "Hi?"), ("assistant", "Hello")
    )


@pytest.mark.parametrize(
    ("rows", "options", "problem"),
    [
        ([{"a": "x1", "b": "y1"}, {"a": "x2", "b": "y2"}, {"a": "x3", "b": "y3"}], {}, "fits no format"),
        ([{"question": "x", "choice0": "a", "choice1": "b", "answer": "0"}], {}, "fits no format"),
        ([{"question": "x1", "answer": 0}], {}, "fits no format"),
        ([{"question": "x1", "context": "c", "answer": "y"}], {}, "fits no format"),
        ([{"question": "x1", "solution": "long", "answer": "y"}], {}, "may each be the answer of question_answer"),
        (
            [{"instruction": "x1", "output": "y", "question": "q", "answer": "a"}],
            {},
            r"more than one format \(alpaca, question_answer\)",
        ),
        ([{"question": "x1", "answer": "y"}], {"format": "alpaca"}, "needs 'instruction', 'output'"),
        (
            [{"question": "x1", "answer": "y"}],
            {"columns": {"question": "Frage", "answer": "answer"}},
            "is not a column",
        ),
        ([{"question": "x1", "answer": "y"}], {"columns": {"query": "question"}}, "fits no format"),
    ],
)
def test_what_fits_no_one_format_is_an_error_with_columns_and_rows(
    rows: list[dict[str, Any]], options: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BadInput, match=problem) as raised:
        read(rows, **options)
    shown = str(raised.value)
    # A mapping leaves the columns that it names; the rows shown are those of the table that was looked at.
    names = rows[0] if "columns" not in options or "is not a column" in shown else options["columns"]
    assert all(name in shown for name in names)
    first = next(iter(rows[0].values()))
    assert all(str(row[next(iter(row))]) in shown for row in rows), first


def test_an_unknown_format_and_an_unknown_field_are_bad_input() -> None:
    rows = [{"question": "x", "answer": "y"}]
    with pytest.raises(BadInput, match=r"alpca.*alpaca"):
        read(rows, format="alpca")
    with pytest.raises(BadInput, match=r"columns\.quesion"):
        read(rows, columns={"quesion": "question"})


GOOD = {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]}


def messages(*pairs: tuple[str, Any], **last: Any) -> str:
    made = [{"role": role, "content": content} for role, content in pairs]
    made[-1].update(last)
    return json.dumps(made)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "no_messages"),
        ("[]", "no_messages"),
        ("not JSON", "messages_not_list"),
        ('["Hi"]', "messages_not_list"),
        (messages(("narrator", "Hi")), "unknown_role"),
        (messages((None, "Hi")), "unknown_role"),
        (messages(("user", [{"type": "image_url", "image_url": {"url": "x"}}])), "content_not_text"),
        (messages(("user", 7)), "content_not_text"),
        (messages(("assistant", ""), tool_calls=[{"function": {"name": "f", "arguments": "{oops"}}]), "call_not_json"),
        (messages(("assistant", ""), tool_calls=[{"function": {"name": "f", "arguments": "[1]"}}]), "call_not_json"),
        (messages(("assistant", ""), tool_calls=[{"function": {"arguments": "{}"}}]), "call_without_name"),
        (messages(("assistant", ""), tool_calls=["f()"]), "call_not_json"),
        (messages(("assistant", ""), tool_calls=[{"name": "f", "arguments": '{"a": NaN}'}]), "not_json"),
        (messages(("assistant", ""), tool_calls=[{"name": "f", "arguments": '{"a": "\\ud800"}'}]), "not_unicode"),
    ],
)
def test_a_row_that_cannot_be_converted_is_set_aside_with_its_reason(value: Any, reason: str) -> None:
    good = json.dumps(GOOD["messages"])
    conversations, aside = read([{"messages": good}, {"messages": value}, {"messages": good}])
    assert conversations["source_row"].to_list() == [0, 2]
    assert aside["source_row"].to_list() == [1]
    assert aside["reason"].to_list() == [reason]
    assert aside["detail"].item()


def test_text_with_a_lone_surrogate_is_set_aside() -> None:
    conversations, aside = read(
        [{"messages": '[{"role": "user", "content": "\\ud800"}]'}, {"messages": json.dumps(GOOD["messages"])}]
    )
    assert (conversations.height, aside["reason"].to_list()) == (1, ["not_unicode"])


def test_anthropics_parts_are_thinking_calls_and_results() -> None:
    calls = [{"type": "tool_use", "id": name, "name": name, "input": {"a": 1}} for name in ("f", "g")]
    results = [{"type": "tool_result", "tool_use_id": name, "content": name.upper()} for name in ("f", "g")]
    said = [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "I look."}, *calls]
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": said},
        {"role": "user", "content": [*results, {"type": "text", "text": "And?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "Done."}]},
    ]
    expected = [
        ("user", "Hi", None, None),
        ("assistant", "I look.", "hm", [("f", '{"a":1}'), ("g", '{"a":1}')]),
        ("tool", "F", None, None),
        ("tool", "G", None, None),
        ("user", "And?", None, None),
        ("assistant", "Done.", None, None),
    ]
    assert turns(read([{"messages": messages}])[0]) == expected
    broken, aside = read([{"messages": [messages[0], {"role": "assistant", "content": [{"type": "tool_use"}]}]}])
    assert (broken.height, aside["reason"].to_list()) == (0, ["call_without_name"])


def test_unclosed_thinking_is_left_in_the_text_for_the_rules_to_find() -> None:
    conversations, _ = read([{"question": "Hi?", "answer": "<think>\nhm"}])
    assert turns(conversations)[1] == ("assistant", "<think>\nhm", None, None)


@pytest.mark.parametrize("said", [{"weight": 0}, {"train": False}, {"loss": False}, {"weight": 0.0}])
def test_what_is_marked_as_not_to_be_learnt_is_not_trained_on(said: dict[str, Any]) -> None:
    asked, answered = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    rows = [{"messages": [asked, {**answered, **said}]}, {"messages": [{**asked, **said}, answered]}]
    conversations, aside = read(rows)
    assert (conversations.height, aside.rows()[0][:2]) == (1, (0, "not_to_be_learnt"))
    conversations, aside = read([{"messages": json.dumps(row["messages"])} for row in rows])
    assert (conversations.height, aside.rows()[0][:2]) == (1, (0, "not_to_be_learnt"))


@pytest.mark.parametrize("solution", ["{}", "<|begin_of_solution|>\n\n{}\n\n<|end_of_solution|>"])
def test_marked_thought_is_thinking_and_the_prompt_that_asks_for_the_marks_is_dropped(solution: str) -> None:
    thought = "<|begin_of_thought|>\n\nhm\n\n<|end_of_thought|>\n\n"
    row = {
        "system": "Your role is to explore. Thought section: <|begin_of_thought|> {steps} <|end_of_thought|>",
        "conversations": [
            {"from": "user", "value": "1+1?"},
            {"from": "assistant", "value": thought + solution.format(2)},
        ],
    }
    assert turns(read([row])[0]) == [("user", "1+1?", None, None), ("assistant", "2", "hm", None)]
    row["conversations"][1]["value"] = thought.removesuffix("<|end_of_thought|>\n\n")
    assert [role for role, *_ in turns(read([row])[0])] == ["system", "user", "assistant"]


def test_nulls_that_a_table_invents_are_no_arguments_and_those_of_json_text_are() -> None:
    rows = [
        {
            "messages": [
                {"role": "user", "content": "x"},
                {"role": "assistant", "tool_calls": [{"name": "f", "arguments": arguments}]},
            ]
        }
        for arguments in ({"a": 1}, {"b": [{"c": 2}]})
    ]
    assert [turns(read(rows)[0], row)[1][3] for row in (0, 1)] == [[("f", '{"a":1}')], [("f", '{"b":[{"c":2}]}')]]
    for message_row in rows:
        message_row["messages"][1]["tool_calls"] = json.dumps([{"name": "f", "arguments": {"a": None}}])
    assert turns(read(rows)[0])[1][3] == [("f", '{"a":null}')]


def test_an_empty_table_in_a_named_format_yields_nothing() -> None:
    empty = raw([{"question": "x", "answer": "y"}]).head(0)
    conversations, aside = convert(empty, source="s", revision="r", kind="chat", format="question_answer", columns=None)
    assert (conversations.height, aside.height) == (0, 0)
    assert conversations.schema == pl.Schema(CONVERSATION)


def test_many_rows_keep_their_numbers() -> None:
    rows = [{"question": f"q{n}", "answer": None if n % 1000 == 7 else f"a{n}"} for n in range(45_000)]
    conversations, aside = read(rows)
    assert aside["source_row"].to_list() == list(range(7, 45_000, 1000))
    assert turns(conversations, -1) == plain(("user", "q44999"), ("assistant", "a44999"))


def oasst(identity: str, parent: str | None, role: str, rank: int | None, **more: Any) -> dict[str, Any]:
    return {"message_id": identity, "parent_id": parent, "role": role, "text": f"text {identity}", "rank": rank, **more}


TREE = [
    oasst("a", None, "prompter", None),
    oasst("b", "a", "assistant", 1),
    oasst("c", "a", "assistant", 0),
    oasst("d", "c", "prompter", 0),
    oasst("e", "d", "assistant", None),
]


def test_open_assistant_trees_give_their_best_path_and_count_every_message() -> None:
    rows = [
        *TREE,
        oasst("f", "e", "prompter", 0),
        oasst("g", "b", "prompter", 0),
        oasst("h", None, "prompter", None),
        oasst("i", "gone", "assistant", 0),
        oasst("j", "a", "assistant", 0, deleted=True),
    ]
    conversations, aside = read(rows)
    assert conversations["source_row"].to_list() == [0]
    assert turns(conversations) == plain(
        ("user", "text a"), ("assistant", "text c"), ("user", "text d"), ("assistant", "text e")
    )
    reasons = dict(aside.select("source_row", "reason").iter_rows())
    expected = ["lower_ranked", "within_conversation", "within_conversation", "within_conversation", "lower_ranked",
                "lower_ranked", "no_reply", "without_parent", "not_reviewed"]  # fmt: skip
    assert reasons == dict(enumerate(expected, start=1))


def test_every_path_of_an_open_assistant_tree_is_a_conversation_where_the_recipe_says_so() -> None:
    rows = [
        *TREE,
        oasst("f", "b", "prompter", 0),
        oasst("b", "a", "assistant", 2),
        oasst("g", "a", "narrator", 3),
    ]
    conversations, aside = read(rows, format="open_assistant_all")
    assert conversations["source_row"].to_list() == [4, 1]
    assert turns(conversations, 1) == plain(("user", "text a"), ("assistant", "text b"))
    reasons = dict(aside.select("source_row", "reason").iter_rows())
    expected = {0: "within_conversation", 2: "within_conversation", 3: "within_conversation"}
    assert reasons == expected | {5: "no_reply", 6: "repeated_id", 7: "no_reply"}


TEXT = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=30).filter(
    lambda t: not t.startswith('[{"')
)
SAID = TEXT.map(str.strip).filter(bool)
NAMES = st.from_regex(r"[a-z_]{1,12}(\.[a-z]{1,5})?", fullmatch=True)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=3),
    max_leaves=5,
)
CALL = st.tuples(NAMES, st.dictionaries(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), VALUES, max_size=3))


@st.composite
def talks(draw: st.DrawFn) -> list[tuple[str, str, str | None, list[tuple[str, dict[str, Any]]] | None]]:
    made: list[tuple[str, str, str | None, list[tuple[str, dict[str, Any]]] | None]] = []
    for _ in range(draw(st.integers(1, 3))):
        made.append(("user", draw(TEXT), None, None))
        if calls := draw(st.lists(CALL, max_size=2)):
            made.append(("assistant", "", None, calls))
            made += [("tool", draw(TEXT), None, None) for _ in calls]
        made.append(("assistant", draw(SAID), draw(st.none() | SAID), None))
    return made


def canonical(talk: Iterable[tuple[str, str, str | None, Any]], thinking: bool = True) -> list[Turn]:
    def text(arguments: dict[str, Any]) -> str:
        return json.dumps(arguments, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    return [
        (role, content, thought if thinking else None, [(name, text(a)) for name, a in calls] if calls else None)
        for role, content, thought, calls in talk
    ]


def as_openai(talk: Any) -> dict[str, Any]:
    made = []
    for role, content, thought, calls in talk:
        written = [
            {"id": "x", "type": "function", "function": {"name": n, "arguments": json.dumps(a)}} for n, a in calls or ()
        ]
        made.append(
            {
                "role": role,
                "content": content,
                "reasoning_content": thought,
                "tool_calls": json.dumps(written) if calls else None,
            }
        )
    return {"messages": made}


def as_openai_text(talk: Any) -> dict[str, Any]:
    made = []
    for role, content, thought, calls in talk:
        said = f"<think>\n{thought}\n</think>\n\n{content}" if thought else content
        made.append(
            {
                "role": role,
                "content": [{"type": "text", "text": said}],
                "tool_calls": [{"name": n, "arguments": a} for n, a in calls or ()],
            }
        )
    return {"messages": json.dumps(made)}


def as_sharegpt(talk: Any) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "tool": "observation"}
    made = []
    for role, content, thought, calls in talk:
        made += [{"from": "function_call", "value": json.dumps({"name": n, "arguments": a})} for n, a in calls or ()]
        if not calls:
            said = f"<think>{thought}</think>{content}" if thought else content
            made.append({"from": names[role], "value": said})
    return {"conversations": made, "tools": ""}


def as_hermes(talk: Any) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "tool": "tool"}
    made = [{"from": "system", "value": f"<tools>\n{json.dumps([WEATHER])}\n</tools>"}]
    for role, content, thought, calls in talk:
        blocks = [f"<tool_call>\n{json.dumps({'name': n, 'arguments': a})}\n</tool_call>" for n, a in calls or ()]
        said = f"<think>\n{thought}\n</think>\n" if thought else ""
        made.append({"from": names[role], "value": said + (content or "\n".join(blocks))})
    return {"conversations": made}


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(talk=talks(), write=st.sampled_from([as_openai, as_openai_text, as_sharegpt, as_hermes]))
def test_a_conversation_written_in_a_format_reads_back(talk: Any, write: Callable[[Any], dict[str, Any]]) -> None:
    conversations, aside = read([write(talk)])
    assert aside.height == 0
    assert turns(conversations) == canonical(talk)
