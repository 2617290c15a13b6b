"""One pod of a stage on a cluster: `python -m flows.node COMMAND...`, as infra/kubernetes/gpu-pool.json starts it.

A stage whose recipe says `training.nodes: N` is an indexed Job of N pods on one NIGHTOWL_HOME. The first runs the
stage. The others wait until its training meets them at `training.rendezvous`, and train along with PyTorch's elastic
launcher, attempt after attempt; the Job's success policy ends them when the first has ended.
"""

from __future__ import annotations

import os
import sys
import time

from tasks.store import Store
from tasks.training import meeting, train_along

LOOK_SECONDS = 2


def main(command: list[str]) -> int:
    if os.environ.get("JOB_COMPLETION_INDEX", "0") == "0":
        os.execvp(command[0], command)
    while True:
        file = meeting(Store.open().root / "work")
        code = train_along(file) if file else 0
        if code:
            print(f"{file}: this attempt ended with exit code {code}", file=sys.stderr, flush=True)
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
