"""The mixture: which conversations go into which split, and in what shares."""

from tasks.mixture.emptied import something_left
from tasks.mixture.files import write_splits
from tasks.mixture.index import EXCERPT, Index, excerpts, gather
from tasks.mixture.last_look import leaks
from tasks.mixture.overlap import overlaps
from tasks.mixture.page import write_page
from tasks.mixture.picture import draw_composition
from tasks.mixture.schema import SharePart, Split, TokenisedMixture
from tasks.mixture.shares import TOLERANCE, allot, asked_shares
from tasks.mixture.split import SPLITS, other_side, split_of

__all__ = [
    "EXCERPT",
    "SPLITS",
    "TOLERANCE",
    "Index",
    "SharePart",
    "Split",
    "TokenisedMixture",
    "allot",
    "asked_shares",
    "draw_composition",
    "excerpts",
    "gather",
    "leaks",
    "other_side",
    "overlaps",
    "something_left",
    "split_of",
    "write_page",
    "write_splits",
]
