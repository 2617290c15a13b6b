"""A flow run of a worker: `python -m flows.run`, Prefect's engine in a session of its own.

The run is asked for in PREFECT__FLOW_RUN_ID. A signal to the worker's group is not meant for it: the worker tells it.
"""

from __future__ import annotations

import gc
import os
import runpy
import sys


def main() -> None:
    # The worker makes it a child of its own group; the leader of a group cannot leave it, and need not.
    if os.getpgid(0) != os.getpid():
        os.setsid()
    # Collecting among Prefect's modules finds nothing, and takes a tenth of the start.
    gc.disable()
    import prefect.flow_engine  # noqa: F401

    gc.freeze()
    gc.enable()
    sys.modules.pop("prefect.engine", None)  # as a library; it is run as a program now, and runpy warns of both
    runpy.run_module("prefect.engine", run_name="__main__")


if __name__ == "__main__":
    main()
