"""The one function that makes token ids and a loss mask of a conversation.

Validation, mixing, training and evaluation all call it, so what is counted, trained on and asked is
the same text. A row is encoded in the pieces that inference would see (the prompt, then what the
model writes), so the mask is exact by construction; what cannot be taken for granted is checked on
every row, and a row that fails a check is returned with the problem, never half-rendered.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import polars as pl
import pyarrow as pa

from tasks.conversations.answer import Answer, parse_answer
from tasks.conversations.call_style import HERMES, Unreadable, learn
from tasks.conversations.encode import Encoder
from tasks.conversations.schema import MESSAGES
from tasks.conversations.template import (
    ChatTemplate,
    Message,
    Span,
    Unrenderable,
    template_messages,
    template_tools,
)
from tasks.errors import BadInput
from tasks.store import digest, file_digest, write_whole

_CHUNK = 2_000  # rows per call of the tokenizer: one huge batch is slower and holds gigabytes
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json")
_CONFIG_FILES = ("tokenizer_config.json", "special_tokens_map.json")
_UNFAITHFUL = "its token ids do not decode to its text: the tokenizer lacks a character in it"
_RENDERED: dict[str, Any] = {
    "row_id": pl.String,
    "input_ids": pl.List(pl.Int32),
    "loss_mask": pl.List(pl.Boolean),
    "problem": pl.String,
    "trained_turns": pl.Int32,
    "tokens": pl.Int32,
    "supervised_tokens": pl.Int32,
}


class _Text(NamedTuple):
    text: str
    spans: list[Span]
    problem: str | None


class Renderer:
    """A tokenizer and a chat template.

    `digest`: sha256 of the tokenizer's files, the template and the stop tokens. `special_tokens`: the text of
    every added token; `control_tokens`: those of them that only a template may write. `stop_tokens`, `stop_ids`:
    what generation stops on, which is what the generation config says and the template's end-of-turn token.
    `pad_id`: what batches are padded with.
    """

    def __init__(self, folder: Path, tokenizer: Any, template: ChatTemplate, stop_ids: Sequence[int]) -> None:
        self.folder = folder
        self.template = template
        # What writes no calls is read as most templates write them.
        self.call_style, self._unreadable = HERMES, ""
        try:
            self.call_style = learn(template) or HERMES
        except Unreadable as error:
            self._unreadable = str(error)
        self.stop_tokens = template.stop_tokens
        self.stop_ids = tuple(stop_ids)
        added = tokenizer.added_tokens_decoder
        self.special_tokens = tuple(token.content for _, token in sorted(added.items()))
        self.control_tokens = tuple(token.content for _, token in sorted(added.items()) if token.special)
        # Some tokenizers have thousands of them, which begin in one of a few ways.
        self._control_signs = tuple({token[:2] for token in self.control_tokens})
        pads = (tokenizer.pad_token_id, tokenizer.unk_token_id, *self.stop_ids)
        self.pad_id: int = next(pad for pad in pads if pad is not None)
        file = folder / "tokenizer.json"
        self.encoder = Encoder(tokenizer.backend_tokenizer, file if file.exists() else None)
        self._bos = tokenizer.bos_token or ""
        self._texts = {name: (folder / name).read_bytes() for name in _CONFIG_FILES if (folder / name).exists()}
        self.digest = self._digest()

    @classmethod
    def open(cls, folder: Path, chat_template: str | None = None) -> Renderer:
        """The renderer of a tokenizer's folder, with its own chat template or another.

        Raises BadInput for a folder without a tokenizer, without a template, and for a template that is no
        Jinja or ends an assistant turn with no token that generation could stop on.
        """
        if not any((folder / name).exists() for name in (*_TOKENIZER_FILES, *_CONFIG_FILES)):
            raise BadInput("tokenizer", str(folder), "holds no tokenizer", "Give the folder that has tokenizer.json.")
        # Where there is a tokenizer.json it is the tokenizer; AutoTokenizer costs seconds of imports more.
        if (folder / "tokenizer.json").exists():
            from transformers import PreTrainedTokenizerFast as Tokenizer
        else:
            from transformers import AutoTokenizer as Tokenizer

        try:
            tokenizer: Any = Tokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError) as error:
            raise BadInput(
                "tokenizer", str(folder), f"cannot be read ({error})", "Fetch the base model again, or name another."
            ) from error
        source = chat_template or tokenizer.chat_template
        if not source:
            raise BadInput(
                "base.chat_template", None, "is not set and the tokenizer has none of its own", "Give a Jinja template."
            )
        named = tokenizer.special_tokens_map
        ending = _end_of_turn(source, named, [token.content for token in tokenizer.added_tokens_decoder.values()])
        stops = [*_stop_ids(folder, tokenizer), tokenizer.convert_tokens_to_ids(ending)]
        stops = list(dict.fromkeys(stops))
        template = ChatTemplate(source, named, [tokenizer.convert_ids_to_tokens(stop) for stop in stops])
        template.prove()
        return cls(folder, tokenizer, template, stops)

    def render(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Token ids and loss mask of conversations (columns row_id, messages, tools), one row each, in order.

        Columns: row_id, input_ids: list of i32, loss_mask: list of bool, problem: text or null, trained_turns,
        tokens, supervised_tokens: i32. A row with a `problem` has null ids and mask, and zeros. `trained_turns`
        is less than the number of assistant turns where the template rewrites earlier ones.

        Raises BadInput for rows with tools where the template writes calls in a way that cannot be read back.
        """
        self._require_readable(rows)
        parts = [self._render(rows.slice(at, _CHUNK)) for at in range(0, rows.height, _CHUNK)]
        return pl.concat(parts) if parts else pl.DataFrame(schema=_RENDERED)

    def prompts(self, rows: pl.DataFrame, mode: Literal["direct", "thinking"]) -> pl.DataFrame:
        """What inference renders to have the last assistant turn of each row written, in a mode.

        Columns: row_id, prompt: text, prompt_ids: list of i32, expected: that turn as a struct of the schema,
        problem: text or null (then the others but row_id are null). Raises BadInput as `render` does.
        """
        self._require_readable(rows)
        prompts: list[str | None] = []
        expected: list[Any] = []
        problems: list[str | None] = []
        for _, messages, tools in _conversations(rows):
            last = max((i for i, message in enumerate(messages) if message["role"] == "assistant"), default=None)
            prompt, problem = None, None if last else "no assistant turn to ask for"
            if last:
                try:
                    before = self.template.arguments(template_messages(messages[:last]))
                    prompt = self.template.render(
                        before, template_tools(tools)[0], thinking=mode == "thinking", prompt=True
                    )
                except Unrenderable as error:
                    problem = str(error)
            prompts.append(prompt)
            expected.append(messages[last] if last and prompt is not None else None)
            problems.append(problem)
        ids = iter(self.encoder.encode([prompt for prompt in prompts if prompt is not None]))
        return pl.DataFrame(
            {
                "row_id": rows["row_id"],
                "prompt": pl.Series(prompts, dtype=pl.String),
                "prompt_ids": pl.Series(
                    [None if prompt is None else next(ids) for prompt in prompts], dtype=pl.List(pl.Int32)
                ),
                "expected": pl.Series(expected, dtype=MESSAGES.inner),
                "problem": pl.Series(problems, dtype=pl.String),
            }
        )

    def parse_answer(self, text: str) -> Answer:
        """What a model wrote, read back: thinking, content and calls, up to the first stop token."""
        return parse_answer(text, self.stop_tokens, self.call_style)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids as the encoder read it, special tokens included; broken UTF-8 becomes U+FFFD."""
        return self.encoder.decode(ids)

    def save(self, folder: Path) -> None:
        """Write tokenizer, template and stop tokens, so that the folder alone renders the same."""
        folder.mkdir(parents=True, exist_ok=True)
        for name in _TOKENIZER_FILES:
            if (self.folder / name).exists():
                shutil.copyfile(self.folder / name, folder / name)
        for name, text in self._texts.items():
            config = json.loads(text)
            config.pop("chat_template", None)
            write_whole(folder / name, json.dumps(config, indent=2, ensure_ascii=False))
        write_whole(folder / "chat_template.jinja", self.template.source)
        if self.template.tool_source != self.template.source:
            (folder / "additional_chat_templates").mkdir(exist_ok=True)
            write_whole(folder / "additional_chat_templates" / "tool_use.jinja", self.template.tool_source)
        generation = _json(self.folder / "generation_config.json") | {"eos_token_id": list(self.stop_ids)}
        write_whole(folder / "generation_config.json", json.dumps(generation, indent=2))

    def _digest(self) -> str:
        configs = {name: json.loads(text) for name, text in self._texts.items()}
        for config in configs.values():
            config.pop("chat_template", None)
        files = {name: file_digest(self.folder / name) for name in _TOKENIZER_FILES if (self.folder / name).exists()}
        template = [self.template.source, self.template.tool_source]
        return digest({"files": files, "configs": configs, "template": template, "stops": sorted(self.stop_ids)})

    def _require_readable(self, rows: pl.DataFrame) -> None:
        # Trained on, such calls would be learnt; asked for, every right one would count as wrong.
        if self._unreadable and rows["tools"].is_not_null().any():
            raise BadInput(
                "base.chat_template",
                self._unreadable,
                "is how it writes a call, which Nightowl cannot read back, and there are rows with tools",
                "Give a template that writes a call as its name and a JSON object of its arguments, such as "
                '<tool_call>{"name": ..., "arguments": {...}}</tool_call>, or leave out what has tools.',
            )

    def _render(self, rows: pl.DataFrame) -> pl.DataFrame:
        texts = [self._text(messages, tools) for _, messages, tools in _conversations(rows)]
        given = [(t.text, [(s.start, s.end) for s in t.spans]) for t in texts if t.problem is None]
        encoded = self.encoder.encode_spans(given)
        good = iter(encoded.faithful.tolist())
        problems = [t.problem or (None if next(good) else _UNFAITHFUL) for t in texts]
        # A row with a problem has no ids, and its list is null.
        lengths = np.zeros(len(texts), np.int32)
        lengths[[t.problem is None for t in texts]] = np.diff(encoded.offsets)
        offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
        null = pa.array([problem is not None for problem in problems], pa.bool_())
        ids, mask = (
            pa.LargeListArray.from_arrays(pa.array(offsets), pa.array(values), mask=null)
            for values in (encoded.ids, encoded.mask)
        )
        trained = np.concatenate([[0], np.cumsum(encoded.mask, dtype=np.int64)])[offsets]
        return pl.DataFrame(
            {
                "row_id": rows["row_id"],
                "input_ids": pl.Series(pl.from_arrow(ids)),
                "loss_mask": pl.Series(pl.from_arrow(mask)),
                "problem": problems,
                "trained_turns": [0 if problem else len(t.spans) for t, problem in zip(texts, problems, strict=True)],
                "tokens": lengths,
                "supervised_tokens": np.diff(trained),
            },
            schema=_RENDERED,
        )

    def _text(self, given: list[dict[str, Any]], tools: str | None) -> _Text:
        try:
            messages = self.template.arguments(template_messages(given))
            declared, names = template_tools(tools)
            text, spans = self.template.trained(messages, declared)
            self._check(messages, names, text, spans)
        except Unrenderable as error:
            return _Text("", [], str(error))
        except ValueError as error:
            return _Text("", [], f"not readable as JSON: {error}")
        return _Text(text, spans, None)

    def _check(self, messages: list[Message], tools: tuple[str, ...], text: str, spans: list[Span]) -> None:
        if self._bos and text.startswith(self._bos * 2):
            raise Unrenderable(f"the text begins with {self._bos} twice")
        for message in messages:
            for part in (message["content"], message.get("reasoning_content", "")):
                if any(sign in part for sign in self._control_signs):
                    for token in self.control_tokens:
                        if token in part:
                            raise Unrenderable(f"the control token {token} is in a message's text ({message['role']})")
            if not _occurs(message["content"].strip(), text):
                raise Unrenderable(f"the template leaves out a message ({message['role']})")
        for name in tools:
            if not _occurs(name, text):
                raise Unrenderable(f"the template leaves out the tool {name}")
        for message in messages:
            for call in message.get("tool_calls", ()):
                _check_call(call["function"], text)
        if not spans:
            raise Unrenderable(f"no assistant turn to train on: {_why_none(messages, text)}")
        for span in spans:
            written = text[span.start : span.end]
            message = messages[span.turn]
            ends = sum(written.count(token) for token in self.stop_tokens)
            if ends != 1:
                raise Unrenderable(
                    f"an assistant turn holds {ends} tokens that generation stops on, not one at its end"
                )
            if not (message["content"] or message.get("tool_calls")):
                raise Unrenderable("an assistant turn is empty")
            for part in (message["content"], message.get("reasoning_content", "")):
                if part.strip() not in written:
                    raise Unrenderable("the template leaves out part of an assistant turn")


def _conversations(rows: pl.DataFrame) -> Iterator[tuple[str, list[dict[str, Any]], str | None]]:
    for row_id, messages, tools in rows.select("row_id", pl.col("messages").cast(MESSAGES), "tools").iter_rows():
        yield row_id, messages or [], tools


def _check_call(function: Mapping[str, Any], text: str) -> None:
    arguments = function["arguments"]
    whole = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    if not _occurs(function["name"], text):
        raise Unrenderable(f"the template leaves out the call of {function['name']}")
    if whole not in text and not all(_occurs(leaf, text) for leaf in _leaves(arguments)):
        raise Unrenderable(f"the template leaves out arguments of the call of {function['name']}")


def _why_none(messages: list[Message], text: str) -> str:
    said = [message for message in messages if message["role"] == "assistant"]
    if not said:
        return "there is none"
    if all(thought and thought not in text for thought in (m.get("reasoning_content", "").strip() for m in said)):
        return "the template leaves out the thinking"
    return "the template asks for each with other text than it writes before it in the whole conversation"


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        yield from chain.from_iterable(map(_leaves, value.values()))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_leaves, value))
    else:
        yield value if isinstance(value, str) else json.dumps(value)


def _occurs(part: str, text: str) -> bool:
    """Whether a part stands in the text, plainly or as JSON writes it."""
    return part in text or json.dumps(part, ensure_ascii=False)[1:-1] in text or json.dumps(part)[1:-1] in text


def _end_of_turn(source: str | Mapping[str, str], named: Mapping[str, Any], added: Sequence[str]) -> str:
    """The first added token that a template writes after an assistant's text."""
    template = ChatTemplate(source, named, ())
    asked = [{"role": "user", "content": "Well?"}, {"role": "assistant", "content": "No need."}]
    try:
        text = template.render(asked, None, thinking=False)
    except Unrenderable as error:
        raise BadInput(
            "base.chat_template", str(error), "does not render a question and its answer", "Correct it."
        ) from error
    tail = text.rpartition("No need.")[2]
    ending = min((token for token in added if token in tail), key=tail.find, default="")
    if not ending:
        raise BadInput(
            "base.chat_template",
            tail,
            "is all that follows an assistant's text, and none of the tokenizer's added tokens is in it",
            "End assistant turns with a token that generation can stop on.",
        )
    return ending


def _stop_ids(folder: Path, tokenizer: Any) -> list[int]:
    """What the model's files say generation stops on."""
    for name in ("generation_config.json", "config.json"):
        stops = _json(folder / name).get("eos_token_id")
        if stops is not None:
            return stops if isinstance(stops, list) else [stops]
    return [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_bytes()) if file.exists() else {}
