"""The fast encoder's ids are the tokenizer's own, on texts made to set them apart."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

from tasks.conversations import Renderer

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
