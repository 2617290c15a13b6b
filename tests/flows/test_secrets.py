"""Secrets stay in the environment: none turns up in parameters, logs, artifacts, databases or the store."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from stack import PLANTED, Stack

pytestmark = pytest.mark.timeout(600)
OWN = ("passwords.json", "access.json")
"""Where the server profile keeps its passwords, for their owner alone."""


def holding(folder: Path, secrets: set[bytes]) -> list[tuple[str, bytes]]:
    """Files of a folder with one of the secrets in them."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and path.name not in OWN:
            try:
                content = path.read_bytes()
            except FileNotFoundError:  # a server's own, gone since
                continue
            found += [(str(path.relative_to(folder)), secret) for secret in secrets if secret in content]
    return found


def test_no_secret_is_written_down(stack: Stack, tiny_recipe: dict[str, Any], tmp_path: Path) -> None:
    stack.deploy({**tiny_recipe, "name": "discreet"}, tmp_path / "discreet.yaml")
    run = stack.start("watch-sources/discreet")
    assert stack.ended(run["id"], 300)["state"]["type"] == "COMPLETED", stack.log(run["id"])
    commands, environments = [], []
    for process in psutil.Process(stack.process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # the run's own ends soon after the run
            commands.append(process.cmdline())
            environments += [process.environ()] if "flows.tethered" in commands[-1] else []
    assert any(one.get("HF_TOKEN") == PLANTED["HF_TOKEN"] for one in environments), "nothing was planted"
    secrets = {value.encode() for value in PLANTED.values()} | {b"token-of-the-webhook"}
    if stack.password:
        secrets |= {value.encode() for value in json.loads((stack.home / "passwords.json").read_text()).values()}
    assert holding(stack.home, {b"discreet"}), "the search finds nothing at all"
    assert holding(stack.home, secrets) == []
    # Nor can other users read it in the list of processes.
    words = " ".join(word for command in commands for word in command)
    assert [secret for secret in secrets if secret.decode() in words] == []
