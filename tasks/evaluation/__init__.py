"""Evaluation: suites, the models they run on, and what the scores say."""

from tasks.evaluation.benchmarks import benchmark_prompts
from tasks.evaluation.explanation import explain
from tasks.evaluation.items import SuiteItems, items_digest, suite_items
from tasks.evaluation.job import Job, ModelJob, SuiteJob, run
from tasks.evaluation.judge import judge_key
from tasks.evaluation.sampling import Sampling, sampling_of
from tasks.evaluation.schema import Comparison, EvaluationSets, Reason, Scores, SuiteRun, SuiteScore, Verdict
from tasks.evaluation.served import room_for, vllm_command
from tasks.evaluation.soundness import NEEDS, flaws
from tasks.evaluation.suites import METRICS
from tasks.evaluation.verdict import Items, amount, comparable, compare, decide, reasons
from tasks.evaluation.year import Budget, Ledger, Spent, budget

__all__ = [
    "METRICS",
    "NEEDS",
    "Budget",
    "Comparison",
    "EvaluationSets",
    "Items",
    "Job",
    "Ledger",
    "ModelJob",
    "Reason",
    "Sampling",
    "Scores",
    "Spent",
    "SuiteItems",
    "SuiteJob",
    "SuiteRun",
    "SuiteScore",
    "Verdict",
    "amount",
    "benchmark_prompts",
    "budget",
    "comparable",
    "compare",
    "decide",
    "explain",
    "flaws",
    "items_digest",
    "judge_key",
    "reasons",
    "room_for",
    "run",
    "sampling_of",
    "suite_items",
    "vllm_command",
]
