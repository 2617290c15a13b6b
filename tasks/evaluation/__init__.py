"""Evaluation: suites, the models they run on, and what the scores say."""

from tasks.evaluation.schema import Comparison, Scores, SuiteScore, Verdict

__all__ = ["Comparison", "Scores", "SuiteScore", "Verdict"]
