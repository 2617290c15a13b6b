"""The servers of the embedded default: Prefect and MLflow on one home, on 127.0.0.1.

`nightowl run` needs a Prefect server for as long as the night takes, `nightowl up` keeps both
running. They share `NIGHTOWL_HOME`, so what a night recorded is there to see afterwards. A server
that is already up on this home is used, never doubled: two would fight over one SQLite file.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from tasks.errors import WorldFailed
from tasks.registry import tracking_uri
from tasks.store import home, write_whole

START_SECONDS = 120
_UP = "up.json"


def environment() -> dict[str, str]:
    """Environment of every process of ours: state under the home, no telemetry, quiet consoles.

    What the user has set stays as it is.
    """
    defaults = {
        "PREFECT_HOME": str(home() / "prefect"),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
        "PREFECT_LOGGING_EXTRA_LOGGERS": "nightowl",
        # The terminal tells the story of the night itself; Prefect's own lines are in its UI.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "CRITICAL",
        "DO_NOT_TRACK": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "true",
        # Threads that wait for each other sleep instead of spinning: on cores shared with others, steps take a third.
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return {name: os.environ.get(name, value) for name, value in defaults.items()}


def free_port(preferred: int) -> int:
    """The preferred TCP port of 127.0.0.1 where it is free, else one that the system picks."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise WorldFailed("127.0.0.1", "no TCP port is free", "End a server that you no longer need.")


@contextmanager
def server(name: str, command: list[str], health: str, extra: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the block ends; yields once its health address answers.

    Its output goes to `<home>/logs/<name>.log`. Raises WorldFailed with the log's last lines when it
    ends early or is not healthy within START_SECONDS.
    """
    log = home() / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    with open(log, "ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "flows.tethered", *command],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **environment(), **extra},
        )
    try:
        _wait_healthy(name, process, health, log)
        yield process
    finally:
        if process.stdin:
            process.stdin.close()
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_healthy(name: str, process: subprocess.Popen[bytes], health: str, log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while not _answers(health):
        if process.poll() is not None or time.monotonic() > deadline:
            state = "ended" if process.poll() is not None else f"did not answer within {START_SECONDS} s"
            tail = " | ".join(log.read_text(errors="replace").splitlines()[-5:])
            raise WorldFailed(f"{name} server", f"{state} ({tail})", f"The whole log is {log}.")
        time.sleep(0.1)


def _answers(url: str) -> bool:
    try:
        # No proxy: the address is this machine's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def prefect_server(port: int, *, for_people: bool) -> Iterator[str]:
    """A Prefect server on this home; yields its API's URL. `for_people`: with its pages and schedulers."""
    url = f"http://127.0.0.1:{port}"
    extra = {
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_UI_ENABLED": str(for_people).lower(),
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_ENCRYPTION_KEY": _encryption_key(),
    }
    extra.update({"PREFECT_API_URL": f"{url}/api"})
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with server("prefect", command + ([] if for_people else ["--no-services"]), f"{url}/api/health", extra):
        yield f"{url}/api"


@contextmanager
def mlflow_server(port: int) -> Iterator[str]:
    """An MLflow server on this home's runs; yields its URL."""
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", tracking_uri(), "--artifacts-destination", str(home() / "mlflow" / "artifacts")]
    with server("mlflow", command, f"{url}/health", {}):
        yield url


@contextmanager
def for_one_night() -> Iterator[str]:
    """The Prefect API for a night in this process: the one that is set, that is up, or one of our own.

    A second night on the same home waits for the first, so that neither works for nothing.
    """
    if "PREFECT_API_URL" in os.environ:
        yield os.environ["PREFECT_API_URL"]
        return
    with _alone("night"):
        if up := is_up():
            yield up["prefect"]
            return
        with _alone("servers"), prefect_server(free_port(0), for_people=False) as url:
            try:
                yield url
            finally:
                _send_last_logs()


def _send_last_logs() -> None:
    """Wait for the log lines that are still on their way to the server, at most a few seconds."""
    if "prefect.logging.handlers" in sys.modules:
        from prefect.logging.handlers import APILogHandler

        APILogHandler().flush()


@contextmanager
def _alone(what: str) -> Iterator[None]:
    """Hold one of the home's locks: `night` while a night runs here, `servers` while somebody serves this home."""
    lock = FileLock(home() / f"{what}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Another night runs on {home()}; waiting for it to end ...", file=sys.stderr, flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def is_up() -> dict[str, str] | None:
    """URLs of the stack that `nightowl up` keeps running on this home, or None."""
    try:
        noted: dict[str, str] = json.loads((home() / _UP).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return noted if _answers(f"{noted['prefect']}/health") else None


@contextmanager
def stack(prefect_port: int, mlflow_port: int) -> Iterator[dict[str, str]]:
    """Both servers, until the block ends; yields their URLs (`prefect`: the API's)."""
    with ExitStack() as running:
        running.enter_context(_alone("servers"))
        # Both before either is waited for would be faster, but on two cores they only slow each other.
        urls = {"prefect": running.enter_context(prefect_server(free_port(prefect_port), for_people=True))}
        urls["mlflow"] = running.enter_context(mlflow_server(free_port(mlflow_port)))
        write_whole(home() / _UP, json.dumps({**urls, "pid": os.getpid()}))
        running.callback(_forget_up)
        yield urls


def _forget_up() -> None:
    with suppress(FileNotFoundError):
        (home() / _UP).unlink()


def _encryption_key() -> str:
    """Key of Prefect's secret blocks; kept beside the database, never in it, readable by its owner alone."""
    if key := os.environ.get("PREFECT_SERVER_ENCRYPTION_KEY"):
        return key
    path = home() / "prefect.key"
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return path.read_text()
    import base64

    key = base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()
    with os.fdopen(descriptor, "w") as file:
        file.write(key)
    return key
