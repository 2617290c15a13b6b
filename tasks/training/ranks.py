"""Several processes that train one adapter, started and watched together by PyTorch's elastic launcher (torchrun's).

`python -m tasks.training.ranks BACKEND SPEC.json [DESCRIPTOR]`. On one node the training process of a night is this
one. On several, each other node runs the same command, without a descriptor, on the same work folder (a shared
file system); they meet at `training.rendezvous`, and whichever comes first waits for the others. When one process
dies all are ended, and the attempt goes on from its last checkpoint when it is made again.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from tasks.training.spec import FAILURE, RUN_ME_AGAIN, TrainingSpec

_MEET_S = 600  # for the other nodes
_SAVE_S = 60  # for a checkpoint, when the processes have to stop


def main() -> int:
    """The exit code is that of a training process (see process.py)."""
    from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    module, file = sys.argv[1], sys.argv[2]
    # The workers inherit no descriptor, but may open this process's.
    progress = f"/proc/{os.getpid()}/fd/{sys.argv[3]}" if len(sys.argv) > 3 else os.devnull
    spec = TrainingSpec.model_validate_json(Path(file).read_bytes())
    training = spec.training
    config = LaunchConfig(
        min_nodes=training.nodes,
        max_nodes=training.nodes,
        nproc_per_node=training.processes,
        run_id=spec.work.name,
        rdzv_backend="c10d",
        rdzv_endpoint=training.rendezvous or "127.0.0.1:0",
        rdzv_configs={"timeout": _MEET_S} | ({} if training.rendezvous else {"is_host": True}),
        local_addr=None if training.rendezvous else "127.0.0.1",
        max_restarts=0,
        shutdown_timeout=_SAVE_S,
        # Else the launcher leaves a folder among the temporary ones of the system, each time.
        logs_specs=DefaultLogsSpecs(log_dir=str(spec.work / "launcher")),
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", module, file, progress)
    except SignalException:
        return RUN_ME_AGAIN
    except ChildFailedError as error:
        codes = {process: failure.exitcode for process, failure in error.failures.items()}
        print(f"processes that failed, with their exit codes: {codes}", file=sys.stderr, flush=True)
        if (spec.work / FAILURE).is_file():
            return max(codes.values())
        return RUN_ME_AGAIN if min(codes.values()) < 0 or RUN_ME_AGAIN in codes.values() else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
