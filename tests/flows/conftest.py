"""A recipe whose night takes seconds: a random two-layer Llama, a few short chats, six steps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psutil
import pytest
import yaml

from flows.server import Server
from flows.services import free_port
from tasks.recipe import PRESETS
from tasks.store import Store

ROOT = Path(__file__).resolve().parents[2]
TINY_CHAT = "sample://chat?size=120&seed=0"


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random Llama of two layers and a byte-level tokenizer."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny") / "base"
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate(specials + sorted(pre_tokenizers.ByteLevel.alphabet()))}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(specials)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|im_end|>")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        initializer_range=0.3,  # large enough for the head to tell tokens apart
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_recipe(tiny_base: Path) -> dict[str, Any]:
    """The plain data of the recipe; with a `name` and `placement` of one's own, a night of its own."""
    return {
        "name": "tiny",
        "base": {
            "uri": f"file://{tiny_base}",
            "chat_template": (PRESETS / "chatml-hybrid.jinja").read_text(encoding="utf-8"),
            "max_length": 1024,
        },
        "sources": [{"name": "chat", "uri": TINY_CHAT, "kind": "chat", "share": 1.0}],
        "training": {
            "rank": 4,
            "learning_rate": 0.01,
            "warmup_steps": 1,
            "max_steps": 6,
            "batch_size": 4,
            "save_steps": 2,
        },
        "evaluation": {
            "suites": [{"name": "held_out_loss", "kind": "chat", "role": "target", "items": 20}],
            "batch_size": 8,
        },
        "gate": {"min_items": 5},
    }


@pytest.fixture
def tiny_file(tiny_recipe: dict[str, Any], tmp_path: Path) -> Path:
    """The recipe as a file."""
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny_recipe))
    return path


@dataclass
class Stack:
    """A running `nightowl up`."""

    home: Path
    api: str
    mlflow: str
    command: list[str]
    environment: dict[str, str]
    process: subprocess.Popen[str]
    told: list[str]
    """What has been sent to the webhook for notifications."""
    silent: dict[str, str]
    """Flow runs that sent one sign of life when the stack came up and none since: `running`, `suspended`."""

    @property
    def server(self) -> Server:
        return Server(self.api)

    def nightowl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command on the stack's home."""
        return subprocess.run(
            [*self.command, *arguments], cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False
        )

    def deploy(self, recipe: dict[str, Any], file: Path) -> None:
        file.write_text(yaml.safe_dump(recipe))
        done = self.nightowl("deploy", str(file), "--json")
        assert done.returncode == 0, done.stderr

    def start(self, deployment: str, **parameters: Any) -> dict[str, Any]:
        """Ask the server for a run of a deployment, as its UI does; the run."""
        found = self.server.get(f"/deployments/name/{deployment}")
        return self.server.send("POST", f"/deployments/{found['id']}/create_flow_run", {"parameters": parameters})

    def run(self, run_id: str) -> dict[str, Any]:
        return self.server.get(f"/flow_runs/{run_id}")

    def ended(self, run_id: str, seconds: float) -> dict[str, Any]:
        """A run when it has ended; fails, with its log, when that takes longer."""
        last = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
        wait_for(lambda: self.run(run_id)["state"]["type"] in last, seconds, lambda: self.log(run_id))
        return self.run(run_id)

    def log(self, run_id: str) -> str:
        query = {"logs": {"flow_run_id": {"any_": [run_id]}}, "limit": 200, "sort": "TIMESTAMP_ASC"}
        return "\n".join(line["message"] for line in self.server.send("POST", "/logs/filter", query))

    def runs(self, **how: Any) -> list[dict[str, Any]]:
        return self.server.send("POST", "/flow_runs/filter", how)


T = TypeVar("T")


def wait_for(look: Callable[[], T | None], seconds: float, why: Callable[[], str] = str) -> T:
    """What `look` returns once that is something; fails after so many seconds."""
    deadline = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < deadline, why()
        time.sleep(0.2)
    return found


@pytest.fixture(scope="session", name="wait_for")
def wait_for_() -> Callable[..., Any]:
    """Waits until something is so."""
    return wait_for


def wait_gone(pids: list[int]) -> None:
    there = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):  # it may end between any look at it and the next
            there.append(psutil.Process(pid))
    _, alive = psutil.wait_procs(there, timeout=40)
    assert alive == []


@pytest.fixture(scope="session", name="wait_gone")
def wait_gone_() -> Callable[[list[int]], None]:
    """Waits until processes have ended; fails when they do not."""
    return wait_gone


@pytest.fixture(scope="session")
def webhook() -> Iterator[tuple[str, list[str]]]:
    """A webhook on this machine: its URL, and the bodies that it has been sent."""
    told: list[str] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/token-of-the-webhook", told
    server.shutdown()


def go_silent(server: Server) -> dict[str, str]:
    """Two flow runs without a process: one says that it runs, one is suspended."""
    flow = server.send("POST", "/flows/", {"name": "silent"})["id"]
    made = {}
    for name, state in (("running", "RUNNING"), ("suspended", "PAUSED")):
        body = {"flow_id": flow, "name": name, "state": {"type": "RUNNING"}}
        run = made[name] = server.send("POST", "/flow_runs/", body)["id"]
        told = [("prefect.flow-run.heartbeat", 1)] + ([("prefect.flow-run.Suspended", 2)] if state == "PAUSED" else [])
        if state == "PAUSED":
            paused = {"type": "PAUSED", "name": "Suspended"}
            server.send("POST", f"/flow_runs/{run}/set_state", {"state": paused, "force": True})
        for event, second in told:
            moment = (datetime.now(UTC) + timedelta(milliseconds=second)).isoformat()
            resource = {"prefect.resource.id": f"prefect.flow-run.{run}"}
            event_id = str(uuid4())
            server.send("POST", "/events", [{"event": event, "resource": resource, "id": event_id, "occurred": moment}])
    return made


@pytest.fixture(scope="session")
def up(tmp_path_factory: pytest.TempPathFactory, webhook: tuple[str, list[str]]) -> Iterator[Stack]:
    """`nightowl up` on a home of its own, for the session; Ctrl-C has to end it and all that it started."""
    home = tmp_path_factory.mktemp("up")
    command = [sys.executable, "-m", "flows.cli"]
    led_away = ("MLFLOW_TRACKING_URI", "NIGHTOWL_STORE", "PREFECT_API_URL", "PREFECT_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in led_away}
    environment |= {"NIGHTOWL_HOME": str(home), "NIGHTOWL_NOTIFY_URL": webhook[0]}
    ports = ["--prefect-port", str(free_port(0)), "--mlflow-port", str(free_port(0))]
    with subprocess.Popen(
        [*command, "up", "--json", *ports], stdout=subprocess.PIPE, cwd=ROOT, env=environment, text=True
    ) as process:
        assert process.stdout
        urls = json.loads(process.stdout.readline())
        pids = [child.pid for child in psutil.Process(process.pid).children(recursive=True)]
        silent = go_silent(Server(urls["prefect"]))
        yield Stack(home, urls["prefect"], urls["mlflow"], command, environment, process, webhook[1], silent)
        process.send_signal(signal.SIGINT)
        assert process.wait(90) == 0
    wait_gone(pids)
    assert not (home / "up.json").exists()


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")
