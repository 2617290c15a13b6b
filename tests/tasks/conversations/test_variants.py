"""What data sets hold in the wild, broken rows included: each is converted, or set aside with the reason it deserves.

    python tests/tasks/conversations/test_variants.py

prints the table: format, rows in, converted, and set aside by reason.
"""

# ruff: noqa: E501 - a table reads better with a row to a line

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

from tasks.conversations import convert, detect
from tasks.sources.columns import Columns, frame, observe

Row = dict[str, Any]
WEATHER = {
    "name": "get_weather",
    "description": "Weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
}
TIME = {"name": "get_time", "description": "Time.", "parameters": {"type": "object", "properties": {}}}
GLAIVE = "SYSTEM: You are a helpful assistant with access to the following functions. Use them if required -\n"
ASKED, SAID = "USER: Weather in Oslo?\n\n\n", "ASSISTANT: It is clear. <|endoftext|>\n\n\n"


class Variant(NamedTuple):
    """A row as its data set has it, what it is, and the reason that keeps it out: None where it is converted.

    `calls`: name and arguments of every call that must be read from it.
    """

    about: str
    row: Row
    reason: str | None = None
    calls: list[tuple[str, Row]] | None = None


OSLO = [("get_weather", {"city": "Oslo"})]


def glaive(call: str, system: str | None = None, before: str = ASKED) -> Row:
    chat = f"{before}ASSISTANT: <functioncall> {call} <|endoftext|>\n\n\nFUNCTION RESPONSE: clear\n\n\n{SAID}"
    return {"system": GLAIVE + json.dumps(WEATHER, indent=4) if system is None else system, "chat": chat}


def talk(*turns: tuple[str, Any], **columns: Any) -> Row:
    return {"conversations": [{"from": who, "value": said} for who, said in turns], **columns}


def toolace(said: str, tools: Any = (WEATHER, TIME), *after: tuple[str, str]) -> Row:
    system = (
        "You are an expert in composing functions.\nHere is a list of functions in JSON format that you can invoke:\n"
        + (tools if isinstance(tools, str) else json.dumps(list(tools)))
        + ". \nShould you decide to return the function call(s), put it in the format of [func1(params_name=value)]\n"
    )
    return {"system": system, **talk(("user", "Weather in Oslo?"), ("assistant", said), *after)}


def xlam(answers: Any, tools: Any = (WEATHER,)) -> Row:
    listed = tools if isinstance(tools, str) or tools is None else json.dumps(list(tools))
    return {"id": 1, "query": "Weather in Oslo?", "tools": listed, "answers": answers}


def hermes(*turns: tuple[str, str], tools: Any = (WEATHER,), block: str | None = None) -> Row:
    shown = block if block is not None else json.dumps(list(tools))
    system = (
        "You are a function calling AI model. You are provided with function signatures within <tools></tools> XML tags.\n"
        f"<tools>\n{shown}\n</tools>\nFor each function call return a json object within <tool_call></tool_call> tags."
    )
    return {"id": "1", **talk(("system", system), *turns)}


ASK, ANSWER = ("human", "Weather in Oslo?"), ("gpt", "It is clear.")
RESULT = ("tool", "<tool_response>\nclear\n</tool_response>")
CALL = '{"name": "get_weather", "arguments": {"city": "Oslo"}}'


def omr(solution: Any, problem: Any = "What is 1 + 1?") -> Row:
    return {
        "problem": problem, "generated_solution": solution, "expected_answer": "2", "inference_mode": "cot",
        "problem_type": "has_answer_extracted", "pass_rate_72b_tir": "0.5", "generation_model": "DeepSeek-R1",
    }  # fmt: skip


def oasst(id: str | None, parent: str | None, role: str, text: str | None, **more: Any) -> Row:
    about = {"rank": None, "deleted": False, "review_result": True, "message_tree_id": "t", "lang": "en"}
    return {"message_id": id, "parent_id": parent, "role": role, "text": text, **about, **more}


def said(role: str, content: Any, **more: Any) -> Row:
    return {"role": role, "content": content, **more}


HI, HELLO = said("user", "Hi"), said("assistant", "Hello")
CALLED = [{"id": "1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Oslo"}'}}]


def completion(message: Row, **more: Any) -> Row:
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop", **more}]}


VARIANTS: dict[str, list[Variant]] = {
    "alpaca": [
        Variant("an input", {"instruction": "Add.", "input": "1 + 1", "output": "2", "system": None}),
        Variant("no input", {"instruction": "Who are you?", "input": "", "output": "A model.", "system": "Be brief."}),
        Variant("history", {"instruction": "And you?", "input": None, "output": "Fine.", "history": [["Hi", "Hello"]]}),
        Variant("thinking", {"instruction": "1 + 1?", "input": "", "output": "<think>Easy.</think>2"}),
        Variant("no answer", {"instruction": "Add.", "input": "", "output": None}, "missing_field"),
        Variant("history that is no pairs", {"instruction": "Add.", "input": "", "output": "2", "history": [["Hi"]]}, "history_not_pairs"),
    ],
    "openai": [
        Variant("plain", {"messages": [HI, HELLO]}),
        Variant("typed parts", {"messages": [said("user", [{"type": "text", "text": "Hi"}]), HELLO]}),
        Variant("a call, arguments as text", {"messages": [HI, said("assistant", None, tool_calls=CALLED), said("tool", "clear", tool_call_id="1"), HELLO],
                "tools": [{"type": "function", "function": WEATHER}]}, None, OSLO),
        Variant("arguments as an object", {"messages": [HI, said("assistant", "", tool_calls=[{"function": {"name": "get_weather", "arguments": {"city": "Oslo"}}}])],
                "tools": [WEATHER]}, None, OSLO),
        Variant("the older function_call", {"messages": [HI, said("assistant", None, function_call=json.loads(CALL)), said("function", "clear", name="get_weather"), HELLO],
                "functions": [WEATHER]}, None, OSLO),
        Variant("several calls at once", {"messages": [HI, said("assistant", None, tool_calls=CALLED * 2), said("tool", "a"), said("tool", "b"), HELLO],
                "tools": [WEATHER]}, None, OSLO * 2),
        Variant("messages as JSON text", {"messages": json.dumps([HI, HELLO])}),
        Variant("Anthropic's parts", {"messages": [HI, said("assistant", [{"type": "thinking", "thinking": "hm", "signature": "x"}, {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "1", "name": "get_weather", "input": {"city": "Oslo"}}]),
                said("user", [{"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "clear"}]}, {"type": "text", "text": "And?"}]), HELLO],
                "tools": [{"name": "get_weather", "input_schema": WEATHER["parameters"]}]}, None, OSLO),
        Variant("an image", {"messages": [said("user", [{"type": "image_url", "image_url": {"url": "x"}}]), HELLO]}, "content_not_text"),
        Variant("arguments cut off", {"messages": [HI, said("assistant", None, tool_calls=[{"function": {"name": "get_weather", "arguments": '{"city'}}])]},
                "call_not_json"),
        Variant("an unknown role", {"messages": [HI, said("narrator", "Then")]}, "unknown_role"),
        Variant("an answer of weight 0", {"messages": [HI, said("assistant", "Hello", weight=0)]}, "not_to_be_learnt"),
        Variant("no messages", {"messages": []}, "no_messages"),
    ],
    "request_log": [
        Variant("request and response", {"request": {"messages": [HI]}, "response": completion(HELLO)}),
        Variant("a call", {"request": {"messages": [HI], "tools": [{"type": "function", "function": WEATHER}]},
                "response": completion(said("assistant", None, tool_calls=CALLED))}, None, OSLO),
        Variant("as JSON text", {"request": json.dumps({"messages": [HI]}), "response": json.dumps(completion(HELLO))}),
        Variant("an error", {"request": {"messages": [HI]}, "response": {"error": {"message": "overloaded"}}}, "failed_request"),
        Variant("cut off at its length", {"request": {"messages": [HI]}, "response": completion(HELLO, finish_reason="length")}, "cut_off"),
        Variant("no response", {"request": {"messages": [HI]}, "response": None}, "no_response"),
    ],
    "chatml": [
        Variant("system, user, assistant", {"text": "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello<|im_end|>"}),
        Variant("not closed at its end", {"text": "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nHello"}),
        Variant("a call in tags", {"text": f"<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n<tool_call>{CALL}</tool_call><|im_end|>"}, None, OSLO),
        Variant("text around the turns", {"text": "Once <|im_start|>user\nHi<|im_end|>"}, "not_chatml"),
        Variant("nothing", {"text": None}, "missing_field"),
    ],
    "prompt_completion": [
        Variant("text", {"prompt": "Hi", "completion": "Hello"}),
        Variant("messages", {"prompt": [HI], "completion": [HELLO]}),
        Variant("no completion", {"prompt": "Hi", "completion": None}, "missing_field"),
        Variant("half a message", {"prompt": "Hi", "completion": '[{"role": "assist'}, "messages_not_list"),
    ],
    "question_answer": [
        Variant("text", {"question": "Hi?", "answer": "Hello"}),
        Variant("thinking in its own column", {"question": "1 + 1?", "answer": "2", "thinking": "Easy."}),
        Variant("history", {"question": "And?", "answer": "Fine.", "history": [["Hi", "Hello"]]}),
        Variant("no question", {"question": None, "answer": "Hello"}, "missing_field"),
    ],
    "gsm8k": [
        Variant("a worked solution", {"question": "How many?", "answer": "2 * 3 = <<2*3=6>>6.\n#### 1,006"}),
        Variant("no final answer", {"question": "How many?", "answer": "Six."}, "no_final_answer"),
        Variant("an empty final answer", {"question": "How many?", "answer": "Six.\n#### "}, "no_final_answer"),
    ],
    "glaive": [
        Variant("arguments in single quotes", glaive("""{"name": "get_weather", "arguments": '{"city": "Oslo"}'}"""), None, OSLO),
        Variant("arguments as an object", glaive(CALL), None, OSLO),
        Variant("arguments as JSON text", glaive(json.dumps({"name": "get_weather", "arguments": '{"city": "Oslo"}'})), None, OSLO),
        Variant("quotes within the arguments", glaive("""{"name": "get_weather", "arguments": '{"city": "N\\'Djamena"}'}"""), None,
                [("get_weather", {"city": "N'Djamena"})]),
        Variant("a Python dict", glaive("{'name': 'get_weather', 'arguments': {'city': 'Oslo'}}"), None, OSLO),
        Variant("no arguments", glaive('{"name": "get_time"}'), None, [("get_time", {})]),
        Variant("no functions", {"system": "SYSTEM: You are a helpful assistant, with no access to external functions.",
                                 "chat": ASKED + SAID}, None, []),
        Variant("text before the call", glaive(CALL, before=ASKED + "ASSISTANT: Let me see. <|endoftext|>\n\n\n"), None, OSLO),
        Variant("an observation before any call", glaive(CALL, before="FUNCTION RESPONSE: clear\n\n\n" + ASKED), None, OSLO),
        Variant("a call that is cut off", glaive('{"name": "get_weather", "arguments": \'{"city": "Os'), "call_not_json"),
        Variant("a call without a name", glaive('{"arguments": \'{"city": "Oslo"}\'}'), "call_without_name"),
        Variant("functions that are no JSON", glaive(CALL, GLAIVE + '{"name": "get_weather", '), "tools_not_json"),
        Variant("no turns", {"system": GLAIVE, "chat": "Hello there"}, "not_glaive"),
        Variant("no chat", {"system": GLAIVE, "chat": None}, "missing_field"),
    ],
    "glaive_v1": [
        Variant("functions and a call", {"sample": "SYSTEM: You are an helpful assistant who has access to the following "
                "functions to help the user, you can use the functions if needed-\n" + json.dumps(WEATHER, indent=4)
                + f"\n{ASKED}ASSISTANT: <functioncall> " + """{"name": "get_weather", "arguments": '{"city": "Oslo"}'}"""
                + f"<|endoftext|>\n\n\nFUNCTION RESPONSE: clear\n\n\n{SAID}"}, None, OSLO),
        Variant("no functions", {"sample": f"SYSTEM: You are a helpful assistant.\n{ASKED}{SAID}"}, None, []),
        Variant("no turns", {"sample": "SYSTEM: You are a helpful assistant."}, "not_glaive"),
        Variant("nothing", {"sample": None}, "missing_field"),
    ],
    "toolace": [
        Variant("one call", toolace('[get_weather(city="Oslo")]'), None, OSLO),
        Variant("several calls and their results", toolace('[get_weather(city="Oslo"), get_time()]', (WEATHER, TIME),
                ("tool", '[{"sky": "clear"}, {"time": "noon"}]'), ("assistant", "Clear at noon.")), None, [*OSLO, ("get_time", {})]),
        Variant("names with spaces and slashes", toolace("[Market Trends/API v2(trend_type='GAINERS', limit=3)]"), None,
                [("Market Trends/API v2", {"trend_type": "GAINERS", "limit": 3})]),
        Variant("nested values", toolace('[get_weather(city="a, b) = c", at={"x": [1, {"y": null}]}, ok=True)]'), None,
                [("get_weather", {"city": "a, b) = c", "at": {"x": [1, {"y": None}]}, "ok": True})]),
        Variant("an answer in text", toolace("Which city do you mean (Oslo or Rome)?"), None, []),
        Variant("functions null", toolace("Hello.", "null"), "tools_not_json"),
        Variant("no functions", toolace("Hello.", "[]"), None, []),
        Variant("positional arguments", toolace('[get_weather("Oslo")]'), "call_not_readable"),
        Variant("not closed", toolace('[get_weather(city="Oslo]'), "call_not_readable"),
        Variant("functions cut off", toolace("Hello.", '[{"name": "get_weather", "desc'), "tools_not_json"),
        Variant("a tool without a name", toolace("Hello.", [{"description": "?"}]), "tools_not_schema"),
        Variant("an unknown speaker", toolace("Hello.", (WEATHER,), ("narrator", "Then")), "unknown_role"),
    ],
    "xlam": [
        Variant("calls as JSON text", xlam(f"[{CALL}]"), None, OSLO),
        Variant("several calls", xlam(f'[{CALL}, {{"name": "get_time", "arguments": {{}}}}]'), None, [*OSLO, ("get_time", {})]),
        Variant("arguments as text", xlam(json.dumps([{"name": "get_weather", "arguments": '{"city": "Oslo"}'}])), None, OSLO),
        Variant("tools as Python types", xlam(f"[{CALL}]", [{"name": "get_weather", "description": "",
                "parameters": {"city": {"type": "str, optional", "description": "?", "default": ""}}}]), None, OSLO),
        Variant("no tools", xlam(f"[{CALL}]", "[]"), None, OSLO),
        Variant("no call to make", xlam("[]"), None, []),
        Variant("cut off", xlam('[{"name": "get_weather", "arg'), "call_not_json"),
        Variant("a list for arguments", xlam('[{"name": "get_weather", "arguments": ["Oslo"]}]'), "call_not_json"),
        Variant("tools cut off", xlam(f"[{CALL}]", '[{"name": '), "tools_not_json"),
        Variant("no query", {**xlam(f"[{CALL}]"), "query": None}, "missing_field"),
    ],
    "hermes": [
        Variant("one call", hermes(ASK, ("gpt", f"<tool_call>\n{CALL}\n</tool_call>"), RESULT, ANSWER), None, OSLO),
        Variant("a Python dict", hermes(ASK, ("gpt", f"<tool_call>\n{json.loads(CALL)}\n</tool_call>"), RESULT, ANSWER), None, OSLO),
        Variant("several calls and results in one turn", hermes(ASK, ("gpt", f"<tool_call>\n{CALL}\n</tool_call>\n" * 2),
                ("tool", RESULT[1] + "\n" + RESULT[1]), ANSWER), None, OSLO * 2),
        Variant("a scratch pad before the call", hermes(ASK, ("gpt", f"I look.\n<tool_call>{CALL}</tool_call>"), RESULT, ANSWER), None, OSLO),
        Variant("arguments as text", hermes(ASK, ("gpt", "<tool_call>" + json.dumps({"name": "get_weather",
                "arguments": '{"city": "Oslo"}'}) + "</tool_call>"), RESULT, ANSWER), None, OSLO),
        Variant("tools one a line", hermes(ASK, ANSWER, block=f"{json.dumps(WEATHER)}\n{json.dumps(TIME)}"), None, []),
        Variant("tools as Python's literals", hermes(ASK, ANSWER, block=str([WEATHER])), None, []),
        Variant("tools as Python's literals, one a line", hermes(ASK, ANSWER, block=f"{WEATHER}\n{TIME}"), None, []),
        Variant("tools in a column too", {**hermes(ASK, ANSWER, block="[{'name': get_we"), "tools": json.dumps([WEATHER])}, None, []),
        Variant("empty tools", hermes(ASK, ANSWER, block="[]"), None, []),
        Variant("not closed", hermes(ASK, ("gpt", f"<tool_call>\n{CALL}")), "call_not_closed"),
        Variant("no JSON", hermes(ASK, ("gpt", "<tool_call>get_weather(Oslo)</tool_call>")), "call_not_json"),
        Variant("tools cut off", hermes(ASK, ANSWER, block='[{"name": "get_we'), "tools_not_json"),
    ],
    "open_assistant": [
        Variant("the prompt", oasst("1", None, "prompter", "Hi")),
        Variant("the best reply", oasst("2", "1", "assistant", "Hello!", rank=0), "within_conversation"),
        Variant("a worse reply", oasst("3", "1", "assistant", "What?", rank=1), "lower_ranked"),
        Variant("a deleted reply", oasst("4", "1", "assistant", "No.", rank=0, deleted=True), "not_reviewed"),
        Variant("a reply that the review refused", oasst("5", "1", "assistant", "Bad.", review_result=False), "not_reviewed"),
        Variant("an answer to a deleted reply", oasst("6", "4", "prompter", "Why?"), "lower_ranked"),
        Variant("an answer to nothing", oasst("7", "absent", "assistant", "So."), "without_parent"),
        Variant("a question back", oasst("8", "2", "prompter", "And?"), "lower_ranked"),
        Variant("a repeated id", oasst("2", "1", "assistant", "Hello!", rank=0), "repeated_id"),
        Variant("a prompt that nobody answered", oasst("9", None, "prompter", "Anyone?"), "no_reply"),
        Variant("a prompt without text", oasst("10", None, "prompter", None), "missing_field"),
        Variant("its answer", oasst("11", "10", "assistant", "Yes."), "within_conversation"),
    ],
    "open_math_reasoning": [
        Variant("thinking and answer", omr("<think>\nEasy.\n</think>\n\n\\boxed{2}")),
        Variant("no thinking (genselect)", omr("Solution 1 is right.\n\nJudgment: 1")),
        Variant("code within the thinking (tir)", omr("<think>\n<tool_call>\nprint(1 + 1)\n</tool_call>\n```output\n2\n```\n</think>\n\\boxed{2}"),
                "with_interpreter"),
        Variant("a problem alone (additional_problems)", omr("n/a"), "no_solution"),
        Variant("thinking that is not closed: the gate sets it aside", omr("<think>\nEasy, but it never")),
        Variant("thinking that is closed twice: the gate sets it aside", omr("<think>\nEasy.\n</think>\nSo</think> \\boxed{2}")),
        Variant("no solution", omr(None), "missing_field"),
        Variant("no problem", omr("<think>\n?\n</think>\n2", None), "missing_field"),
    ],
    "sharegpt": [
        Variant("FineTome: source and score beside", talk(ASK, ANSWER, source="x", score=5.2)),
        Variant("weights a turn", {"conversations": [{"from": "human", "value": "Hi", "weight": 0}, {"from": "gpt", "value": "Hello", "weight": 1}]}),
        Variant("an answer that must not be learnt", {"conversations": [{"from": "human", "value": "Hi", "weight": 0}, {"from": "gpt", "value": "Hello", "weight": 0}]},
                "not_to_be_learnt"),
        Variant("marked thought (OpenThoughts)", talk(ASK, ("gpt", "<|begin_of_thought|>\n\nhm\n\n<|end_of_thought|>\n\n<|begin_of_solution|>\n\nOslo\n\n<|end_of_solution|>"))),
        Variant("a system turn", talk(("system", "Be brief."), ASK, ANSWER)),
        Variant("function_call and observation", talk(ASK, ("function_call", CALL), ("observation", "clear"), ANSWER,
                tools=json.dumps([WEATHER])), None, OSLO),
        Variant("a list of calls", talk(ASK, ("function_call", f"[{CALL}]"), ("observation", "clear"), ANSWER, tools=""), None, OSLO),
        Variant("observation before any call", talk(ASK, ("observation", "clear"), ANSWER, tools="[]")),
        Variant("a call that is no JSON", talk(ASK, ("function_call", "get_weather(Oslo)"), tools="null"), "call_not_json"),
        Variant("an unknown speaker", talk(ASK, ("narrator", "Then")), "unknown_role"),
        Variant("no turns", talk(), "no_messages"),
        Variant("text null", talk(ASK, ("gpt", None))),
    ],
}  # fmt: skip


def table(rows: list[Row]) -> pl.DataFrame:
    columns: Columns = {}
    observe(columns, rows)
    return frame(columns, rows).with_columns(source_row=pl.int_range(pl.len(), dtype=pl.Int64))


@pytest.mark.parametrize("name", VARIANTS)
def test_every_row_is_converted_or_set_aside_for_the_right_reason(name: str) -> None:
    variants = VARIANTS[name]
    raw = table([variant.row for variant in variants])
    assert detect(raw) == name
    rows, aside = convert(raw, source="s", revision="r", kind="chat", format=name)
    assert rows.height + aside.height == raw.height
    reasons = dict(aside.select("source_row", "reason").iter_rows())
    assert {v.about: reasons.get(n) for n, v in enumerate(variants)} == {v.about: v.reason for v in variants}
    for number, messages in rows.select("source_row", "messages").iter_rows():
        if (expected := variants[number].calls) is not None:
            calls = [(c["name"], json.loads(c["arguments"])) for m in messages for c in m["tool_calls"] or ()]
            assert calls == expected, variants[number].about


def main() -> None:
    print(f"{'format':22} {'rows':>5} {'converted':>9}  set aside")
    for name, variants in VARIANTS.items():
        rows, aside = convert(table([v.row for v in variants]), source="", revision="", kind="chat", format=name)
        reasons = ", ".join(f"{reason} {count}" for reason, count in Counter(aside["reason"]).most_common())
        print(f"{name:22} {len(variants):5} {rows.height:9}  {reasons}")


if __name__ == "__main__":
    main()
