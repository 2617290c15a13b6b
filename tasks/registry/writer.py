"""Metrics on their way to MLflow: gathered and sent in batches by a thread, so that logging never holds training up."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from typing import Any

from tasks.errors import WorldFailed
from tasks.registry.tracking import tracking_uri

_LINGER = 1.0  # seconds that a metric may wait for company
_IDLE = 10.0  # seconds without metrics after which the thread ends
_RETRY = 5.0  # seconds between attempts while MLflow does not answer
_BATCH = 1000  # MLflow's own bound on a batch


class MetricWriter:
    """Sends metrics of any number of runs. Nothing is lost while MLflow is away: it is kept and sent later."""

    def __init__(self, mlflow: Any) -> None:
        self._mlflow = mlflow
        self._pending: list[tuple[str, Any]] = []
        self._sending = 0
        self._hurry = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    def add(self, run_id: str, values: dict[str, float], step: int | None) -> None:
        """Queue values of one moment; returns at once."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        metrics = [(run_id, Metric(key, float(value), now, step or 0)) for key, value in values.items()]
        with self._changed:
            self._pending += metrics
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="mlflow-metrics", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout: float = 60) -> None:
        """Wait until everything queued is written; raises WorldFailed when MLflow does not take it in time (s)."""
        until = time.monotonic() + timeout
        with self._changed:
            self._hurry = True
            self._changed.notify_all()
            while self._pending or self._sending:
                left = until - time.monotonic()
                if left <= 0:
                    self._hurry = False
                    raise WorldFailed(
                        tracking_uri(),
                        f"{len(self._pending)} metrics could not be written ({self._error or 'no answer'})",
                        "Check that the tracking server runs and its disk has space.",
                    )
                self._changed.wait(left)
            self._hurry = False

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._pending and not self._changed.wait_for(lambda: bool(self._pending), _IDLE):
                    self._thread = None
                    return
                if not self._hurry:
                    self._changed.wait(_LINGER)
                batch, self._pending = self._pending[:_BATCH], self._pending[_BATCH:]
                self._sending = len(batch)
            unsent = self._send(batch)
            with self._changed:
                self._pending = unsent + self._pending
                self._sending = 0
                self._changed.notify_all()
                if unsent:
                    self._changed.wait(_RETRY)

    def _send(self, batch: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
        """Write a batch; returns what could not be written."""
        by_run = defaultdict(list)
        for run_id, metric in batch:
            by_run[run_id].append(metric)
        unsent: list[tuple[str, Any]] = []
        for run_id, metrics in by_run.items():
            try:
                self._mlflow.log_batch(run_id, metrics=metrics)
            # Whatever went wrong, the metrics stay queued and flush() tells the caller.
            except Exception as error:
                self._error = error
                unsent += [(run_id, metric) for metric in metrics]
        return unsent
