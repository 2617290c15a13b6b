"""The same registry over HTTP: nights, versions, the write-once journal and aliases on an MLflow server."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tasks import registry
from tasks.errors import Refused
from tasks.register import promote, rollback
from tasks.registry import Version


@pytest.fixture
def server(embedded: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An MLflow server on a free port, named by MLFLOW_TRACKING_URI."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    folder = embedded / "mlflow"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/served"]
    with open(embedded / "server.log", "w") as log:
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
        )
    try:
        until = time.monotonic() + 240
        while True:
            try:
                with urllib.request.urlopen(f"{url}/health", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None, (embedded / "server.log").read_text()[-2000:]
                assert time.monotonic() < until, "the server did not start"
                time.sleep(0.2)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        yield url
    finally:
        os.killpg(process.pid, 15)
        process.wait(30)


def test_a_server_is_used_as_the_embedded_database_is(
    server: str, world: Any, make: Callable[..., Any], enter: Callable[[Any], Version], embedded: Path
) -> None:
    first, second = enter(world), enter(make(seed=1))
    assert enter(world) == first
    assert promote(first).moved
    with pytest.raises(Refused, match="champion is version 1 now"):
        promote(second)
    assert promote(enter(make(seed=1, champion=world.adapter.address))).moved
    assert rollback(first.model, who="ada", why="worse at night").to == 1
    champion = registry.champion(world.recipe)
    assert champion is not None
    assert champion.version == 1
    assert [c.aliases for c in registry.candidates(world.recipe)] == [("previous",), ("champion",)]
    assert [move.moved for move in registry.moves(registry.client(), first.model)] == [True, False, True, True]
    assert {night.outcome for night in registry.nights(world.recipe.name)} == {"kept"}
    found = registry.containing_source(registry.pinned(world.snapshots[0].uri, world.snapshots[0].revision))
    assert [entry.version for entry in found.versions] == [2, 1]

    journal = registry.client().get_registered_model(first.model).tags["nightowl.journal"]
    from tasks.registry.journal import _write_once

    assert not _write_once(registry.client(), journal, "000001.claim", {"token": "late"})
    import mlflow

    folder = Path(mlflow.artifacts.download_artifacts(first.uri, dst_path=str(embedded / "got")))
    assert list(folder.rglob("adapter_model.safetensors"))
