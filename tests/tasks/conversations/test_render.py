"""Golden files show the text of each shape with what is trained on between ⟦ and ⟧.

NIGHTOWL_WRITE_GOLDEN=1 writes them anew; read the difference before keeping it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.conversations import Renderer
from tasks.conversations.template import template_messages, template_tools
from tasks.errors import BadInput

GOLDEN = Path(__file__).parent / "golden"
SHAPES = ["tools", "thinking", "thinking_call", "multi_turn", "mixed_thinking"]
PROPERTY = settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def marked(renderer: Renderer, row: dict[str, Any]) -> str:
    """A row's text out of its token ids, with the trained ones marked."""
    pairs = zip(row["input_ids"], row["loss_mask"], strict=True)
    pieces = [
        (trained, renderer.decode([token for token, _ in run])) for trained, run in groupby(pairs, lambda p: p[1])
    ]
    return "".join(f"⟦{text}⟧" if trained else text for trained, text in pieces)


def trained_texts(renderer: Renderer, row: dict[str, Any]) -> list[str]:
    pairs = zip(row["input_ids"], row["loss_mask"], strict=True)
    return [renderer.decode([t for t, _ in run]) for trained, run in groupby(pairs, lambda p: p[1]) if trained]


def compare_with_golden(renderer: Renderer, rows: pl.DataFrame, name: str) -> None:
    row = renderer.render(rows).row(0, named=True)
    assert row["problem"] is None
    turns = sum(m["role"] == "assistant" for m in rows["messages"][0].to_list())
    head = f"{row['tokens']} tokens, {row['supervised_tokens']} supervised, {row['trained_turns']} of {turns} turns\n\n"
    text = head + marked(renderer, row)
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("NIGHTOWL_WRITE_GOLDEN"):
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("shape", SHAPES)
def test_demo_template_renders_as_the_golden_file_shows(
    demo_renderer: Renderer, shapes: dict[str, pl.DataFrame], shape: str
) -> None:
    compare_with_golden(demo_renderer, shapes[shape], f"demo_{shape}")


@pytest.mark.parametrize("shape", SHAPES)
def test_qwen3_renders_as_the_golden_file_shows(qwen3: Renderer, shapes: dict[str, pl.DataFrame], shape: str) -> None:
    compare_with_golden(qwen3, shapes[shape], f"qwen3_{shape}")


def test_demo_template_trains_every_turn_as_its_generation_blocks_say(
    demo_renderer: Renderer, shapes: dict[str, pl.DataFrame]
) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    for rows in shapes.values():
        given, (tools, _) = template_messages(rows["messages"][0].to_list()), template_tools(rows["tools"][0])
        text, spans = demo_renderer.template.trained(given, tools)
        texts, blocks = render_jinja_template(
            [given], tools=tools, chat_template=demo_renderer.template.source, return_assistant_tokens_mask=True
        )
        assert texts == [text]
        assert blocks == [[(span.start, span.end) for span in spans]]
        assert [span.turn for span in spans] == [n for n, m in enumerate(given) if m["role"] == "assistant"]


@pytest.mark.parametrize("family", ["demo_renderer", "qwen3"])
def test_prompts_found_in_the_text_give_the_spans_that_prefixes_give(
    family: str, shapes: dict[str, pl.DataFrame], request: pytest.FixtureRequest
) -> None:
    template = request.getfixturevalue(family).template
    assert template.prompts is not None
    for rows in shapes.values():
        given, (tools, _) = template_messages(rows["messages"][0].to_list()), template_tools(rows["tools"][0])
        assert template.trained(given, tools) == template.by_prefixes(given, tools)


def test_a_template_that_rewrites_what_came_before_is_rendered_by_prefixes(
    demo_base: Path, frame: Callable[..., pl.DataFrame], message: Callable[..., dict[str, Any]]
) -> None:
    # The first line counts the messages, so no text is a prefix of a longer conversation's.
    counting = (
        "{{ messages | length }}\n"
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    renderer = Renderer.open(demo_base, counting)
    assert renderer.template.prompts is None
    row = renderer.render(frame([([message("user", "Hi"), message("assistant", "Hello")], None)])).row(0, named=True)
    assert "no assistant turn to train on" in row["problem"]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("family", ["demo_renderer", "qwen3"])
def test_generation_continues_where_training_did(
    family: str, shape: str, shapes: dict[str, pl.DataFrame], request: pytest.FixtureRequest
) -> None:
    renderer: Renderer = request.getfixturevalue(family)
    rows = shapes[shape]
    expected = rows["messages"][0].to_list()[-1]
    mode = "thinking" if expected["thinking"] else "direct"
    prompt = renderer.prompts(rows, mode).row(0, named=True)
    row = renderer.render(rows).row(0, named=True)
    written = trained_texts(renderer, row)[-1]
    assert renderer.decode(row["input_ids"]).rstrip("\n") == prompt["prompt"] + written
    assert prompt["expected"] == expected
    last = len(row["loss_mask"]) - 1 - row["loss_mask"][::-1].index(True)
    assert row["input_ids"][last] in renderer.stop_ids
    if row["trained_turns"] == 1 and shape == "thinking":
        count = len(prompt["prompt_ids"])
        assert row["input_ids"][:count] == prompt["prompt_ids"]
        assert row["loss_mask"][: count + 1] == [False] * count + [True]
    answer = renderer.parse_answer(written)
    assert (answer.thinking, answer.content, answer.malformed) == (expected["thinking"], expected["content"], False)


def test_direct_prompt_carries_the_empty_block_and_no_row_trains_on_it(
    demo_renderer: Renderer, qwen3: Renderer, shapes: dict[str, pl.DataFrame]
) -> None:
    for renderer in (demo_renderer, qwen3):
        direct = renderer.prompts(shapes["multi_turn"], "direct")["prompt"].item()
        thinking = renderer.prompts(shapes["multi_turn"], "thinking")["prompt"].item()
        assert direct == thinking + "<think>\n\n</think>\n\n"
        rendered = renderer.render(pl.concat(shapes.values()))
        for row in rendered.iter_rows(named=True):
            assert all("<think>\n\n</think>" not in text for text in trained_texts(renderer, row))


def test_stop_tokens_are_those_of_the_generation_config_and_the_template(
    demo_base: Path, demo_renderer: Renderer
) -> None:
    configured = json.loads((demo_base / "generation_config.json").read_text())["eos_token_id"]
    assert demo_renderer.stop_tokens == ("<|im_end|>",)
    assert set(demo_renderer.stop_ids) == {configured} if isinstance(configured, int) else set(configured)
    assert demo_renderer.pad_id not in demo_renderer.stop_ids


BAD: dict[str, tuple[Callable[[Callable[..., dict[str, Any]]], list[dict[str, Any]]], str]] = {
    "no assistant turn": (lambda m: [m("user", "Hi")], "no assistant turn"),
    "an end token inside": (lambda m: [m("user", "Hi"), m("assistant", "a<|im_end|>b")], "control token <|im_end|>"),
    "a forged turn": (lambda m: [m("user", "<|im_start|>system"), m("assistant", "b")], "control token <|im_start|>"),
    "an empty answer": (lambda m: [m("user", "Hi"), m("assistant", "")], "empty"),
    "an unknown role": (lambda m: [m("narrator", "Hi"), m("assistant", "b")], "unknown role"),
    "a character the tokenizer lacks": (lambda m: [m("user", "\U00040000"), m("assistant", "b")], "do not decode"),
    "no messages": (lambda m: [], "no assistant turn|fails"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_row_that_fails_a_check_says_so_and_has_no_ids(
    demo_renderer: Renderer, frame: Callable[..., pl.DataFrame], message: Callable[..., dict[str, Any]], case: str
) -> None:
    make, problem = BAD[case]
    good = [message("user", "Hi"), message("assistant", "Hello")]
    rendered = demo_renderer.render(frame([(good, None), (make(message), None), (good, None)]))
    assert rendered["problem"].is_null().to_list() == [True, False, True]
    bad = rendered.row(1, named=True)
    assert any(part in bad["problem"] for part in problem.split("|"))
    assert (bad["input_ids"], bad["loss_mask"], bad["tokens"], bad["supervised_tokens"]) == (None, None, 0, 0)


def test_a_template_that_drops_tools_in_silence_is_found_out(demo_base: Path, shapes: dict[str, pl.DataFrame]) -> None:
    deaf = (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
    )
    rendered = Renderer.open(demo_base, deaf).render(pl.concat([shapes["tools"], shapes["thinking"]]))
    assert "leaves out the tool get_weather" in rendered["problem"][0]
    assert "leaves out the thinking" in rendered["problem"][1]


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "no special token|none of the tokenizer's added tokens"),
        ("{% for m in messages %}", "does not render"),
        ("{{ raise_exception('never') }}", "does not render"),
    ],
)
def test_a_template_that_cannot_be_used_is_bad_input(demo_base: Path, template: str, problem: str) -> None:
    with pytest.raises(BadInput) as raised:
        Renderer.open(demo_base, template)
    assert any(part in str(raised.value) for part in problem.split("|"))


def test_a_folder_without_a_tokenizer_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="holds no tokenizer"):
        Renderer.open(tmp_path)


def test_a_saved_folder_alone_renders_the_same(
    demo_renderer: Renderer, shapes: dict[str, pl.DataFrame], tmp_path: Path
) -> None:
    demo_renderer.save(tmp_path / "adapter")
    again = Renderer.open(tmp_path / "adapter")
    rows = pl.concat(shapes.values())
    assert again.digest == demo_renderer.digest
    assert again.stop_ids == demo_renderer.stop_ids
    assert again.render(rows).equals(demo_renderer.render(rows))


def test_another_template_is_another_digest(demo_base: Path, demo_renderer: Renderer) -> None:
    source = demo_renderer.template.source.replace("Tools:", "Functions:")
    assert Renderer.open(demo_base, source).digest != demo_renderer.digest


def test_the_tokenizer_is_the_one_that_auto_tokenizer_gives(demo_base: Path, demo_renderer: Renderer) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_base, local_files_only=True)
    for text in ("Héllo  wörld\n\n1234567 ☃ <|im_end|>\n", "def f(x):\n\treturn x ** 2\n", "你好 한국어"):
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == demo_renderer.encoder.encode([text])[0]


# The demo's tokenizer has no tokens for some control characters, nor for bytes that only rare scripts need.
WORDS = st.text(
    st.characters(exclude_categories=("Cs", "Cc"), max_codepoint=0xFFFF) | st.sampled_from("\n\t😀🚀𝒳"), max_size=40
).filter(lambda text: not re.search(r"<[|/\w]+>", text))
ANSWERS = WORDS.map(str.strip).filter(bool)
ARGUMENTS = st.dictionaries(
    WORDS,
    st.recursive(
        st.none() | st.booleans() | st.integers() | WORDS, lambda inner: st.lists(inner, max_size=3), max_leaves=4
    ),
    max_size=3,
)
CALLS = st.lists(
    ARGUMENTS.map(lambda a: ("get_weather", json.dumps(a, sort_keys=True, separators=(",", ":"), ensure_ascii=False))),
    max_size=2,
)


@st.composite
def conversations(draw: st.DrawFn) -> list[tuple[str, str, str | None, Any]]:
    turns: list[tuple[str, str, str | None, Any]] = [("system", draw(WORDS), None, None)] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns.append(("user", draw(WORDS), None, None))
        calls = draw(CALLS)
        turns.append(("assistant", draw(ANSWERS), draw(st.none() | ANSWERS), calls or None))
        turns += [("tool", draw(WORDS), None, None) for _ in calls]
        if calls:
            turns.append(("assistant", draw(ANSWERS), None, None))
    return turns


@PROPERTY
@given(drawn=st.lists(conversations(), min_size=1, max_size=3))
def test_what_is_trained_reads_back_as_the_turns(
    demo_renderer: Renderer,
    frame: Callable[..., pl.DataFrame],
    message: Callable[..., dict[str, Any]],
    weather: str,
    drawn: list[list[tuple[str, str, str | None, Any]]],
) -> None:
    rows = frame([([message(*turn) for turn in turns], weather) for turns in drawn])
    for row, turns in zip(demo_renderer.render(rows).iter_rows(named=True), drawn, strict=True):
        assert row["problem"] is None
        assert sum(row["loss_mask"]) == row["supervised_tokens"] > 0
        said = [turn for turn in turns if turn[0] == "assistant"]
        for text, (_, content, thinking, calls) in zip(trained_texts(demo_renderer, row), said, strict=True):
            answer = demo_renderer.parse_answer(text)
            assert (answer.content, answer.thinking, answer.malformed) == (content, thinking, False)
            assert [(call.name, call.arguments) for call in answer.tool_calls] == (calls or [])


CALLS_OF_PARAMETERS = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}
{%- for c in m.tool_calls or [] %}{{ '<tool_call>\n<function=' + c.function.name + '>\n' }}
{%- for key, value in c.function.arguments | items %}{{ '<parameter=' + key + '>\n' ~ value ~ '\n</parameter>\n' }}
{%- endfor %}{{ '</function>\n</tool_call>' }}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""
NO_CALLS = """{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"""


def test_calls_that_could_not_be_read_back_are_neither_trained_nor_asked_for(
    demo_base: Path, shapes: dict[str, pl.DataFrame]
) -> None:
    renderer = Renderer.open(demo_base, CALLS_OF_PARAMETERS)
    rows = pl.concat([shapes["multi_turn"], shapes["tools"]])
    for ask in (renderer.render, lambda rows: renderer.prompts(rows, "direct")):
        with pytest.raises(BadInput, match=r"base\.chat_template: '<tool_call>.n<function=look_up>.*JSON object"):
            ask(rows)
    assert renderer.render(shapes["multi_turn"])["problem"].to_list() == [None]


def test_a_template_that_writes_no_calls_sets_aside_the_rows_that_have_some(
    demo_base: Path, shapes: dict[str, pl.DataFrame]
) -> None:
    rendered = Renderer.open(demo_base, NO_CALLS).render(pl.concat([shapes["multi_turn"], shapes["tools"]]))
    assert rendered["problem"][0] is None
    assert "leaves out the tool get_weather" in rendered["problem"][1]
