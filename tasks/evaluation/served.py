"""The same answers and losses from a server of vLLM on this machine, with the adapters beside the base.

It has the interface of `Network`, over the OpenAI API's completions: prompts go as token ids, and token ids come back,
so that what is asked and what is read does not depend on the server's own template or tokenizer. Sampling's seed is
vLLM's own there: draws repeat, but are others than those of `Network`.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import IO, Any, TypeVar

from tasks.errors import BadInput, WorldFailed
from tasks.evaluation.generation import Written, first_circle
from tasks.evaluation.sampling import Sampling
from tasks.training import rank_of

BASE = "base"
T = TypeVar("T")
_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for
_START = 1800  # seconds for loading, compiling and warming up
_ANSWER = 3600  # seconds for one answer, which may wait for others
_SEEDS = 2**31


def vllm_command() -> str:
    """The vllm command. Raises BadInput where there is none."""
    found = shutil.which("vllm")
    if found is None:
        raise BadInput(
            "evaluation.backend",
            "vllm",
            "is not installed here: there is no vllm command on the PATH",
            "Install vLLM on the machine that evaluates, in an environment of its own if need be, or set transformers.",
        )
    return found


def serve_command(program: str, base: Path, adapters: Mapping[str, Path], port: int, *, four_bit: bool) -> list[str]:
    """The command line of the server."""
    line = [program, "serve", str(base), "--host", "127.0.0.1", "--port", str(port), "--served-model-name", BASE]
    # Else the base's generation_config.json would add penalties of its own to every request.
    line += ["--generation-config", "vllm", "--seed", "0"]
    if four_bit:
        line += ["--quantization", "bitsandbytes"]
    if adapters:
        rank = max(map(rank_of, adapters.values()))
        line += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", str(room_for(rank))]
        line += ["--lora-modules", *(f"{name}={folder}" for name, folder in adapters.items())]
    return line


def room_for(rank: int) -> int:
    """What to give vLLM's --max-lora-rank, which takes a few numbers alone."""
    return next((room for room in _RANKS if room >= rank), rank)


class Served:
    """A running server; `log` is where it writes. It ends with `close`, and when this process does."""

    def __init__(self, base: Path, adapters: Mapping[str, Path], *, four_bit: bool, log: Path) -> None:
        import httpx

        self._log, self._model = log, BASE
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        key = secrets.token_hex(16)
        line = serve_command(vllm_command(), base, adapters, port, four_bit=four_bit)
        with open(log, "wb") as file:
            self._server = _start(line, {"VLLM_API_KEY": key}, file)
        self._client = httpx.Client(
            base_url=f"http://127.0.0.1:{port}",
            headers={"Authorization": f"Bearer {key}"},
            timeout=_ANSWER,
            limits=httpx.Limits(max_connections=None),
            trust_env=False,  # a proxy has no business between us and ourselves
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def use(self, name: str | None) -> None:
        """Answer with an adapter from here on; None: with the base as it is."""
        self._model = name or BASE

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        *,
        max_new_tokens: int,
        stop_ids: Sequence[int],
        pad_id: int,
        batch_size: int,
        on_done: Callable[[int], None] = lambda done: None,
        sampling: Sampling | None = None,
        draws: Sequence[Sequence[float]] = (),
    ) -> list[Written]:
        """As `Network.answers`; `batch_size` prompts are under way at once."""
        settings: dict[str, Any] = {
            "max_tokens": max_new_tokens,
            "temperature": 0,
            "stop_token_ids": list(stop_ids),
            "skip_special_tokens": False,
            "return_token_ids": True,
        }
        if sampling:
            settings |= sampling.model_dump() | {"top_k": sampling.top_k or -1}

        def one(at: int) -> Written:
            seed = {"seed": int(draws[at][0] * _SEEDS)} if sampling else {}
            choice = self._complete({**settings, **seed, "prompt": list(prompts[at])})
            ids = choice.get("token_ids")
            if ids is None:
                raise WorldFailed("vLLM", "gives no token ids with its answers", "Install vLLM 0.10.2 or later.")
            stopped = choice["finish_reason"] == "stop"
            if stopped and ids and ids[-1] in stop_ids:
                ids = ids[:-1]
            ends = first_circle(ids)
            return Written(list(ids[:ends]), stopped and ends is None, ends is not None)

        return self._all(one, len(prompts), batch_size, on_done)

    def losses(
        self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], *, batch_size: int, pad_id: int
    ) -> list[float]:
        """As `Network.losses`, from the log-probabilities of the prompt's tokens."""

        def one(at: int) -> float:
            ids, mask = rows[at]
            wanted = [place for place, supervised in enumerate(mask) if supervised and place]
            if not wanted:
                raise ValueError("a row has no supervised token")
            choice = self._complete({"prompt": list(ids), "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1})
            found = choice.get("prompt_logprobs")
            if found is None:
                raise WorldFailed("vLLM", "gives no log-probabilities of prompts", "Install vLLM 0.10.2 or later.")
            return -sum(float(found[place][str(ids[place])]["logprob"]) for place in wanted) / len(wanted)

        return self._all(one, len(rows), batch_size, lambda done: None)

    def close(self) -> None:
        """End the server."""
        self._client.close()
        _signal(self._server, signal.SIGTERM)
        try:
            self._server.wait(30)
        except subprocess.TimeoutExpired:
            _signal(self._server, signal.SIGKILL)
            self._server.wait()

    def _all(self, one: Callable[[int], T], count: int, at_once: int, on_done: Callable[[int], None]) -> list[T]:
        with ThreadPoolExecutor(at_once) as pool:
            futures = [pool.submit(one, at) for at in range(count)]
            try:
                for done, future in enumerate(as_completed(futures), 1):
                    future.result()
                    if done % at_once == 0 or done == count:
                        on_done(done)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    def _complete(self, body: Mapping[str, Any]) -> dict[str, Any]:
        import httpx

        try:
            answer = self._client.post("/v1/completions", json={"model": self._model, **body})
        except httpx.HTTPError as error:
            raise self._failed(f"does not answer ({type(error).__name__})") from error
        if answer.is_error:
            raise self._failed(f"answers {answer.status_code}: {answer.text[:500]}")
        return dict(answer.json()["choices"][0])

    def _wait(self) -> None:
        import httpx

        deadline = time.monotonic() + _START
        while time.monotonic() < deadline:
            if self._server.poll() is not None:
                raise self._failed(f"ended with exit code {self._server.returncode} before it was ready")
            try:
                if self._client.get("/health", timeout=5).is_success:
                    return
            except httpx.HTTPError:
                pass  # it is not listening yet
            time.sleep(0.1)
        raise self._failed(f"was not ready after {_START // 60} minutes")

    def _failed(self, what: str) -> WorldFailed:
        last = "\n".join(f"  | {line}" for line in self._log.read_text(errors="replace").strip().splitlines()[-15:])
        said = f"{what}. The end of its log:\n{last}\n"
        return WorldFailed("vLLM", said, "Correct what it says, or set evaluation.backend to transformers.")


def _start(line: Sequence[str], variables: Mapping[str, str], log: IO[bytes]) -> subprocess.Popen[bytes]:
    import ctypes

    parent, libc = os.getpid(), ctypes.CDLL(None)
    end_with_parent = getattr(libc, "prctl", None)  # of Linux, where vLLM runs

    def tie() -> None:
        if end_with_parent is not None:
            end_with_parent(1, signal.SIGTERM)
            if os.getppid() != parent:
                os._exit(1)

    quiet = {"VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
    return subprocess.Popen(
        line,
        env={**os.environ, **quiet, **variables},
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=tie,
    )


def _signal(server: subprocess.Popen[bytes], number: int) -> None:
    try:
        os.killpg(server.pid, number)
    except ProcessLookupError:
        return
