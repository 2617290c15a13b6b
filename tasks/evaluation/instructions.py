"""Instruction following (Zhou et al. 2023, arXiv 2311.07911): are the rules of a prompt kept, every one of them?

The rules' checks are EvalScope's. Some lean on what this machine may not have: NLTK's sentence data, which is a
download, and langdetect. Such a rule is not run, which is said on each item that has it, and does not touch its score.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

_SENTENCES = ("length_constraints:number_sentences", "change_case:capital_word_frequency")
_LANGUAGE = ("language:response_language", "change_case:english_capital", "change_case:english_lowercase")


@cache
def _checks() -> dict[str, Any]:
    from evalscope.benchmarks.ifeval.instructions_registry import INSTRUCTION_DICT

    return dict(INSTRUCTION_DICT)


@cache
def not_run() -> dict[str, str]:
    """Rules that cannot be run here, and what they lack."""
    missing = dict.fromkeys(_LANGUAGE, "langdetect") if importlib.util.find_spec("langdetect") is None else {}
    return missing | (dict.fromkeys(_SENTENCES, "NLTK's punkt_tab") if not _has_sentences() else {})


def _has_sentences() -> bool:
    import nltk

    try:
        nltk.data.find("tokenizers/punkt_tab")
    except LookupError:
        return False
    return True


@cache
def runnable() -> frozenset[str]:
    """Rules that can be run here."""
    return frozenset(_checks()) - frozenset(not_run())


def fault(rules: Sequence[Mapping[str, Any]], answered: str) -> str | None:
    """Which rules an answer breaks, of those that can be run; None where it keeps them all.

    `rules`: `rule`, its name, and `with`, its settings.
    """
    broken = [rule["rule"] for rule in rules if rule["rule"] in runnable() and not _kept(rule, answered)]
    return f"does not keep {', '.join(broken)}" if broken else None


def note(rules: Sequence[Mapping[str, Any]]) -> str:
    """Which rules of an item are not run, and why; empty where all are."""
    left = sorted({rule["rule"] for rule in rules} & not_run().keys())
    return "; ".join(f"not run: {name} (needs {not_run()[name]})" for name in left)


def _kept(rule: Mapping[str, Any], answered: str) -> bool:
    check = _checks()[rule["rule"]](rule["rule"])
    check.build_description(**rule["with"])
    return bool(answered.strip()) and bool(check.check_following(answered))
