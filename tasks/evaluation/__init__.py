"""Evaluation: suites, the models they run on, and what the scores say."""

from tasks.evaluation.items import items_digest, suite_items
from tasks.evaluation.job import Job, ModelJob, SuiteJob, run
from tasks.evaluation.schema import Comparison, Scores, SuiteScore, Verdict
from tasks.evaluation.suites import SUITES
from tasks.evaluation.verdict import Items, compare, decide, reasons

__all__ = [
    "SUITES",
    "Comparison",
    "Items",
    "Job",
    "ModelJob",
    "Scores",
    "SuiteJob",
    "SuiteScore",
    "Verdict",
    "compare",
    "decide",
    "items_digest",
    "reasons",
    "run",
    "suite_items",
]
