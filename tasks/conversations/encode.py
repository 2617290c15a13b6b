"""From text to token ids, by a proven-faithful way for each row.

Encoding the pieces of a text on their own is what inference does, and exact where a tokenizer adds
nothing at the start of a piece. Where the ids of the pieces do not decode to the text (SentencePiece
models put a space before every piece), the whole text is encoded and the pieces are found by offsets.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

Spans = Sequence[tuple[int, int]]

# Pieces per call of the tokenizer: one huge batch is slower and holds gigabytes.
_BATCH = 4_000


class Encoder:
    """A `tokenizers` tokenizer that adds no tokens of its own: templates write them."""

    def __init__(self, backend: Any) -> None:
        self.backend = backend
        self._bytes = _byte_table(backend)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts."""
        return [
            encoding.ids
            for at in range(0, len(texts), _BATCH)
            for encoding in self.backend.encode_batch_fast(list(texts[at : at + _BATCH]), add_special_tokens=False)
        ]

    def encode_spans(self, rows: Sequence[tuple[str, Spans]]) -> list[tuple[list[int], list[bool]] | None]:
        """Token ids of texts, and a mask that is true for the tokens inside their spans (ordered, not touching).

        None for a text that no way of encoding gives back on decoding.
        """
        pieces: list[str] = []
        counts = []
        for text, spans in rows:
            before = len(pieces)
            at = 0
            for start, end in spans:
                pieces += (text[at:start], text[start:end])
                at = end
            pieces.append(text[at:])
            counts.append(len(pieces) - before)
        ids = iter(self.encode(pieces))
        out: list[tuple[list[int], list[bool]] | None] = []
        for (text, spans), count in zip(rows, counts, strict=True):
            row: list[int] = []
            mask: list[bool] = []
            for number in range(count):
                piece = next(ids)
                row += piece
                mask += [number % 2 == 1] * len(piece)
            out.append((row, mask) if self._gives_back(row, text) else self._by_offsets(text, spans))
        return out

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included; broken UTF-8 becomes U+FFFD."""
        if self._bytes is None:
            return self.backend.decode(list(ids), skip_special_tokens=False)
        return b"".join(map(self._bytes.__getitem__, ids)).decode(errors="replace")

    def _gives_back(self, ids: list[int], text: str) -> bool:
        decoded = self.decode(ids)
        if decoded == text:
            return True
        return not text.isascii() and any(decoded == unicodedata.normalize(form, text) for form in ("NFC", "NFKC"))

    def _by_offsets(self, text: str, spans: Spans) -> tuple[list[int], list[bool]] | None:
        encoding = self.backend.encode(text, add_special_tokens=False)
        if not self._gives_back(encoding.ids, text):
            return None
        mask = [
            any(start <= first and last <= end and first < last for start, end in spans)
            for first, last in encoding.offsets
        ]
        return encoding.ids, mask


def _byte_table(backend: Any) -> list[bytes] | None:
    """The bytes of each token of a byte-level tokenizer (GPT-2's alphabet); None for another kind."""
    # Printable bytes stand for themselves, the others for the code points from 256 on.
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    of_character = {chr(b): b for b in printable} | {chr(256 + i): b for i, b in enumerate(others)}
    added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        if number in added:
            table[number] = added[number].encode()
            continue
        try:
            table[number] = bytes([of_character[character] for character in token])
        except KeyError:
            return None
    return table
