"""The server profile: what it asks for, what it makes once, and whom it lets in. Its stack runs in tests/browser."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows import postgres
from flows.passwords import access, encryption_key, note_access, passwords
from flows.postgres import address, require_databases
from flows.profile import profile
from tasks.errors import BadInput, WorldFailed


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("postgresql://me:secret@here", "holds a password"),
        ("mysql://me@here", "is not the address"),
        ("postgresql://here", "is not the address"),
        ("postgresql://me@here:port", "port"),
    ],
)
def test_an_address_that_is_none_is_refused_and_its_password_not_repeated(url: str, says: str) -> None:
    with pytest.raises(BadInput, match=says) as raised:
        address(url)
    assert "secret" not in str(raised.value)


def test_a_server_that_does_not_answer_is_one_clear_error() -> None:
    with pytest.raises(WorldFailed, match=r"postgresql://me@127\.0\.0\.1:9/postgres.*PGPASSWORD"):
        require_databases(address("postgresql://me@127.0.0.1:9"), "secret")


@pytest.mark.parametrize("store", [None, "/tmp/store", "gs://bucket/store", "s3://"])
def test_without_an_s3_store_it_says_what_to_set(store: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTOWL_STORE", store or "")
    with pytest.raises(BadInput, match=r"NIGHTOWL_STORE.*s3://BUCKET/PREFIX"), profile("server", None):
        pass


def test_a_home_stays_with_its_profile(nightowl_home: Path) -> None:
    with profile("embedded", None) as embedded:
        assert embedded.access == {}
    note_access({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    with pytest.raises(BadInput, match="its registry is PostgreSQL"), profile("embedded", None):
        pass


def test_a_command_on_a_home_whose_servers_are_down_says_so_at_once(nightowl_home: Path) -> None:
    note_access({"MLFLOW_TRACKING_URI": "http://127.0.0.1:9"})
    command = [sys.executable, "-m", "flows.cli", "candidates", "demo"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 3
    assert "servers that are not up. Start them: nightowl up" in done.stderr


def test_passwords_and_keys_are_made_once_for_their_owner_alone(nightowl_home: Path) -> None:
    script = "import json; from flows.passwords import *; print(json.dumps([passwords(), encryption_key()]))"
    started = [subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) for _ in range(4)]
    made = {process.communicate()[0] for process in started}
    assert made == {json.dumps([passwords(), encryption_key()]).encode() + b"\n"}
    assert all(len(value) >= 32 for value in passwords().values())
    note_access({"PREFECT_API_AUTH_STRING": "one"})
    note_access({"PREFECT_API_AUTH_STRING": "two"})
    assert access() == {"PREFECT_API_AUTH_STRING": "two"}
    kept = {path.name: path.stat().st_mode & 0o777 for path in nightowl_home.iterdir() if path.is_file()}
    assert kept == dict.fromkeys(("passwords.json", "prefect.key", "access.json"), 0o600)


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that every user can reach, for /var/lib/nightowl."""
    with tempfile.TemporaryDirectory(prefix="nightowl-postgres-") as folder:
        Path(folder).chmod(0o711)
        monkeypatch.setattr(postgres, "FOR_ROOT", Path(folder))
        yield Path(folder)


def test_postgres_is_started_also_by_root_on_a_home_that_is_roots_alone(nightowl_home: Path, elsewhere: Path) -> None:
    try:
        postgres._programs()
    except BadInput as error:
        pytest.skip(str(error))
    nightowl_home.mkdir(mode=0o700)
    for _ in range(2):  # the second time, what the first made is there
        with postgres.postgres("a secret") as (at, _):
            require_databases(at, "a secret")
            with pytest.raises(WorldFailed, match="password authentication failed"):
                require_databases(at, "guessed")
    assert list(elsewhere.iterdir()) if os.geteuid() == 0 else (nightowl_home / "postgres" / "data").exists()
