"""A worker of a process pool: `python -m flows.worker worker start --pool NAME ...`, Prefect's command with one change.

Prefect's own worker starts two Pythons a run: one fetches code by the deployment's pull steps, and becomes the other,
which runs it. Nightowl is installed where its workers are and has no pull steps, so a run is one Python, flows/run.py,
and begins two seconds sooner.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker


class Configuration(ProcessJobConfiguration):
    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        self.command = self.command or command_to_string([sys.executable, "-m", "flows.run"])
        super().prepare_for_flow_run(*args, **kwargs)


with warnings.catch_warnings():
    # Prefect warns that one type of worker takes the place of another, which is the purpose.
    warnings.simplefilter("ignore")

    class Worker(ProcessWorker):
        job_configuration = Configuration


if __name__ == "__main__":
    from prefect.cli import app

    app()
