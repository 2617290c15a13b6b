"""Quality: rules on rows and on nights, duplicates and contamination."""

from tasks.quality.contamination import benchmark_questions, contaminated, opened_with, opening_hashes
from tasks.quality.decision import Found, decide, decide_change
from tasks.quality.drift import Change, Measure, Passed, compared
from tasks.quality.drift_picture import draw_drift
from tasks.quality.duplicates import answers, exact_duplicates, fingerprints, questions, said
from tasks.quality.examples import example
from tasks.quality.flags import flags, row_flags, settle
from tasks.quality.judgement import applied, first_reasons, reasons, required_share
from tasks.quality.mending import CHANGES, mended
from tasks.quality.near import TWINS, Prefixes, counted_twins, near_duplicates, near_twins
from tasks.quality.profile import Profile, main_kind, profile_of
from tasks.quality.rules import BY_NAME, NIGHT_RULES, RULES, Rule
from tasks.quality.telling import changed_rows, compared_with, markdown, refusal, trained_turns
from tasks.quality.words import WordFile, Words, from_word, turn_words, word_hashes

__all__ = [
    "BY_NAME",
    "CHANGES",
    "NIGHT_RULES",
    "RULES",
    "TWINS",
    "Change",
    "Found",
    "Measure",
    "Passed",
    "Prefixes",
    "Profile",
    "Rule",
    "WordFile",
    "Words",
    "answers",
    "applied",
    "benchmark_questions",
    "changed_rows",
    "compared",
    "compared_with",
    "contaminated",
    "counted_twins",
    "decide",
    "decide_change",
    "draw_drift",
    "exact_duplicates",
    "example",
    "fingerprints",
    "first_reasons",
    "flags",
    "from_word",
    "main_kind",
    "markdown",
    "mended",
    "near_duplicates",
    "near_twins",
    "opened_with",
    "opening_hashes",
    "profile_of",
    "questions",
    "reasons",
    "refusal",
    "required_share",
    "row_flags",
    "said",
    "settle",
    "trained_turns",
    "turn_words",
    "word_hashes",
]
