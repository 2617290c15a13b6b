"""Training: backends behind one small interface, tokenised splits and a spec in, adapter and metrics out."""

from tasks.training.schema import Adapter, Progress

__all__ = ["Adapter", "Progress"]
