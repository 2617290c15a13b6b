"""Quality: row rules, duplicates and contamination."""

from tasks.quality.contamination import benchmark_questions, contaminated, opened_with, opening_hashes
from tasks.quality.duplicates import exact_duplicates, fingerprints, said
from tasks.quality.examples import example
from tasks.quality.flags import flags, row_flags, settle
from tasks.quality.judgement import first_reasons, reasons, required_share
from tasks.quality.mending import CHANGES, mended
from tasks.quality.near import Bands, near_duplicates, near_pairs
from tasks.quality.rules import RULES, Rule, applied
from tasks.quality.words import WordFile, Words, word_hashes

__all__ = [
    "CHANGES",
    "RULES",
    "Bands",
    "Rule",
    "WordFile",
    "Words",
    "applied",
    "benchmark_questions",
    "contaminated",
    "exact_duplicates",
    "example",
    "fingerprints",
    "first_reasons",
    "flags",
    "mended",
    "near_duplicates",
    "near_pairs",
    "opened_with",
    "opening_hashes",
    "reasons",
    "required_share",
    "row_flags",
    "said",
    "settle",
    "word_hashes",
]
