"""Training: backends behind one small interface, tokenised splits and a spec in, adapter and metrics out."""

from tasks.training.adapter_folder import CONFIG, is_whole, rank_of, require_base, weights_digest
from tasks.training.memory import Memory, estimate, fitting, longest, shape_of
from tasks.training.method import require_possible
from tasks.training.mirrors import figures, mirrored, require_installed
from tasks.training.nodes import meeting, train_along
from tasks.training.process import run
from tasks.training.rows import steps
from tasks.training.schema import Adapter, Progress
from tasks.training.spec import LOG, PROGRESS, TrainingResult, TrainingSpec

BACKENDS = {
    "unsloth": "tasks.training.unsloth_backend",
    "transformers": "tasks.training.transformers_backend",
}

__all__ = [
    "BACKENDS",
    "CONFIG",
    "LOG",
    "PROGRESS",
    "Adapter",
    "Memory",
    "Progress",
    "TrainingResult",
    "TrainingSpec",
    "estimate",
    "figures",
    "fitting",
    "is_whole",
    "longest",
    "meeting",
    "mirrored",
    "rank_of",
    "require_base",
    "require_installed",
    "require_possible",
    "run",
    "shape_of",
    "steps",
    "train_along",
    "weights_digest",
]
