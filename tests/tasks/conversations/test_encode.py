"""The fast encoder's ids are the tokenizer's own, on texts made to set them apart."""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from tasks.conversations import Renderer
from tasks.conversations.encode import Encoder

# White space of every sort, contractions, forms that NFC joins, joined emoji, digits of other scripts, control
# characters, and the tokens of templates.
PIECES = [
    *"abcXYZ019 \t\n\r'\"´`.,;!?-_(){}<>|/\\",
    *(
        "  ",
        "\n\n",
        "\r\n",
        " \n",
        "'s",
        "'LL",
        "é",
        "e\u0301",
        "ß",
        "中",
        "文",
        "한",
        "글",
        "😀",
        "👨\u200d👩\u200d👧",
    ),
    *("\u200d", "\u00a0", "\u3000", "\u2028", "\x00", "\x1c", "\x85", "\ufeff", "\ufffd", "ﬁ", "Å", "①", "²", "Ⅷ", "٣"),
    *("<|im_start|>", "<think>", "</think>", "<tool_call>", "\U000e0001", "ا", "ब", "ि", "\u0e33", "ǆ", "İ", "ſ"),
]


def nasty(rows: int) -> list[str]:
    draw = random.Random(1)
    return ["".join(draw.choices(PIECES, k=draw.randint(0, 60))) for _ in range(rows)]


def code() -> list[str]:
    text = "".join(file.read_text(encoding="utf-8") for file in sorted(Path(random.__file__).parent.glob("a*.py"))[:8])
    return [text[at : at + 1_500] for at in range(0, len(text), 1_500)]


@pytest.mark.parametrize("kind", ["nasty", "code"])
def test_both_encoders_give_the_same_ids(kind: str, qwen3: Renderer) -> None:
    encoder = Renderer.open(qwen3.folder).encoder
    texts = nasty(20_000) if kind == "nasty" else [*code(), *nasty(2_000)]
    found = encoder.encode(texts)
    assert encoder.name.startswith("gigatoken")
    ids, lengths = encoder._slow(texts)
    assert [len(one) for one in found] == lengths.tolist()
    assert [number for one in found for number in one] == ids.tolist()
    assert (encoder.differing, encoder.seen) == (0, len(texts))


def test_a_few_texts_do_not_load_the_fast_encoder(qwen3: Renderer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gigatoken", None)
    encoder = Renderer.open(qwen3.folder).encoder
    assert encoder.decode(encoder.encode(["Hello there."])[0]) == "Hello there."
    assert encoder.name.startswith("tokenizers")


@pytest.mark.parametrize("version", ["v1", "v3"])
def test_a_tokenizer_that_puts_spaces_gives_texts_back_but_for_those(
    version: str, mistral_tokenizer: Callable[[str], Path]
) -> None:
    backend = Tokenizer.from_file(str(mistral_tokenizer(version) / "tokenizer.json"))
    encoder = Encoder(backend)
    rows = []
    for asked, said in pairwise(text for text in nasty(2_000) if "<s>" not in text):
        text = f"<s>[INST]{asked}[/INST]{said}</s>[INST] and? [/INST](said)</s>"
        spans = [(at + len("[/INST]"), text.index("</s>", at) + len("</s>")) for at in found(text, "[/INST]")]
        rows.append((text, spans))
    encoded = encoder.encode_spans(rows)
    assert encoded.faithful.all()
    for n, (text, spans) in enumerate(rows):
        ids, mask = (array[encoded.offsets[n] : encoded.offsets[n + 1]] for array in (encoded.ids, encoded.mask))
        decoded = encoder.decode(ids)
        assert re.sub("(</?s>) ", r"\1", decoded) == re.sub("(</?s>) ", r"\1", text)
        # What the model writes in running text decodes to it, spaces and all, and follows the ids of its prompt.
        assert encoder.decode(ids[mask]) == "".join(text[start:end] for start, end in spans)
        start = spans[0][0]
        assert ids[: mask.argmax()].tolist() == backend.encode(text[:start], add_special_tokens=False).ids


def test_what_such_a_tokenizer_cannot_give_back_is_found(mistral_tokenizer: Callable[[str], Path]) -> None:
    encoder = Encoder(Tokenizer.from_file(str(mistral_tokenizer("v1") / "tokenizer.json")))
    texts = ["<s>a\u2581b</s>", "<s>a b</s>", "<s> a</s>", "<s></s>", "", " ", "a"]
    assert encoder.encode_spans([(text, []) for text in texts]).faithful.tolist() == [False, *[True] * 6]


def found(text: str, part: str) -> list[int]:
    return [match.start() for match in re.finditer(re.escape(part), text)]
