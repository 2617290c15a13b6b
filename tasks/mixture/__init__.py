"""The mixture: which conversations go into which split, and in what shares."""

from tasks.mixture.files import conversations_with_tokens, write_splits
from tasks.mixture.picture import draw_composition
from tasks.mixture.schema import SharePart, Split, TokenisedMixture
from tasks.mixture.shares import allot
from tasks.mixture.split import SPLITS, hash64, hash128, leaks, split_of

__all__ = [
    "SPLITS",
    "SharePart",
    "Split",
    "TokenisedMixture",
    "allot",
    "conversations_with_tokens",
    "draw_composition",
    "hash64",
    "hash128",
    "leaks",
    "split_of",
    "write_splits",
]
