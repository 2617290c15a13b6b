"""From text to token ids, by a proven-faithful way for each row.

Encoding the pieces of a text on their own is what inference does, and exact where a tokenizer adds
nothing at the start of a piece; for those that do, see prefixed.py. Where the ids of the pieces do not
decode to the text, the whole text is encoded and the pieces are found by offsets.

Two encoders give the ids: the tokenizer's own, and gigatoken, which reads the same tokenizer.json and is
many times faster. Trust is earned on the data itself: a sample of the very texts is encoded by both, and
one differing id puts the fast one away.
"""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Iterable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from tasks.conversations.prefixed import Prefixed, Spans

# Texts per call of the tokenizer's own encoder: one huge batch is slower and holds gigabytes.
_BATCH = 4_000
# Below so many texts the fast encoder's start (a second) costs more than it saves.
_WORTH_IT = 2_000
# One text in so many is encoded both ways, and all of the first ones.
_SAMPLE, _FIRST = 128, 64


class Encoded(NamedTuple):
    """Token ids of texts, end to end: text n has ids[offsets[n]:offsets[n + 1]] (i32) and as much of `mask` (bool).

    `faithful`: whether a text's ids decode to it (see prefixed.py for tokenizers that put spaces); where not, it has
    none.
    """

    ids: np.ndarray
    mask: np.ndarray
    offsets: np.ndarray
    faithful: np.ndarray


class Encoder:
    """A `tokenizers` tokenizer that adds no tokens of its own: templates write them.

    `file`: its tokenizer.json, for the fast encoder; None: there is none. `seen`: texts encoded; `compared`: texts
    encoded both ways; `differing`: texts on which the two did not agree (then the fast one is out).
    """

    def __init__(self, backend: Any, file: Path | None = None) -> None:
        self.backend = backend
        self.seen = self.compared = self.differing = 0
        self._prefixed = Prefixed.of(backend)
        self._file = None if self._prefixed else file
        self._fast: Any = None
        self._lengths, self._table = _byte_table(backend)

    @property
    def name(self) -> str:
        """The encoder that gives the ids, and its version."""
        package = "tokenizers" if self._fast is None else "gigatoken"
        return f"{package} {metadata.version(package)}"

    def proof(self) -> dict[str, Any]:
        """What is known of the encoder in use, for a manifest."""
        return {"encoder": self.name, "texts": self.seen, "compared": self.compared, "differing": self.differing}

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of whole texts."""
        ids, lengths = self._encode(texts)
        return [part.tolist() for part in np.split(ids, np.cumsum(lengths)[:-1])] if len(texts) else []

    def encode_spans(self, rows: Sequence[tuple[str, Spans]]) -> Encoded:
        """Token ids of texts, and a mask that is true for the tokens inside their spans (ordered, not touching)."""
        pieces: list[str] = []
        counts = np.empty(len(rows), np.int64)
        for number, (text, spans) in enumerate(rows):
            at = 0
            for start, end in spans:
                pieces += (text[at:start], text[start:end])
                at = end
            pieces.append(text[at:])
            counts[number] = 2 * len(spans) + 1
        if self._prefixed:
            self.seen += len(pieces)
            ids, lengths = self._prefixed.encode_spans(rows)
        else:
            ids, lengths = self._encode(pieces)
        ends = np.cumsum(counts)
        # The pieces of a text are by turns not the model's and the model's.
        nth = np.arange(len(pieces)) - np.repeat(ends - counts, counts)
        mask = np.repeat(nth % 2 == 1, lengths)
        offsets = np.concatenate([[0], np.cumsum(lengths)[ends - 1]]) if len(rows) else np.zeros(1, np.int64)
        texts = [text for text, _ in rows]
        faithful = self._faithful(ids, offsets, texts)
        encoded = Encoded(ids, mask, offsets, faithful)
        return encoded if faithful.all() else self._mended(encoded, rows)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included; broken UTF-8 becomes U+FFFD."""
        if self._table is None:
            return self.backend.decode(list(ids), skip_special_tokens=False)
        return bytes(self._bytes(np.asarray(ids, np.int32))).decode(errors="replace")

    def _encode(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """Ids of all texts end to end, and how many each has."""
        before = self.seen
        self.seen += len(texts)
        if self._file is not None and self._fast is None and self.seen > _WORTH_IT:
            self._fast = _fast_encoder(self._file)
            if self._fast is None:
                self._file = None
        if self._fast is None:
            return self._slow(texts)
        array = self._fast.encode_batch(list(texts), parallel=False).layout
        offsets = np.asarray(array.offsets.data)
        ids = np.asarray(array.content.data)[: offsets[-1]].astype(np.int32)
        first = max(0, _FIRST - self.compared)
        sample = [n for n in range(len(texts)) if n < first or (before + n) % _SAMPLE == 0]
        expected, lengths = self._slow([texts[n] for n in sample])
        found = [ids[offsets[n] : offsets[n + 1]] for n in sample]
        self.compared += len(sample)
        if found and not (np.array_equal(np.concatenate(found), expected) and [*map(len, found)] == lengths.tolist()):
            self.differing += 1
            self._fast = self._file = None
            return self._slow(texts)
        return ids, np.diff(offsets)

    def _slow(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        parts = [
            encoding.ids
            for at in range(0, len(texts), _BATCH)
            for encoding in self.backend.encode_batch_fast(list(texts[at : at + _BATCH]), add_special_tokens=False)
        ]
        lengths = np.fromiter(map(len, parts), np.int64, len(parts))
        flat = (one for part in parts for one in part)
        return np.fromiter(flat, np.int32, int(lengths.sum())), lengths

    def _faithful(self, ids: np.ndarray, offsets: np.ndarray, texts: Sequence[str]) -> np.ndarray:
        """Whether each text's ids decode to it."""
        if self._lengths is None:
            return np.array(
                [self._gives_back(ids[offsets[n] : offsets[n + 1]], text) for n, text in enumerate(texts)], bool
            )
        decoded = self._bytes(ids)
        written = [text.encode() for text in texts]
        ends = np.concatenate([[0], np.cumsum(self._lengths[ids])])[offsets]
        whole = np.array_equal(np.diff(ends), [len(text) for text in written]) and decoded == b"".join(written)
        if whole:
            return np.ones(len(texts), bool)
        parts = (bytes(decoded[ends[n] : ends[n + 1]]) for n in range(len(texts)))
        return np.array(
            [
                part == given or self._is_same(part.decode(errors="replace"), text)
                for part, given, text in zip(parts, written, texts, strict=True)
            ],
            bool,
        )

    def _bytes(self, ids: np.ndarray) -> memoryview:
        assert self._table is not None
        assert self._lengths is not None
        taken = self._table.take(pa.array(ids))
        return memoryview(taken.buffers()[2] or b"")[: int(self._lengths[ids].sum())]

    def _gives_back(self, ids: np.ndarray, text: str) -> bool:
        decoded = self.backend.decode(ids.tolist(), skip_special_tokens=False)
        return decoded == text or self._is_same(decoded, text)

    def _is_same(self, decoded: str, text: str) -> bool:
        """Whether a text is what the tokenizer, by the way that it normalises, makes of another."""
        forms = [text] if text.isascii() else [text, *(unicodedata.normalize(form, text) for form in ("NFC", "NFKC"))]
        return any(decoded == form or (self._prefixed and self._prefixed.is_same(decoded, form)) for form in forms)

    def _mended(self, encoded: Encoded, rows: Sequence[tuple[str, Spans]]) -> Encoded:
        """The same, with the texts that their pieces do not give back encoded whole where that does."""
        ids, mask, offsets, faithful = encoded
        parts: list[np.ndarray] = []
        masks: list[np.ndarray] = []
        for n, (text, spans) in enumerate(rows):
            row, inside = ids[offsets[n] : offsets[n + 1]], mask[offsets[n] : offsets[n + 1]]
            if not faithful[n]:
                found = self._by_offsets(text, spans)
                faithful[n] = found is not None
                row, inside = found or (row[:0], inside[:0])
            parts.append(row)
            masks.append(inside)
        ends = np.cumsum([0, *map(len, parts)])
        return Encoded(np.concatenate(parts), np.concatenate(masks), ends, faithful)

    def _by_offsets(self, text: str, spans: Spans) -> tuple[np.ndarray, np.ndarray] | None:
        encoding = self.backend.encode(text, add_special_tokens=False)
        ids = np.array(encoding.ids, np.int32)
        if not self._faithful(ids, np.array([0, len(ids)]), [text])[0]:
            return None
        mask = [
            any(start <= first and last <= end and first < last for start, end in spans)
            for first, last in encoding.offsets
        ]
        return ids, np.array(mask, bool)


def _fast_encoder(file: Path) -> Any:
    """gigatoken's encoder of a tokenizer.json; None for a kind of tokenizer that it does not have."""
    import gigatoken

    try:
        return gigatoken.Tokenizer(str(file)).backend
    except Exception:  # whatever it does not know: the tokenizer's own encoder serves every kind
        return None


def _byte_table(backend: Any) -> tuple[np.ndarray | None, pa.LargeBinaryArray | None]:
    """The bytes of each token, and their number, of a tokenizer whose tokens stand for bytes wherever they are.

    None for one that decodes otherwise. The space that a tokenizer puts at the start of a text is there.
    """
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder else {}
    steps = decoder["decoders"] if decoder.get("type") == "Sequence" else [decoder]
    kinds = {step.get("type") for step in steps}
    if "ByteLevel" in kinds:
        spell = _byte_level()
    elif kinds - {"Strip"} == {"Replace", "ByteFallback", "Fuse"}:
        spell = _byte_fallback(steps)
    else:
        return None, None
    added = {number: token.content for number, token in backend.get_added_tokens_decoder().items()}
    vocabulary = backend.get_vocab(with_added_tokens=True)
    table = [b""] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        spelled = added[number].encode() if number in added else spell(token)
        if spelled is None:
            return None, None
        table[number] = spelled
    return np.array([len(spelled) for spelled in table], np.int64), pa.array(table, pa.large_binary())


def _byte_level() -> Any:
    """GPT-2's alphabet: printable bytes stand for themselves, the others for the code points from 256 on."""
    printable: Iterable[int] = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    # What is not of the alphabet is sent beyond Latin-1, which then can't spell it.
    alphabet = {256 + number: byte for number, byte in enumerate(others)} | dict.fromkeys(others, 0xFFFF)

    def spell(token: str) -> bytes | None:
        try:
            return token.translate(alphabet).encode("latin-1")
        except UnicodeEncodeError:
            return None

    return spell


def _byte_fallback(steps: Sequence[dict[str, Any]]) -> Any:
    """SentencePiece's alphabet, as Gemma has it: a sign for the space, and <0x0A> for a byte without a token."""
    replaced = next(step for step in steps if step["type"] == "Replace")
    sign, space = replaced["pattern"].get("String"), replaced["content"]

    def spell(token: str) -> bytes | None:
        if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
            return bytes([int(token[3:5], 16)])
        return token.replace(sign, space).encode() if sign else None

    return spell
