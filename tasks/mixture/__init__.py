"""The mixture: which conversations go into which split, and in what shares."""

from tasks.mixture.files import write_splits
from tasks.mixture.index import Index, excerpts, gather
from tasks.mixture.overlap import overlaps
from tasks.mixture.picture import draw_composition
from tasks.mixture.schema import SharePart, Split, TokenisedMixture
from tasks.mixture.shares import allot
from tasks.mixture.split import SPLITS, leaks, split_of

__all__ = [
    "SPLITS",
    "Index",
    "SharePart",
    "Split",
    "TokenisedMixture",
    "allot",
    "draw_composition",
    "excerpts",
    "gather",
    "leaks",
    "overlaps",
    "split_of",
    "write_splits",
]
