"""vLLM's path. vLLM itself needs a GPU: what it is asked goes to a stand-in that speaks its completions API."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest
from vllm_stand_in import install

from tasks.conversations import Renderer
from tasks.errors import WorldFailed
from tasks.evaluation.generation import Network
from tasks.evaluation.sampling import Sampling, draws
from tasks.evaluation.served import Served, serve_command

PROMPTS = ["Hello", "What is 2 + 2?", "Name a colour, one word please, and say why you like it.", "x", "Add 1 and 2."]


def test_command_line(tiny_base: Path, tiny_adapters: Mapping[str, Path]) -> None:
    line = serve_command("vllm", tiny_base, tiny_adapters, 1234, four_bit=True)
    assert line[:3] == ["vllm", "serve", str(tiny_base)]
    assert line[line.index("--max-lora-rank") + 1] == "8", "the least that holds a rank of 4"
    assert line[line.index("--lora-modules") + 1 :] == [f"{name}={path}" for name, path in tiny_adapters.items()]
    plain = serve_command("vllm", tiny_base, {}, 1234, four_bit=False)
    assert not {"--enable-lora", "--lora-modules", "--quantization"} & set(plain)


def test_a_stand_in_for_vllm_answers_as_the_network_does(
    tiny_base: Path,
    tiny_adapters: Mapping[str, Path],
    tiny_renderer: Renderer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = install(tmp_path / "bin")
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    network = Network(tiny_base, four_bit=False)
    served = Served(tiny_base, tiny_adapters, four_bit=False, log=tmp_path / "log.txt")
    server = psutil.Process(json.loads((program.parent / "started.json").read_text())["pid"])
    try:
        prompts = tiny_renderer.encoder.encode(PROMPTS)
        options: Any = {"max_new_tokens": 80, "stop_ids": tiny_renderer.stop_ids, "pad_id": tiny_renderer.pad_id}
        rows = [(ids, [at >= len(ids) // 2 for at in range(len(ids))]) for ids in prompts if len(ids) > 2]
        for name, folder in tiny_adapters.items():
            network.add(name, folder)
        for name in (None, *tiny_adapters):
            network.use(name)
            served.use(name)
            done: list[int] = []
            expected = [network.answers([ids], batch_size=1, **options)[0] for ids in prompts]
            assert served.answers(prompts, batch_size=2, on_done=done.append, **options) == expected
            assert done == [2, 4, 5]
            losses = served.losses(rows, batch_size=2, pad_id=tiny_renderer.pad_id)
            assert losses == pytest.approx(network.losses(rows, batch_size=1, pad_id=tiny_renderer.pad_id), rel=1e-3)
        luck = [draws(0, "abc", sample, 80).tolist() for sample in range(len(prompts))]
        drawn = [
            served.answers(prompts, batch_size=5, sampling=Sampling(temperature=1.0), draws=luck, **options)
            for _ in range(2)
        ]
        assert drawn[0] == drawn[1] != expected
        served.use("three")
        with pytest.raises(WorldFailed, match=r"answers 404.*does not exist"):
            served.answers(prompts, batch_size=2, **options)
    finally:
        served.close()
    assert not server.is_running()


def test_a_server_that_does_not_start_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin" / "vllm"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho no GPU was found\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    with pytest.raises(WorldFailed, match=r"exit code 3(?s:.*)no GPU was found"):
        Served(tmp_path, {}, four_bit=True, log=tmp_path / "log.txt")
