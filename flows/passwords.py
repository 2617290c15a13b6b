"""Passwords and keys of the stack: made once, in files of the home that only its owner reads, never in a database."""

from __future__ import annotations

import base64
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path

from tasks.store import home

NAMES = ("PASSWORD", "PGPASSWORD", "MLFLOW_FLASK_SERVER_SECRET_KEY")
_ACCESS = "access.json"


def passwords() -> dict[str, str]:
    """The server profile's own: PASSWORD for people, PGPASSWORD and MLflow's key for the servers."""
    made = {name: secrets.token_urlsafe(24) for name in NAMES}
    kept: dict[str, str] = json.loads(_kept("passwords.json", json.dumps(made)))
    return kept


def encryption_key() -> str:
    """Key of Prefect's secret blocks."""
    given = os.environ.get("PREFECT_SERVER_ENCRYPTION_KEY")
    return given or _kept("prefect.key", base64.urlsafe_b64encode(secrets.token_bytes(32)).decode())


def access() -> dict[str, str]:
    """Environment of whoever asks this home's servers; empty where it has had none that ask for a password."""
    try:
        known: dict[str, str] = json.loads((home() / _ACCESS).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return known


def note_access(known: Mapping[str, str]) -> None:
    """Keep it for the other commands on this home."""
    half = _half(_ACCESS, json.dumps(dict(known)))
    half.replace(home() / _ACCESS)


def _kept(name: str, text: str) -> str:
    """What a file of the home holds: `text` where it is new. It appears whole."""
    path, half = home() / name, _half(name, text)
    try:
        os.link(half, path)
    except FileExistsError:
        return path.read_text(encoding="utf-8")
    finally:
        half.unlink()
    return text


def _half(name: str, text: str) -> Path:
    path = home() / f"{name}.{secrets.token_hex(4)}"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.write(text)
    return path
