"""The stack: Prefect, MLflow and the workers on one home, on 127.0.0.1.

`nightowl run` needs a Prefect server for as long as the night takes, `nightowl up` keeps everything
running. They share `NIGHTOWL_HOME`, so what a night recorded is there to see afterwards. A server
that is already up on this home is used, never doubled: two would fight over one SQLite file.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil
from filelock import FileLock, Timeout

from flows.component import Component, answers, component, environment, free_port, wait_healthy
from flows.passwords import access, encryption_key, note_access
from flows.profile import profile
from flows.server import BUSY_SECONDS, Server
from flows.tethered import LEAVES
from tasks.errors import WorldFailed
from tasks.store import home, write_whole

# Services of the Prefect server that serve deployments, workers and automations; one night by itself has none.
FOR_DEPLOYMENTS = (
    "CANCELLATION_CLEANUP", "CLEANUP_RECONCILER", "FOREMAN", "LATE_RUNS", "PAUSE_EXPIRATIONS", "REPOSSESSOR",
    "SCHEDULER", "TRIGGERS",
)  # fmt: skip
POOLS = ("data", "gpu")
_UP = "up.json"


class AlreadyUp(Exception):
    """Another `nightowl up` serves this home; `urls`: as is_up() has them."""

    def __init__(self, urls: dict[str, str]) -> None:
        super().__init__(urls)
        self.urls = urls


@contextmanager
def prefect_server(
    port: int, *, for_people: bool, state: Mapping[str, str] | None = None
) -> Iterator[tuple[str, Component, Callable[[], None]]]:
    """A Prefect server on this home; yields its API's URL, itself and a wait until it is healthy.

    `for_people`: with its pages and schedulers; `state`: where its database is, SQLite on this home where not given.
    """
    url = f"http://127.0.0.1:{port}"
    extra = {
        "PREFECT_SERVER_API_HOST": "127.0.0.1",
        "PREFECT_SERVER_API_PORT": str(port),
        "PREFECT_UI_API_URL": f"{url}/api",
        "PREFECT_SERVER_UI_ENABLED": str(for_people).lower(),
        "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect.server.concurrency.lease_storage.filesystem",
        "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "flows.ordering",
        "PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL": "WARNING",  # to its log, where a person looks when it fails
        "PREFECT_SERVER_ENCRYPTION_KEY": encryption_key(),
        "PREFECT_API_URL": f"{url}/api",
        **(state or _sqlite()),
    }
    command = [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    if not for_people:
        # Not --no-services: the server's recorder of task runs is one, and without it a night has none.
        extra |= {f"PREFECT_SERVER_SERVICES_{name}_ENABLED": "false" for name in FOR_DEPLOYMENTS}
    with component("prefect", command, extra) as part:
        yield f"{url}/api", part, lambda: wait_healthy(part, lambda: answers(f"{url}/api/health"))


def _sqlite() -> dict[str, str]:
    """The database of a Prefect server of this home: the file that Prefect itself would take, with the connections of
    flows/sqlite.py. Nothing where the user has named another."""
    named = {f"PREFECT_{of}_DATABASE_{what}" for of in ("API", "SERVER") for what in ("CONNECTION_URL", "DRIVER")}
    if not named.isdisjoint(os.environ):
        return {}
    folder = Path(environment()["PREFECT_HOME"]).expanduser()
    return {"PREFECT_SERVER_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{folder}/prefect.db?plugin=nightowl"}


@contextmanager
def mlflow_server(
    port: int, options: Sequence[str], extra: Mapping[str, str]
) -> Iterator[tuple[str, Component, Callable[[], None]]]:
    """An MLflow server; yields its URL, itself and a wait until it is healthy. `options`: where its state is."""
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    with component("mlflow", [*command, *options], extra) as part:
        yield url, part, lambda: wait_healthy(part, lambda: answers(f"{url}/health"))


@contextmanager
def worker(pool: str, api: str, mlflow: str) -> Iterator[tuple[Component, Callable[[], None]]]:
    """A worker that runs the flows of a process pool on this machine; yields it and a wait until it is online."""
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
        LEAVES: "1",
    }
    start = ["worker", "start", "--type", "process", "--pool", pool, "--name", name]
    command = [sys.executable, "-m", "flows.worker", *start]
    with component(pool, command, extra, lambda: _take_back(api, pool)) as part:
        yield part, lambda: wait_healthy(part, lambda: _is_online(api, pool, name))


def _take_back(api: str, pool: str) -> None:
    """Schedule again what a worker had taken and not started when it went: it would wait for good."""
    server = Server(api)
    query = {"flow_runs": {"state": {"type": {"any_": ["PENDING"]}}}, "work_pools": {"name": {"any_": [pool]}}}
    for run in server.send("POST", "/flow_runs/filter", query):
        state = {"type": "SCHEDULED", "message": "The worker that had taken it is gone."}
        server.send("POST", f"/flow_runs/{run['id']}/set_state", {"state": state, "force": True})


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
        if access():
            raise WorldFailed(str(home()), "keeps its registry on servers that are not up", "Start them: nightowl up")
        with _alone("servers"), prefect_server(free_port(0), for_people=False) as (url, _, healthy):
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
    said = False
    while not lock.is_locked:
        try:
            lock.acquire(timeout=1 if said else 0)
        except Timeout:
            if what == "servers" and (running := is_up()):
                raise AlreadyUp(running) from None
            if not said:
                print(f"Somebody works on {home()}; waiting for them to end ...", file=sys.stderr, flush=True)
            said = True
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
    while not answers(f"{noted['prefect']}/health"):
        if not psutil.pid_exists(int(noted["pid"])) or time.monotonic() > deadline:
            return None
        time.sleep(0.2)
    return noted


@contextmanager
def servers(
    prefect_port: int,
    mlflow_port: int,
    kind: str = "embedded",
    postgres: str | None = None,
    meanwhile: Callable[[], object] | None = None,
) -> Iterator[tuple[dict[str, str], list[Component]]]:
    """Both servers, until the block ends; yields their URLs (`prefect`: the API's) and what runs.

    `kind`: their profile; `postgres`: URL of a PostgreSQL server for it, one of our own where not given;
    `meanwhile`: what to do while they start.
    """
    with ExitStack() as running:
        running.enter_context(_alone("servers"))
        state = running.enter_context(profile(kind, postgres))
        prefect, its_server, prefect_healthy = running.enter_context(
            prefect_server(free_port(prefect_port), for_people=True, state=state.prefect)
        )
        mlflow, its_tracking, mlflow_healthy = running.enter_context(
            mlflow_server(free_port(mlflow_port), state.options, state.mlflow)
        )
        if meanwhile:
            meanwhile()
        prefect_healthy()
        mlflow_healthy()
        if state.access:
            known = {**state.access, "MLFLOW_TRACKING_URI": mlflow}
            note_access(known)
            os.environ.update(known)
        urls = {"prefect": prefect, "mlflow": mlflow, "profile": state.name}
        write_whole(home() / _UP, json.dumps({**urls, "pid": os.getpid()}))
        running.callback(_forget_up)
        yield urls, [*state.parts, its_server, its_tracking]


@contextmanager
def stack(
    prefect_port: int,
    mlflow_port: int,
    kind: str,
    postgres: str | None,
    deploy: Callable[[Server], object],
    meanwhile: Callable[[], object],
) -> Iterator[tuple[dict[str, str], list[Component]]]:
    """Both servers and a worker for each pool, until the block ends; yields the servers' URLs and what runs.

    `deploy` puts on the Prefect server what is asked of it; `meanwhile` is done while the servers start.
    """
    with servers(prefect_port, mlflow_port, kind, postgres, meanwhile) as (urls, parts), ExitStack() as running:
        deploy(Server(urls["prefect"]))
        online = [running.enter_context(worker(pool, urls["prefect"], urls["mlflow"])) for pool in POOLS]
        for _, healthy in online:
            healthy()
        yield urls, [*parts, *(part for part, _ in online)]


def _forget_up() -> None:
    with suppress(FileNotFoundError):
        (home() / _UP).unlink()
