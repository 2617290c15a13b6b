"""Quality: row rules, duplicates and contamination."""

from tasks.quality.duplicates import exact_duplicates, fingerprints
from tasks.quality.examples import example
from tasks.quality.flags import flags, row_flags, settle
from tasks.quality.judgement import first_reasons, reasons, required_share
from tasks.quality.rules import RULES, Rule, applied

__all__ = [
    "RULES",
    "Rule",
    "applied",
    "exact_duplicates",
    "example",
    "fingerprints",
    "first_reasons",
    "flags",
    "reasons",
    "required_share",
    "row_flags",
    "settle",
]
