"""Conversations to try the row rules on: clean ones of many sorts, and classes of defects to plant in them.

`clean(kind, n, seed)` makes conversations that no rule has a reason to set aside, with what rules like
to stumble over: code with braces, LaTeX, Chinese, right-to-left scripts, emoji joined from several,
French capitals before guillemets, letters, tables, apologies that are no refusals. `DEFECTS` states each
class: what it is, the rule meant for it, the kinds it occurs in, and how a clean row is spoilt.
"""

# ruff: noqa: E501 - tables read better with a class to a line
from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from tasks.conversations import CONVERSATION
from tasks.recipe import Quality, Sensitive

Row = dict[str, Any]
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<tool_call>", "</tool_call>", "<think>", "</think>", "  ")
MAX_LENGTH = 4096
# Every detector that a recipe can ask for. The clean conversations are in many languages.
ALL = Quality(
    languages=("en", "zh", "ja", "ko", "ar", "fa", "he", "hi", "th", "fr", "de", "pt", "is", "ru", "el", "nl"),
    sensitive=Sensitive(
        **dict.fromkeys(
            ("secret", "email_address", "phone_number", "payment_card", "bank_account", "national_id"), "set aside"
        ),
        phone_regions=("US", "DE"),
    ),
)

PARAMETERS = {
    "get_weather": {"city": "string", "days": "integer"},
    "add_event": {"title": "string", "hour": "integer"},
    "convert": {"amount": "number", "to": "string"},
}
TOOLS = json.dumps(
    [
        {
            "type": "function",
            "function": {
                "name": name,
                "description": f"Calls {name}.",
                "parameters": {
                    "type": "object",
                    "properties": {field: {"type": of} for field, of in fields.items()},
                    "required": sorted(fields),
                    "additionalProperties": False,
                },
            },
        }
        for name, fields in PARAMETERS.items()
    ],
    sort_keys=True,
    separators=(",", ":"),
)

# Question, answer; {n} and {w} vary by row. Every one is as a careful writer would leave it.
CHAT = (
    ("What is the capital of {w}?", "The capital of {w} is town number {n}."),
    ("Say hello to {w}.", "Hello, {w}! 👋 How are you today?"),
    ("Hi {n}", "Hi! What can I do for you?"),
    ("Thanks!", "You're welcome!"),
    ("Goodbye!", "Goodbye!"),
    ("Name {n} colours, {w}.", "- red\n- green\n- blue and a little {w}"),
    ("Only the number, {w}: what is {n} plus 1?", "{n1}"),
    ("Which city, {w}? Answer with the name only. ({n})", "Paris"),
    ("Who is {w}?", "{w} is somebody I have not met. Number {n} on the list, perhaps."),
    ("Show a loop over {n} items.", "Here it is:\n\n```python\nfor i in range({n}):\n    print(f\"{{i}} of {w}\")\n```\n\nIt prints {n} lines."),
    ("How do I show a name in Vue? ({w} {n})", "Put `{{{{ name }}}}` into the template:\n\n```html\n<p>Hello {{{{ user.name }}}}, you have &nbsp; {n}</p>\n```"),
    ("What does `git checkout <your branch>` do, {w} {n}?", "It switches to that branch: `git checkout <your-branch>` moves HEAD."),
    ("Write the fraction of {n} in LaTeX, {w}.", "$$\\frac{{{{a}}^{{2}}}}{{{{b}}_{{n}}}} + x_{{{{i}}}} = {n}$$"),
    ("Solve x^2 = {n}, {w}.", "We have $x = \\pm\\sqrt{{{n}}}$, so there are two solutions."),
    ("写一句关于{w}的话（{n}）。", "{w}是一个美丽的地方，每年有{n}位客人来到这里，大家都很喜欢。"),
    ("{n}を日本語で説明してください、{w}。", "{w}さん、これは{n}という数です。とても便利ですね。"),
    ("한국어로 {n}번 인사해 주세요, {w}.", "안녕하세요, {w}님! 반갑습니다."),
    ("اكتب جملة عن {w} رقم {n}.", "هذه جملة عن {w}\u200f، ورقمها {n}."),
    ("جمله‌ای درباره {w} بنویس {n}", "این یک جمله است که می‌گوید {w} خوب است."),
    ("כתוב משפט על {w} {n}.", "זה משפט על {w}\u200e ומספרו {n}."),
    ("{w} के बारे में लिखो {n}", "यह {w} के बारे में एक वाक्य है, क्\u200dष और क्षत्रिय सहित।"),
    ("เขียนเกี่ยวกับ {w} {n}", "ประโยค\u200bนี้\u200bเกี่ยวกับ {w} และเลข {n}"),
    ("Écrivez en capitales : {w} ({n}).", "« LIBERTÉ », « ÉGALITÉ » et «FRATERNITÉ» : voilà… la devise de {w}, à la fin."),
    ("Schreib etwas über {w} ({n}).", "Größe, Äpfel, Öl und Übermut: Das gefällt {w}. „Schön“, sagt er – und geht."),
    ("Fale de São Paulo, {w} {n}.", "SÃO PAULO É GRANDE; «CORAÇÃO» e “AMANHÔ são palavras de {w}."),
    ("Skrifaðu um {w} ({n}).", "Það er gott veður í dag, og {w} er glaður."),
    ("Расскажи о {w} ({n}).", "РОССИЯ — большая страна. {w} едет туда на поезде номер {n}."),
    ("Γράψε για {w} ({n}).", "Η Ελλάδα είναι όμορφη, λέει ο {w}."),
    ("Vertel over {w} en Noël ({n}).", "Noël, naïef, coëfficiënt en façade: {w} spelt ze allemaal goed."),
    ("Send {w} a family emoji ({n}).", "👨‍👩‍👧‍👦 and 👩🏽‍💻, ❤️‍🔥, 🏳️‍🌈, 🏴\U000e0067\U000e0062\U000e0065\U000e006e\U000e0067\U000e007f and 1️⃣ for {w}!"),
    ("Where are the docs of {w}? ({n})", "See https://docs.example.org/{w}?page={n}&amp=1#top, or write to help@example.com."),
    ("I lost my keys, {w}. ({n})", "I'm sorry to hear that. Have you looked under the sofa? That is where {w} found them."),
    ("Is the museum open on day {n}, {w}?", "Unfortunately, the museum is closed on that day. It opens again on the next."),
    ("Do you like {w}? ({n})", "I can't help but smile at {w}. There is a lot to like."),
    ("Why can't {w} fly? ({n})", "It cannot fly because its wings are too small; it can run, though."),
    ("What is a language model, {w}? ({n})", "A language model predicts the next token. As language models grow, so does their memory."),
    ("Who are you, {w}? ({n})", "As a language model, I go by the name of {w}, and I like questions."),
    ("Draft a short letter to {w} ({n}).", "Dear {w},\n\nThank you for letter {n}.\n\nKind regards,\n[Your Name]"),
    ("Give {w} a table ({n}).", "| name | n |\n|---|---:|\n| {w} | {n} |"),
    ("A haiku for {w} ({n})", "Old pond of {w}\na frog jumps in at noon\n{n} rings on the water"),
    ("What is 5 < 7 and 8 > {n}, {w}?", "5 < 7 holds, and 8 > {n} depends on {n}. [1] See the note & the table."),
    ("Repeat after me: {w} {n}", "{w} {n}"),
    ("What is the JSON of {w}? ({n})", '{{"name": "{w}", "n": {n}, "tags": ["a", "b"]}}'),
    ("Where do I begin, {w}? ({n})", "First [add a user](https://docs.example.org/{n}), then [put it into a group](https://docs.example.org/{w})."),
    ("How do I set the path, {w}? ({n})", "Run export PATH=\"${{HOME}}/bin:${{PATH}}\" and open a new shell; then run it {n} times."),
    ("A letter to [insert name], {w}, wrapped as <<your answer>> ({n}).", "<<Dear {w}, letter {n} is on its way.>>"),
    ("A title for the history of {w} ({n})", "The Long Walk Home: A Short History of {w} and the People Around the Lake"),
    ("Two lines on {w} ({n})", "And in the morning {w} goes down to the water\nand all of the boats that he counts come to {n}"),
    ("What is the logarithm of 2, {w}? ({n})", "It is 0.693147, and half of it is 0.346574."),
    ("How shall a letter end, {w}? ({n})", "After the name there is room for one more thought, which begins with P.S or even with P.P.S"),
    ("Show settings of {w}, nested ({n}).", "\n".join(f"{'    ' * (2 + i % 9)}{'abcdefghijklmnopqrstuvwxyz'[i % 26]}{i}: {{w}}" for i in range(30))),
    ("A frame around {w} ({n})", "+---------------------------+\n| {w} is in it              |\n" * 1 + "+---------------------------+\n|                           |\n" * 12 + "| {n} |"),
    ("Explain tabs to {w}.\r\nBriefly. ({n})", "A tab\tis one character.\r\nIt is not {n} spaces."),
    ("List squares up to {n} for {w}.", "1, 4, 9, 16, 25, 36, 49, 64, 81, 100, 121, 144, 169, 196, 225, 256, 289, 324, 361, 400, 441, 484, 529, 576, 625, 676, 729, 784, 841, 900, 961, 1024, 1089, 1156, 1225, 1296, 1369, 1444, 1521, 1600, 1681, 1764, 1849, 1936, 2025, 2116, 2209, 2304, 2401, 2500, and so on to {n}."),
)  # fmt: skip
PROSE = (
    "Rivers carry water from the hills to the sea, and {w} has walked along {n} of them. Most are slow near the end.",
    "A loaf needs flour, water, salt and time. {w} bakes {n} a week, and none of them is quite like another.",
    "The night train leaves at ten. It reaches the coast before breakfast, says {w}, and carriage {n} has the best view.",
)
WORDS = (
    "Ada",
    "Bruno",
    "Chiara",
    "Dmitri",
    "Elif",
    "Farid",
    "Greta",
    "Hiro",
    "Ines",
    "Jamal",
    "Kira",
    "Lena",
    "Mo",
    "Nia",
)


def clean(kind: str, n: int, seed: int = 0) -> list[Row]:
    """`n` conversations of a kind, no two alike."""
    rng = random.Random(f"{kind}-{seed}")
    return [_MAKERS[kind](rng, i) for i in range(n)]


def _chat(rng: random.Random, i: int) -> Row:
    messages = []
    if rng.random() < 0.3:
        messages.append(turn("system", f"You are brief. This is conversation {i}."))
    for _ in range(rng.choice((1, 1, 2, 3))):
        if rng.random() < 0.6:
            question, answer = "Tell me something about rivers, bread or trains, {w}; number {n}.", rng.choice(PROSE)
        else:
            question, answer = rng.choice(CHAT)
        names = {"n": i, "n1": i + 1, "w": rng.choice(WORDS)}
        messages += [turn("user", question.format(**names)), turn("assistant", answer.format(**names))]
    # One turn that no other conversation has.
    messages[-2]["content"] += f" #{i}"
    return {"kind": "chat", "messages": messages, "tools": None}


def _reasoning(rng: random.Random, i: int) -> Row:
    a, b = rng.randrange(1000), i
    thought = f"Let me add {a} and {b}.\n{a} + {b} = {a + b}. Let me check: {a + b} - {b} = {a}. Right."
    answer = rng.choice(
        (
            f"The sum is {a + b}.",
            f"#### {a + b}",
            f"$\\boxed{{{a + b}}}$",
            f"Adding them gives {a + b}, and that is the answer.",
        )
    )
    return {
        "kind": "reasoning",
        "messages": [turn("user", f"What is {a} + {b}?"), turn("assistant", answer, thinking=thought)],
        "tools": None,
    }


def _tool(rng: random.Random, i: int) -> Row:
    name = rng.choice(sorted(PARAMETERS))
    values = {"string": rng.choice(WORDS), "integer": i, "number": i / 2}
    arguments = {field: values[of] for field, of in PARAMETERS[name].items()}
    messages = [
        turn("user", f"Please run {name} for {rng.choice(WORDS)}, request {i}."),
        turn("assistant", "", calls=[(name, json.dumps(arguments, sort_keys=True, separators=(",", ":")))]),
        turn("tool", json.dumps({"ok": True, "n": i})),
        turn("assistant", f"Done: {name} answered request {i}. Is there anything else that you need?"),
    ]
    if rng.random() < 0.1:
        messages = [
            turn("user", f"Order me {i} pizzas."),
            turn(
                "assistant", "I'm sorry, but I can't order pizza. I can tell the weather, add events and convert money."
            ),
        ]
    return {"kind": "tool", "messages": messages, "tools": TOOLS}


_MAKERS = {"chat": _chat, "reasoning": _reasoning, "tool": _tool}


def turn(
    role: str, content: str | None, thinking: str | None = None, calls: Sequence[tuple[str, str]] | None = None
) -> Row:
    return {
        "role": role,
        "content": content,
        "thinking": thinking,
        "tool_calls": [{"name": name, "arguments": arguments} for name, arguments in calls] if calls else None,
        "tool_call_id": None,
    }


def frames(rows: Sequence[Row]) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Rows as conversations (schema CONVERSATION) and as rendering them would come out, lengths guessed from the text."""
    contents = [json.dumps([row["kind"], row["messages"], row["tools"]], sort_keys=True) for row in rows]
    ids = [hashlib.sha256(content.encode("utf-8", "surrogatepass")).hexdigest()[:32] for content in contents]
    conversations = pl.DataFrame(
        {
            "row_id": ids,
            "source": ["corpus"] * len(rows),
            "revision": ["0"] * len(rows),
            "source_row": list(range(len(rows))),
            **{column: [row[column] for row in rows] for column in ("kind", "messages", "tools")},
        },
        schema=CONVERSATION,
    )
    rendered = pl.DataFrame(
        {
            "row_id": ids,
            "problem": [row.get("problem") for row in rows],
            "tokens": [row.get("tokens", len(content) // 4) for row, content in zip(rows, contents, strict=True)],
            "supervised_tokens": [row.get("supervised_tokens", 8) for row in rows],
        },
        schema={"row_id": pl.String, "problem": pl.String, "tokens": pl.Int32, "supervised_tokens": pl.Int32},
    )
    return conversations, rendered


@dataclass(frozen=True)
class Defect:
    """One class: `what` it is, the `rule` meant for it, the kinds it occurs in, and how a copy of a row is spoilt."""

    what: str
    rule: str
    kinds: tuple[str, ...]
    spoil: Callable[[Row, random.Random], None]
    private: str = ""  # what no message may show


ANY, CHATTY, TALK = ("chat", "reasoning", "tool"), ("chat", "reasoning"), ("chat",)


def _last(row: Row) -> Row:
    return row["messages"][-1]


def _say(text: str) -> Callable[[Row, random.Random], None]:
    """The last answer is replaced."""

    def spoil(row: Row, rng: random.Random) -> None:
        _last(row)["content"] = text

    return spoil


def _slip(text: str, role: str = "assistant") -> Callable[[Row, random.Random], None]:
    """A text slips in among the words of a turn of a role; not into code, where much of it would be right."""

    def spoil(row: Row, rng: random.Random) -> None:
        said = next(m for m in reversed(row["messages"]) if m["role"] == role)
        words = (said["content"] or "").split(" ")
        words.insert(rng.choice((0, len(words))) if "`" in said["content"] else rng.randrange(len(words) + 1), text)
        said["content"] = " ".join(words)

    return spoil


def _change(**fields: Any) -> Callable[[Row, random.Random], None]:
    def spoil(row: Row, rng: random.Random) -> None:
        row.update(fields)

    return spoil


def _turns(change: Callable[[list[Row]], list[Row]]) -> Callable[[Row, random.Random], None]:
    def spoil(row: Row, rng: random.Random) -> None:
        row["messages"] = change(row["messages"])

    return spoil


def _calling(name: str, arguments: str) -> Callable[[Row, random.Random], None]:
    """The row becomes a call, its result and an answer."""

    def spoil(row: Row, rng: random.Random) -> None:
        row["messages"] = [
            row["messages"][0],
            turn("assistant", "", calls=[(name, arguments)]),
            turn("tool", "{}"),
            turn("assistant", "It is done, and all went well."),
        ]

    return spoil


def _cut(row: Row, rng: random.Random) -> None:
    text = "The plan has three parts. First we gather the wood, then we build the frame, and at the end we paint all of it with"
    _last(row)["content"] = text[: rng.choice((len(text), text.index(", and"), text.index(" it with")))]


def _mojibake(row: Row, rng: random.Random) -> None:
    word = rng.choice(
        ("déjà vu", "it’s — “so”", "naïve café", "Größe", "你好，世界", "こんにちは", "🙂", "£5 · 20 °C", "año")
    )
    _slip(word.encode().decode(rng.choice(("cp1252", "latin-1")), errors="replace").replace("\ufffd", "\u0081"))(
        row, rng
    )


def _tools_with(name: str, twice: bool = False) -> str:
    entries = json.loads(TOOLS)
    added = copy.deepcopy(entries[0])
    added["function"]["name"] = name
    return json.dumps([*entries, added, added] if twice else [*entries, added])


GOOD = '{"city":"Rome","days":2}'
DEFECTS: dict[str, Defect] = {
    "no turns": Defect("an empty conversation", "turn_order", ANY, _turns(lambda m: [])),
    "assistant first": Defect("the assistant speaks first", "turn_order", ANY, _turns(lambda m: [turn("assistant", "Hello, I am here."), *m])),
    "two users": Defect("two user turns in a row", "turn_order", CHATTY, _turns(lambda m: [*m[:-1], turn("user", "Are you there?"), m[-1]])),
    "two assistants": Defect("two assistant turns in a row", "turn_order", CHATTY, _turns(lambda m: [*m, turn("assistant", "And another thing.")])),
    "late system": Defect("a system turn in the middle", "turn_order", CHATTY, _turns(lambda m: [*m, turn("system", "Be kind."), *m[-2:]])),
    "two systems": Defect("two system turns", "turn_order", CHATTY, _turns(lambda m: [turn("system", "A."), turn("system", "B."), *[x for x in m if x["role"] != "system"]])),
    "unknown role": Defect("a role nobody knows", "turn_order", CHATTY, _turns(lambda m: [*m, turn("critic", "Bad."), turn("assistant", "Oh.")])),
    "null role": Defect("a turn without a role", "turn_order", CHATTY, _turns(lambda m: [*m, turn(None, "Bad."), turn("assistant", "Oh.")])),  # type: ignore[arg-type]
    "ends on user": Defect("nobody answers", "ends_on_assistant", ANY, _turns(lambda m: [*m, turn("user", "And then?")])),
    "ends on result": Defect("the answer after the result is lost", "ends_on_assistant", ("tool",), _turns(lambda m: [m[0], turn("assistant", "", calls=[("get_weather", GOOD)]), turn("tool", "{}")])),
    "empty answer": Defect("an empty answer", "empty_answer", ANY, _say("")),
    "null answer": Defect("a null answer", "empty_answer", ANY, lambda row, rng: _last(row).update(content=None)),
    "blank answer": Defect("an answer of white space, wide and no-break too", "empty_answer", ANY, _say(" \n\u3000\u00a0\t")),
    "thinking only": Defect("thinking with no answer", "empty_answer", ("reasoning",), _say("")),
    "empty question": Defect("an empty user turn", "empty_question", CHATTY, lambda row, rng: row["messages"][-2].update(content=" ")),
    "end token in answer": Defect("an end-of-turn token in an answer", "special_token", ANY, _slip("<|im_end|>")),
    "start token in question": Defect("a turn opened inside a user's text", "special_token", ANY, _slip("<|im_start|>assistant", "user")),
    "end of text": Defect("an end-of-text token glued to a word", "special_token", ANY, lambda row, rng: _last(row).update(content=f"{_last(row)['content']}<|endoftext|>")),
    "token in thinking": Defect("a special token in the thinking", "special_token", ("reasoning",), lambda row, rng: _last(row).update(thinking="So<|im_end|> it is.")),
    "other thoughts": Defect("the tags of thinking that another model writes", "foreign_token", CHATTY, _slip("<|begin_of_thought|> Hm. <|end_of_thought|>")),
    "other turns": Defect("turns of another model's template", "foreign_token", CHATTY, _slip("[INST] And then? [/INST]", "user")),
    "DeepSeek's turns": Defect("DeepSeek's tokens, which have wide bars", "foreign_token", CHATTY, _slip("<｜end▁of▁sentence｜>")),
    "unclosed think": Defect("thinking that is never closed", "think_unclosed", ANY, _say("<think>Let me see. It is 4. The answer is 4.")),
    "unopened think": Defect("thinking that was never opened", "think_unopened", ANY, _say("Let me see.</think>It is 4.")),
    "nested think": Defect("thinking within thinking", "think_nested", ANY, _say("<think>a<think>b</think>c</think>It is 4.")),
    "nested in the field": Defect("a tag within extracted thinking", "think_nested", ("reasoning",), lambda row, rng: _last(row).update(thinking="Let me <think> see.")),
    "second think": Defect("thinking after the answer", "think_repeated", ANY, _say("It is 4. <think>Was it?</think> Yes.")),
    "user thinks": Defect("thinking in a user's turn", "think_outside_assistant", ANY, _slip("<think>hm</think>", "user")),
    "chat thinks": Defect("thinking where the kind forbids it", "thinking_forbidden", TALK, lambda row, rng: _last(row).update(thinking="Let me see.")),
    "no thinking": Defect("no thinking where the kind demands it", "thinking_missing", ("reasoning",), lambda row, rng: _last(row).update(thinking=None)),
    "blank thinking": Defect("thinking of white space", "thinking_missing", ("reasoning",), lambda row, rng: _last(row).update(thinking="\n\n")),
    "tools no JSON": Defect("declared tools that are no JSON", "tools_malformed", ("tool",), _change(tools="[{'name': 'x'}]")),
    "tools no list": Defect("declared tools that are an object", "tools_malformed", ("tool",), _change(tools='{"name":"get_weather"}')),
    "tool without name": Defect("a declared tool without a name", "tools_malformed", ("tool",), _change(tools='[{"type":"function","function":{"parameters":{}}}]')),
    "tool twice": Defect("a tool declared twice", "duplicate_tool", ("tool",), _change(tools=_tools_with("twin", twice=True))),
    "name with spaces": Defect("a tool name with spaces", "tool_name", ("tool",), _change(tools=_tools_with("get the weather"))),
    "name with quote": Defect("a tool name with a quote", "tool_name", ("tool",), _change(tools=_tools_with('get"weather'))),
    "endless name": Defect("a tool name of 80 characters", "tool_name", ("tool",), _change(tools=_tools_with("g" * 80))),
    "invented tool": Defect("a call of a tool that nobody declared", "undeclared_tool", ("tool",), _calling("delete_everything", "{}")),
    "tools lost": Defect("calls without any declared tools", "undeclared_tool", ("tool",), lambda row, rng: (_calling("get_weather", GOOD)(row, rng), row.update(tools=None))[0]),
    "broken arguments": Defect("arguments that are cut off", "arguments_not_json", ("tool",), _calling("get_weather", '{"city":"Rome","da')),
    "arguments a list": Defect("arguments that are no object", "arguments_not_json", ("tool",), _calling("get_weather", '["Rome",2]')),
    "arguments null": Defect("a call without arguments", "arguments_not_json", ("tool",), _calling("get_weather", None)),  # type: ignore[arg-type]
    "wrong type": Defect("an argument of the wrong type", "arguments_schema", ("tool",), _calling("get_weather", '{"city":"Rome","days":"two"}')),
    "missing argument": Defect("a required argument is missing", "arguments_schema", ("tool",), _calling("get_weather", '{"city":"Rome"}')),
    "invented argument": Defect("an argument that is not declared", "arguments_schema", ("tool",), _calling("get_weather", '{"city":"Rome","days":2,"mood":"good"}')),
    "user calls": Defect("a user turn that calls a tool", "call_outside_assistant", ("tool",), lambda row, rng: row["messages"][0].update(tool_calls=[{"name": "get_weather", "arguments": GOOD}])),
    "result without call": Defect("a tool result that answers nothing", "observation_without_call", ("tool",), _turns(lambda m: [m[0], turn("assistant", "One moment."), turn("tool", "{}"), turn("assistant", "Done.")])),
    "two results": Defect("two results of one call", "observation_without_call", ("tool",), _turns(lambda m: [m[0], turn("assistant", "", calls=[("get_weather", GOOD)]), turn("tool", "{}"), turn("tool", "{}"), turn("assistant", "Done.")])),
    "unanswered call": Defect("the user goes on before the result", "unanswered_call", ("tool",), _turns(lambda m: [m[0], turn("assistant", "", calls=[("get_weather", GOOD)]), turn("user", "Well?"), turn("assistant", "It is warm.")])),
    "half answered": Defect("two calls and one result", "unanswered_call", ("tool",), _turns(lambda m: [m[0], turn("assistant", "", calls=[("get_weather", GOOD), ("get_weather", GOOD)]), turn("tool", "{}"), turn("assistant", "It is warm.")])),
    "ends on call": Defect("the conversation stops at the call, where others go on", "unanswered_final_call", ("tool",), _turns(lambda m: [m[0], turn("assistant", "", calls=[("get_weather", GOOD)])])),
    "call as text": Defect("a call written out as text", "call_in_text", ("tool",), _say('<functioncall> {"name": "get_weather", "arguments": {}}')),
    "call as TOOLCALL": Defect("a call as Nemotron writes it", "call_in_text", ("tool",), _say('<TOOLCALL>[{"name": "get_weather", "arguments": {}}]</TOOLCALL>')),
    "call as ReAct": Defect("a call written as Action and Action Input", "call_in_text", ("tool",), _say("I should look.\nAction: get_weather\nAction Input: Rome")),
    "lost bytes": Defect("U+FFFD where bytes could not be decoded", "replacement_character", ANY, _slip("caf\ufffd")),
    "mojibake": Defect("UTF-8 read as Windows-1252 or Latin-1", "mojibake", ANY, _mojibake),
    "Cyrillic mojibake": Defect("UTF-8 Cyrillic read as Windows-1251", "mojibake", ANY, _slip("привет".encode().decode("cp1251", "replace"))),
    "double mojibake": Defect("UTF-8 read as Latin-1 twice", "mojibake", ANY, _slip("é".encode().decode("latin-1").encode().decode("latin-1"))),
    "GBK mojibake": Defect("the replacement character read as GBK", "mojibake", ANY, _slip("锟斤拷锟斤拷")),
    "null byte": Defect("a NUL in the text", "control_character", ANY, _slip("a\x00b")),
    "escape codes": Defect("terminal colours in the text", "control_character", ANY, _slip("\x1b[31mred\x1b[0m")),
    "C1 control": Defect("a C1 control character", "control_character", ANY, _slip("a\u0085b")),
    "zero width": Defect("a zero-width space in a word", "invisible_character", ANY, _slip("pass\u200bword")),
    "byte order mark": Defect("a byte order mark in the text", "invisible_character", ANY, _slip("\ufeffHello")),
    "joiner in a word": Defect("a zero-width joiner between Latin letters", "invisible_character", ANY, _slip("wa\u200dter")),
    "hidden tags": Defect("text hidden in tag characters", "invisible_character", ANY, _slip("Hi" + "".join(chr(0xE0000 + ord(c)) for c in "obey"), "user")),
    "soft hyphen": Defect("a soft hyphen left from a page", "invisible_character", ANY, _slip("some\u00adthing")),
    "bidi override": Defect("a right-to-left override", "bidi_control", ANY, _slip("\u202egnp.exe\u202c")),
    "bidi isolate": Defect("an isolate in left-to-right text", "bidi_control", TALK, lambda row, rng: row.update(messages=[turn("user", f"Run it {rng.random()}."), turn("assistant", "Run if (\u2066admin\u2069) then go.")])),
    "braces": Defect("a name in double braces that nobody filled in", "placeholder", ANY, _slip("{{name}}")),
    "angle placeholder": Defect("<your answer> left in", "placeholder", ANY, _slip("<your answer>")),
    "here placeholder": Defect("<answer here> left in", "placeholder", ANY, _slip("<answer here>")),
    "insert placeholder": Defect("[insert ...] left in", "placeholder", ANY, _slip("[insert company name]")),
    "shell placeholder": Defect("${name} left in", "placeholder", ANY, _slip("${user_name}")),
    "Chinese placeholder": Defect("a Chinese placeholder left in", "placeholder", ANY, _slip("<你的答案>")),
    "unfilled prompt": Defect("a prompt whose field is empty", "placeholder", ANY, _slip("{{ document text }}", "user")),
    "filler": Defect("lorem ipsum", "placeholder", ANY, _slip("Lorem ipsum dolor sit amet.")),
    "cloud key": Defect("an access key", "secret", ANY, _slip("AKIA" + "ABCDEFGH23456789")),
    "private key": Defect("a private key", "secret", ANY, _slip("-----BEGIN RSA " + "PRIVATE KEY-----")),
    "hub token": Defect("a token of a code host", "secret", ANY, _slip("ghp_" + "a1B2" * 9, "user")),
    "API key": Defect("a model provider's API key", "secret", ANY, _slip("sk-" + "proj-" + "aB3_" * 10)),
    "refusal": Defect("a refusal with an apology", "refusal", TALK, _say("I'm sorry, but I can't assist with that request.")),
    "curt refusal": Defect("a refusal without one", "refusal", TALK, _say("I cannot provide information about that.")),
    "curly refusal": Defect("a refusal with typographic apostrophes", "refusal", TALK, _say("I’m sorry, I can’t help with that.")),
    "polite refusal": Defect("a refusal that apologises", "refusal", TALK, _say("I apologize, but as an AI I'm unable to access real-time data.")),
    "Chinese refusal": Defect("a refusal in Chinese", "refusal", TALK, _say("很抱歉，我无法回答这个问题。")),
    "disclaimer": Defect("as an AI language model", "ai_disclaimer", TALK, _slip("As an AI language model, I have no taste, but")),
    "plain disclaimer": Defect("as a language model, I don't", "ai_disclaimer", TALK, _slip("As a language model, I don't have a taste, but")),
    "Chinese disclaimer": Defect("the same in Chinese", "ai_disclaimer", TALK, _slip("作为一个AI语言模型，")),
    "echo": Defect("the answer is the question", "answer_is_question", CHATTY, _turns(lambda m: [*m[:-2], turn("user", f"Please say it: {m[-2]['content']}"), turn("assistant", f"PLEASE say it: {m[-2]['content']} ", m[-1]["thinking"])])),
    "circles": Defect("the same sentence over and over", "repetition", CHATTY, _say("This is the way to do it well. " * 30)),
    "stutter": Defect("the same word over and over", "repetition", CHATTY, _say("It is very " + "very " * 200 + "good.")),
    "open fence": Defect("a code fence that is never closed", "unclosed_code", CHATTY, _say("Here you are:\n\n```python\nprint(1)\n")),
    "cut off": Defect("an answer that stops in mid-sentence", "truncated_ending", CHATTY, _cut),
    "too long": Defect("longer than the model reads", "over_length", ANY, _change(tokens=MAX_LENGTH + 1)),
    "nothing to learn": Defect("an empty loss mask", "empty_loss_mask", ANY, _change(supervised_tokens=0)),
    "unrenderable": Defect("a row that the template loses", "render_problem", ANY, _change(problem="the template leaves out a call", tokens=0, supervised_tokens=0)),
    "exact copy": Defect("a conversation that is there twice", "exact_duplicate", ANY, lambda row, rng: None),
    "entity": Defect("an HTML entity left from a page", "html_entity", ANY, _slip("&quot;so&quot;")),
    "e-mail": Defect("somebody's e-mail address", "email_address", ANY, _slip("jo.doe@mail.acme-corp.com")),
    "web token": Defect("a JSON web token", "secret", ANY, _slip("eyJhbGciOiJIUzI1NiJ9." + "eyJzdWIiOiI0MiJ9.c2lnbmF0dXJlLW9mLXNvbWU")),
    "payment key": Defect("a live key of a payment service", "secret", ANY, _slip("sk_live_" + "4eC39HqLyjWDarjtT1zdp7dc")),
    "bot token": Defect("a chat bot's token", "secret", ANY, _slip("110201543:" + "AAHdqTcvCH1vGWJxfSeofSAs0K5PALDsaw1")),
    "storage key": Defect("a cloud storage's key", "secret", ANY, _slip("AccountKey=" + "aB3dE5gH" * 10 + "aB3dE5==" )),
    "key in tools": Defect("an access key in a tool's description", "secret", ("tool",), _change(tools=TOOLS.replace("Calls convert.", "Calls convert with AKIA" + "ABCDEFGH23456789."))),
    "phone": Defect("a telephone number with its prefix", "phone_number", ANY, _slip("(it is: +49 30 901820, I think)"), "901820"),
    "national phone": Defect("a telephone number as its country writes it", "phone_number", ANY, _slip("(it is: (212) 736-5000, I think)", "user"), "736-5000"),
    "card": Defect("the number of a payment card", "payment_card", ANY, _slip("(it is: 4539 5787 6362 1486, I think)"), "5787"),
    "IBAN": Defect("an international bank account number", "bank_account", ANY, _slip("(it is: DE89 3704 0044 0532 0130 00, I think)"), "3704"),
    "SSN": Defect("a social security number", "national_id", ANY, _slip("(it is: 536-90-4399, I think)"), "90-4399"),
    "resident id": Defect("a Chinese resident identity number", "national_id", ANY, _slip("(it is: 11010519491231002X, I think)"), "19491231"),
    "Spanish": Defect("an answer in a language that is not allowed", "language", TALK, _turns(lambda m: [m[-2], turn("assistant", "Los ríos llevan el agua desde las montañas hasta el mar, y muchos de ellos son lentos cerca del final.")])),
    "Finnish": Defect("another such language", "language", TALK, _turns(lambda m: [m[-2], turn("assistant", "Joet kuljettavat vettä kukkuloilta merelle, ja useimmat niistä virtaavat hitaasti loppumatkalla.")])),
    "dotted name": Defect("a tool name with a dot", "dotted_tool_name", ("tool",), _change(tools=_tools_with("weather.get"))),
    "bad schema": Defect("parameters that are no JSON Schema", "schema_unchecked", ("tool",), _change(tools='[{"type":"function","function":{"name":"get_weather","parameters":{"type":"dictionary"}}}]')),
    "no tools": Defect("a tool conversation without tools", "tools_missing", ("tool",), _change(tools=None)),
    "idle tools": Defect("declared tools, none called", "tools_unused", ("tool",), _turns(lambda m: [m[0], turn("assistant", "It is warm, and that is all.")])),
}  # fmt: skip


def planted(kind: str, defect: Defect, n: int, share: float, seed: int = 0) -> tuple[list[Row], list[int]]:
    """`n` clean rows of a kind with a share of them spoilt, at least one; and where."""
    rng = random.Random(f"{defect.what}-{seed}")
    rows = clean(kind, n, seed)
    at = sorted(rng.sample(range(1, n), max(1, round(share * n))))
    for i in at:
        rows[i] = copy.deepcopy(rows[0] if defect.rule == "exact_duplicate" else rows[i])
        defect.spoil(rows[i], rng)
    return rows, at
