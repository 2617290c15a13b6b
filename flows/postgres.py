"""The PostgreSQL of the server profile: started on this home where its programs are, or somebody else's by its URL.

The programs refuse to run as root. There they run as the user postgres (Debian's) or nobody, who owns the database's
folder; where that user cannot reach the home, the folder is below /var/lib/nightowl.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

from flows.component import Component, component, free_port, wait_healthy
from tasks.errors import BadInput, WorldFailed
from tasks.store import digest, home

USER = "nightowl"
DATABASES = ("prefect", "mlflow", "mlflow_users")
DEBIAN = Path("/usr/lib/postgresql")
FOR_ROOT = Path("/var/lib/nightowl")
PORT = 5432


@dataclass(frozen=True)
class Address:
    """Where a PostgreSQL server answers, and as whom it is asked; `first`: a database that is there already."""

    host: str
    port: int
    user: str
    first: str = "postgres"

    def sqlalchemy(self, database: str) -> str:
        """For MLflow; the password comes from PGPASSWORD."""
        return f"postgresql+psycopg://{self.user}@{self.host}:{self.port}/{database}"


def address(url: str) -> Address:
    """The address in postgresql://USER@HOST[:PORT][/DATABASE].

    Raises BadInput when it is something else, or holds a password.
    """
    parts = urlsplit(url)
    way_out = "Give postgresql://USER@HOST[:PORT], with the password in PGPASSWORD."
    if parts.password:
        raise BadInput("--postgres", f"{parts.scheme}://{parts.username}:***@...", "holds a password", way_out)
    try:
        port = parts.port or PORT
    except ValueError as error:
        raise BadInput("--postgres", url, str(error), way_out) from error
    if parts.scheme not in ("postgresql", "postgres") or not parts.hostname or not parts.username:
        raise BadInput("--postgres", url, "is not the address of a PostgreSQL server", way_out)
    return Address(parts.hostname, port, unquote(parts.username), parts.path.strip("/") or "postgres")


def require_databases(at: Address, password: str) -> None:
    """Make the databases that are not there yet.

    Raises WorldFailed when the server does not answer or does not let us.
    """
    import psycopg

    where = f"postgresql://{at.user}@{at.host}:{at.port}/{at.first}"
    try:
        with psycopg.connect(
            host=at.host, port=at.port, user=at.user, password=password, dbname=at.first, autocommit=True,
            connect_timeout=10,
        ) as connection:  # fmt: skip
            there = {name for (name,) in connection.execute("SELECT datname FROM pg_database").fetchall()}
            for name in DATABASES:
                if name not in there:
                    connection.execute(f"CREATE DATABASE {name}")
    except psycopg.Error as error:
        first_line = str(error).strip().partition("\n")[0]
        way_out = f"Check the address and PGPASSWORD, or have the databases {', '.join(DATABASES)} made for this user."
        raise WorldFailed(where, f"PostgreSQL did not do it ({first_line})", way_out) from error


@contextmanager
def postgres(password: str) -> Iterator[tuple[Address, Component]]:
    """A server of our own on 127.0.0.1, its data below the home, until the block ends.

    Raises BadInput where its programs are not here, WorldFailed where they fail.
    """
    programs = _programs()
    run_as = _run_as()
    folder = _folder(run_as)
    data = folder / "data"
    if not data.exists():
        _initialise(programs, run_as, folder, data, password)
    at = Address("127.0.0.1", free_port(PORT), USER)
    settings = {"listen_addresses": at.host, "unix_socket_directories": "", "log_min_messages": "warning"}
    options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
    command = [*run_as, str(programs / "postgres"), "-D", str(data), "-p", str(at.port), *options]
    ready = [str(programs / "pg_isready"), "-q", "-h", at.host, "-p", str(at.port), "-d", at.first]
    with component("postgres", command, {"LC_ALL": "C.UTF-8"}) as part:
        wait_healthy(part, lambda: subprocess.run(ready, check=False).returncode == 0)
        yield at, part


def _programs() -> Path:
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else []
    newest = sorted(DEBIAN.glob("*/bin"), key=lambda place: _version(place.parent.name), reverse=True)
    for place in [*places, *newest]:
        if (place / "initdb").exists() and (place / "pg_isready").exists():
            return place
    raise BadInput(
        "--profile",
        "server",
        f"needs PostgreSQL, and initdb is neither on PATH nor in {DEBIAN}/*/bin",
        "Install it (Debian and Ubuntu: apt install postgresql), or name a server: --postgres postgresql://USER@HOST",
    )


def _version(name: str) -> float:
    try:
        return float(name)
    except ValueError:
        return 0.0


def _run_as() -> list[str]:
    """What goes before a program of PostgreSQL: nothing, or, for root, what makes it another user's process."""
    if os.geteuid() != 0:
        return []
    known = {entry.pw_name for entry in pwd.getpwall()}
    user = next((name for name in ("postgres", "nobody") if name in known), None)
    program = shutil.which("setpriv")
    if user is None or program is None:
        missing = "setpriv" if user else "a user postgres or nobody"
        way_out = "Start it as another user, or name a server: --postgres postgresql://USER@HOST"
        raise BadInput("--profile", "server", f"as root needs {missing}: PostgreSQL refuses to run as root", way_out)
    entry = pwd.getpwnam(user)
    return [program, f"--reuid={entry.pw_uid}", f"--regid={entry.pw_gid}", "--clear-groups"]


def _folder(run_as: Sequence[str]) -> Path:
    own = home() / "postgres"
    if not run_as:
        own.mkdir(mode=0o700, exist_ok=True)
        return own
    reachable = subprocess.run([*run_as, "test", "-x", str(home())], check=False).returncode == 0
    folder = own if reachable else FOR_ROOT / f"postgres-{digest(str(home()))[:12]}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    user, group = (int(part.partition("=")[2]) for part in run_as[1:3])
    os.chown(folder, user, group)
    return folder


def _initialise(programs: Path, run_as: Sequence[str], folder: Path, data: Path, password: str) -> None:
    """A new, empty server. It gets its name last, so that one that was made by half is not taken for one."""
    half, secret = folder / "data.new", folder / "password"
    shutil.rmtree(half, ignore_errors=True)
    secret.touch(mode=0o600)
    secret.write_text(password)
    owner = folder.stat()
    os.chown(secret, owner.st_uid, owner.st_gid)
    try:
        done = subprocess.run(
            [*run_as, str(programs / "initdb"), "-D", str(half), "-U", USER, "--pwfile", str(secret),
             "-A", "scram-sha-256", "-E", "UTF8", "--locale", "C.UTF-8"],
            capture_output=True, text=True, check=False, cwd=folder,
        )  # fmt: skip
    finally:
        secret.unlink()
    if done.returncode != 0:
        raise WorldFailed("initdb", f"made no database ({done.stderr.strip()[-500:]})", f"See {folder}.")
    half.rename(data)
