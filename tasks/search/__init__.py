"""Search: which values the next candidates get, and what earlier ones came to."""

from tasks.search.sampling import Point, propose
from tasks.search.schema import Outcome, Proposal, Tried
from tasks.search.trials import Trials

__all__ = ["Outcome", "Point", "Proposal", "Trials", "Tried", "propose"]
