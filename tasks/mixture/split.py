"""The split: which conversations are held out, decided by a hash of the prompt and by nothing else.

The hash is BLAKE2b of the normalised prompt: the same on any machine, whatever the seed, the order or the
other data. A conversation therefore keeps its split for ever, and conversations with one prompt share it.
The test split is the lower end of the hash range and the validation split its upper end, so that changing
the size of one moves no conversation of the other.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b

import numpy as np
import polars as pl

SPLITS = ("train", "validation", "test")


def hash64(texts: Iterable[str], salt: str) -> pl.Series:
    """BLAKE2b of each text under a salt of up to 16 bytes, as u64; the same on every machine."""
    key = salt.encode()
    raw = b"".join(blake2b(text.encode(), digest_size=8, salt=key).digest() for text in texts)
    return pl.Series(np.frombuffer(raw, dtype=">u8").astype(np.uint64))


def hash128(texts: Iterable[str], salt: str) -> pl.Series:
    """BLAKE2b of each text under a salt of up to 16 bytes, as 32 hex characters; the same on every machine."""
    key = salt.encode()
    return pl.Series([blake2b(text.encode(), digest_size=16, salt=key).hexdigest() for text in texts], dtype=pl.String)


def split_of(prompts: pl.Series, *, test: float, validation: float) -> pl.Series:
    """The split of each prompt key: train, validation or test. `test` and `validation` are shares of all prompts."""
    at = pl.col("hash")
    hashes = pl.DataFrame({"hash": hash64(prompts, "split")})
    top = 2**64 - 1
    return hashes.select(
        split=pl.when(at < int(test * top))
        .then(pl.lit("test"))
        .when(at >= top - int(validation * top))
        .then(pl.lit("validation") if validation else pl.lit("train"))
        .otherwise(pl.lit("train"))
    )["split"]


def leaks(rows: pl.DataFrame) -> pl.DataFrame:
    """The training rows (`split`, `prompt`) whose prompt is held out as well; empty when all is well."""
    held_out = rows.filter(pl.col("split") != "train").select("prompt").unique()
    return rows.filter(pl.col("split") == "train").join(held_out, on="prompt", how="semi")
