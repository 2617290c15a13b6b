"""The stack of the embedded default: Prefect, MLflow and the workers on one home, on 127.0.0.1.

`nightowl run` needs a Prefect server for as long as the night takes, `nightowl up` keeps everything
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
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from flows.server import BUSY_SECONDS, Server
from tasks.errors import WorldFailed
from tasks.registry import tracking_uri
from tasks.store import home, write_whole

# Services of the Prefect server that serve deployments, workers and automations; one night by itself has none.
FOR_DEPLOYMENTS = (
    "CANCELLATION_CLEANUP", "CLEANUP_RECONCILER", "FOREMAN", "LATE_RUNS", "PAUSE_EXPIRATIONS", "REPOSSESSOR",
    "SCHEDULER", "TRIGGERS",
)  # fmt: skip
START_SECONDS = 120
POOLS = ("data", "gpu")
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
def component(name: str, command: list[str], extra: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Run a part of the stack until the block ends; its output goes to `<home>/logs/<name>.log`."""
    log = _log(name)
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


def wait_healthy(name: str, process: subprocess.Popen[bytes], healthy: Callable[[], bool]) -> None:
    """Wait until a component is healthy.

    Raises WorldFailed with its log's last lines when it ends early or is not healthy within START_SECONDS.
    """
    deadline = time.monotonic() + START_SECONDS
    while not healthy():
        if process.poll() is not None or time.monotonic() > deadline:
            state = "ended" if process.poll() is not None else f"did not answer within {START_SECONDS} s"
            tail = " | ".join(_log(name).read_text(errors="replace").splitlines()[-5:])
            raise WorldFailed(name, f"{state} ({tail})", f"The whole log is {_log(name)}.")
        time.sleep(0.1)


def _log(name: str) -> Path:
    return home() / "logs" / f"{name}.log"


def _answers(url: str) -> bool:
    try:
        # No proxy: the address is this machine's own.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


@contextmanager
def prefect_server(port: int, *, for_people: bool) -> Iterator[tuple[str, Callable[[], None]]]:
    """A Prefect server on this home; yields its API's URL and a wait until it is healthy.

    `for_people`: with its pages and schedulers.
    """
    url = f"http://127.0.0.1:{port}"
    extra = {
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_UI_ENABLED": str(for_people).lower(),
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_ENCRYPTION_KEY": _encryption_key(),
        "PREFECT_API_URL": f"{url}/api",
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    if not for_people:
        # Not --no-services: the server's recorder of task runs is one, and without it a night has none.
        extra |= {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in FOR_DEPLOYMENTS}
    with component("prefect", command, extra) as process:
        yield f"{url}/api", lambda: wait_healthy("prefect", process, lambda: _answers(f"{url}/api/health"))


@contextmanager
def mlflow_server(port: int) -> Iterator[tuple[str, Callable[[], None]]]:
    """An MLflow server on this home's runs; yields its URL and a wait until it is healthy."""
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", tracking_uri(), "--artifacts-destination", str(home() / "mlflow" / "artifacts")]
    with component("mlflow", command, {}) as process:
        yield url, lambda: wait_healthy("mlflow", process, lambda: _answers(f"{url}/health"))


@contextmanager
def worker(pool: str, api: str, mlflow: str) -> Iterator[Callable[[], None]]:
    """A worker that runs the flows of a process pool on this machine; yields a wait until it is online."""
    name = f"{pool}-{os.getpid()}"
    extra = {
        "PREFECT_API_URL": api,
        "PREFECT_UI_URL": api.removesuffix("/api"),
        "NIGHTOWL_MLFLOW_UI": mlflow,
        # Seconds between two looks for work: a night that a person starts should show a line soon.
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        # The worker's log is the only terminal that its runs have.
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "INFO",
        # Seconds between a run's signs of life, by which the server tells that its process is gone.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",
    }
    command = [sys.executable, "-m", "prefect", "worker", "start", "--type", "process", "--pool", pool, "--name", name]
    with component(pool, command, extra) as process:
        yield lambda: wait_healthy(pool, process, lambda: _is_online(api, pool, name))


def _is_online(api: str, pool: str, name: str) -> bool:
    workers = Server(api).send("POST", f"/work_pools/{pool}/workers/filter", {})
    return any(one["name"] == name and one["status"] == "ONLINE" for one in workers)


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
        with _alone("servers"), prefect_server(free_port(0), for_people=False) as (url, healthy):
            healthy()
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
    # A server that is busy may be silent for a while; one whose `nightowl up` is gone stays silent.
    deadline = time.monotonic() + BUSY_SECONDS
    while not _answers(f"{noted['prefect']}/health"):
        if not psutil.pid_exists(int(noted["pid"])) or time.monotonic() > deadline:
            return None
        time.sleep(0.2)
    return noted


@contextmanager
def servers(prefect_port: int, mlflow_port: int) -> Iterator[dict[str, str]]:
    """Both servers, until the block ends; yields their URLs (`prefect`: the API's)."""
    with ExitStack() as running:
        running.enter_context(_alone("servers"))
        prefect, prefect_healthy = running.enter_context(prefect_server(free_port(prefect_port), for_people=True))
        mlflow, mlflow_healthy = running.enter_context(mlflow_server(free_port(mlflow_port)))
        prefect_healthy()
        mlflow_healthy()
        urls = {"prefect": prefect, "mlflow": mlflow}
        write_whole(home() / _UP, json.dumps({**urls, "pid": os.getpid()}))
        running.callback(_forget_up)
        yield urls


@contextmanager
def stack(prefect_port: int, mlflow_port: int, deploy: Callable[[Server], object]) -> Iterator[dict[str, str]]:
    """Both servers with what `deploy` puts on them, and a worker for each pool, until the block ends."""
    with servers(prefect_port, mlflow_port) as urls, ExitStack() as running:
        deploy(Server(urls["prefect"]))
        online = [running.enter_context(worker(pool, urls["prefect"], urls["mlflow"])) for pool in POOLS]
        for wait in online:
            wait()
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
