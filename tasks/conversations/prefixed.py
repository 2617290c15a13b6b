"""Tokenizers that put a space where a text begins: SentencePiece's, as Llama 2 and Mistral have them.

Such a tokenizer reads "Hello" as " Hello", at the start of a text and, in most, after every added token. So the
pieces of a text must not be encoded as texts of their own, and the ids of a whole text decode to one with spaces that
were not there. What holds of them instead, and is checked on every row: the ids decode to the text, but for one space
at its start and after added tokens. A piece that begins within running text begins in its ids as it stands there, so
that what the model writes follows the very ids that inference is given.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain, pairwise
from typing import Any

import numpy as np

Spans = Sequence[tuple[int, int]]


class Prefixed:
    """A tokenizer of that kind, and the same one without its spaces."""

    def __init__(self, backend: Any, without: Any, added: Sequence[str]) -> None:
        self._with, self._without, self._added = backend, without, tuple(added)
        self._tokens = re.compile(f"({'|'.join(map(re.escape, added))})")

    @classmethod
    def of(cls, backend: Any) -> Prefixed | None:
        """None for a tokenizer that puts no space anywhere, or has no added token."""
        from tokenizers import Tokenizer

        added = sorted((token.content for token in backend.get_added_tokens_decoder().values()), key=len, reverse=True)
        # These parts alone: the whole is mostly vocabulary, seconds of JSON for one of 260,000 tokens.
        parts = {name: _state(getattr(backend, name)) for name in ("normalizer", "pre_tokenizer")}
        plain = {name: _plain(part) for name, part in parts.items()}
        if not added or plain == parts:
            return None
        return cls(backend, Tokenizer.from_str(json.dumps({**json.loads(backend.to_str()), **plain})), added)

    def encode_spans(self, rows: Sequence[tuple[str, Spans]]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of the pieces before, within, between and after each text's spans, end to end, and how many each has."""
        ids: list[Sequence[int]] = []
        # Texts as they begin, after an added token, and within running text, each with its place.
        first: list[tuple[int, str]] = []
        after: list[tuple[int, str]] = []
        within: list[tuple[int, str]] = []
        for text, spans in rows:
            cuts = [0, *(at for span in spans for at in span), len(text)]
            for start, end in pairwise(cuts):
                kind = first if start == 0 else after if text.endswith(self._added, 0, start) else within
                kind.append((len(ids), text[start:end]))
                ids.append(())
        anchor = self._added[-1]
        for backend, pieces, before in (
            (self._with, first, ""),
            (self._with, after, anchor),
            (self._without, within, ""),
        ):
            encoded = backend.encode_batch_fast([before + piece for _, piece in pieces], add_special_tokens=False)
            for (place, _), encoding in zip(pieces, encoded, strict=True):
                ids[place] = encoding.ids[1:] if before else encoding.ids
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        return np.fromiter(chain.from_iterable(ids), np.int32, int(lengths.sum())), lengths

    def is_same(self, decoded: str, text: str) -> bool:
        """Whether decoded ids are a text but for one space more at its start and after its added tokens."""
        at = 0
        for number, part in enumerate(self._tokens.split(text)):
            is_token = number % 2 == 1
            if not is_token and decoded.startswith(f" {part}", at):
                at += 1
            if not decoded.startswith(part, at):
                return False
            at += len(part)
        return at == len(decoded)


def _state(part: Any) -> Any:
    """A part of a tokenizer as its tokenizer.json has it."""
    return json.loads(part.__getstate__()) if part is not None else None


def _plain(step: Any) -> Any:
    """A normalizer or pre-tokenizer that puts no space."""
    if step is None or step["type"] == "Prepend":
        return None
    if step["type"] == "Sequence":
        name = "normalizers" if "normalizers" in step else "pretokenizers"
        return {**step, name: [plain for one in step[name] if (plain := _plain(one))]}
    if step["type"] == "Metaspace":
        return {**step, "prepend_scheme": "never"}
    return {**step, "add_prefix_space": False} if step.get("add_prefix_space") else step
