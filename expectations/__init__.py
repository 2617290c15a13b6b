"""Great Expectations suites, one module a table, and the history of the nights they checked.

A suite is checked against a narrow frame: scalar columns derived from the table and one boolean
column a row rule, true where the row breaks it. Nothing here knows where the frame comes from.
"""

from expectations.changes import Bound
from expectations.history import PAGES, CheckFailed, Outcome, Table, check
from expectations.rule import RowRule

__all__ = ["PAGES", "Bound", "CheckFailed", "Outcome", "RowRule", "Table", "check"]
