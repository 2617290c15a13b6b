"""Secrets stay in the environment: none turns up in parameters, logs, artifacts, databases or the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import pytest
from stack import PLANTED, Stack

pytestmark = pytest.mark.timeout(600)


def holding(folder: Path, secrets: set[bytes]) -> list[tuple[str, bytes]]:
    """Files of a folder with one of the secrets in them."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [(str(path.relative_to(folder)), secret) for secret in secrets if secret in content]
    return found


def test_no_secret_of_the_environment_is_written_down(up: Stack, tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    up.deploy({**tiny_recipe, "name": "discreet"}, tmp_path / "discreet.yaml")
    run = up.start("watch-sources/discreet")
    assert up.ended(run["id"], 180)["state"]["type"] == "COMPLETED", up.log(run["id"])
    family = psutil.Process(up.process.pid).children(recursive=True)
    assert any(process.environ().get("HF_TOKEN") == PLANTED["HF_TOKEN"] for process in family), "nothing was planted"
    secrets = {value.encode() for value in PLANTED.values()} | {b"token-of-the-webhook"}
    assert holding(up.home, {b"discreet"}), "the search finds nothing at all"
    assert holding(up.home, secrets) == []
