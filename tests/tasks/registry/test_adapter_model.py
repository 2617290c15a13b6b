"""A registered adapter answers the same in a fresh process on another home, and on no other base."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from flows.component import answers, free_port
from tasks import registry
from tasks.conversations import Renderer, carry_reader
from tasks.errors import BadInput, WorldFailed
from tasks.evaluation.generation import Network
from tasks.registry import Version
from tasks.registry.adapter_model import reader
from tasks.registry.bundle import check_weights

QUESTIONS = [
    {"messages": [{"role": "user", "content": "What is 7 + 8?"}], "max_new_tokens": 24},
    {
        "messages": [
            {"role": "user", "content": "Weather in Paris?"},
            {"role": "assistant", "content": "", "tool_calls": [{"name": "weather", "arguments": '{"city":"Paris"}'}]},
            {"role": "tool", "content": "rain"},
        ],
        "tools": [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}],
        "thinking": True,
        "max_new_tokens": 24,
    },
]

ANSWER = {"role", "content", "thinking", "tool_calls", "malformed", "raw"}

FRESH = """
    import json, os, sys
    import mlflow
    uri, bases, questions = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
    told = {}
    for name, folder in bases.items():
        if folder:
            os.environ["NIGHTOWL_BASE"] = folder
        try:
            told[name] = mlflow.pyfunc.load_model(uri).predict(questions)
        except Exception as error:
            told[name] = str(error)
    assert not [name for name in sys.modules if name.partition(".")[0] in ("tasks", "flows")]
    print(json.dumps(told), flush=True)
    os._exit(0)  # what was asked for is told; taking the libraries down again can take minutes on a busy machine
"""


def test_it_answers_the_same_in_a_fresh_process_on_another_home(
    world: Any, enter: Callable[[Any], Version], embedded: Path, tmp_path: Path
) -> None:
    version = enter(world)
    registry.client()
    import mlflow

    here = mlflow.pyfunc.load_model(version.uri).predict(QUESTIONS)
    assert [set(answer) for answer in here] == [ANSWER] * 2
    assert all(answer["raw"] for answer in here)
    assert [answer["raw"] for answer in here] == judged(world)

    right, wrong = tmp_path / "elsewhere", tmp_path / "wrong"
    for folder in (right, wrong):
        shutil.copytree(world.store.folder(world.base), folder)
    weights = bytearray((wrong / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (wrong / "model.safetensors").write_bytes(weights)
    bases = {"absent": "", "wrong": str(wrong), "right": str(right)}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(FRESH), version.uri, json.dumps(bases), json.dumps(QUESTIONS)],
        cwd=tmp_path,
        env={
            **os.environ,
            "NIGHTOWL_HOME": str(tmp_path / "other-home"),
            "MLFLOW_TRACKING_URI": f"sqlite:///{embedded}/mlflow/mlflow.db",
        },
        capture_output=True,
        text=True,
        timeout=550,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout.splitlines()[-1])
    assert told["right"] == here
    assert "is not here" in told["absent"]
    assert "Set NIGHTOWL_BASE" in told["absent"]
    assert "Wrong base model" in told["wrong"]


def test_a_whole_model_needs_no_base(
    make: Callable[..., Any], enter: Callable[[Any], Version], embedded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = enter(make(whole=True))
    registry.client()
    import mlflow
    from transformers import pipeline

    monkeypatch.setenv("NIGHTOWL_STORE", str(embedded / "nothing-there"))
    monkeypatch.delenv("NIGHTOWL_HOME")
    registered = mlflow.pyfunc.load_model(version.uri)
    (answer,) = registered.predict(QUESTIONS[:1])
    (folder,) = (embedded / "mlflow" / "artifacts").rglob("adapter")
    alone = pipeline("text-generation", str(folder), dtype=registered.unwrap_python_model().model.dtype)
    prompt = "<|im_start|>user\nWhat is 7 + 8?<|im_end|>\n<|im_start|>assistant\n<think>\n\n</think>\n\n"
    (written,) = alone(prompt, max_new_tokens=24, return_full_text=False, skip_special_tokens=False)
    assert written["generated_text"].removesuffix("<|im_end|>") == answer["raw"] != ""
    assert "A whole model, all weights trained from" in (folder / "README.md").read_text(encoding="utf-8")
    assert "rank" not in registry.client().get_logged_model(version.model_id).params


def judged(world: Any) -> list[str]:
    """The answers to QUESTIONS as a candidate's judge writes them, one at a time.

    A batch of both adds up in another order, and at the 19th token of the first answer this random model's two best
    logits are one bfloat16 step apart (0.2773 and 0.2754): there the order decides. In float32 both ways agree.
    """
    from transformers import AutoTokenizer

    network = Network(world.store.folder(world.base), four_bit=True)
    network.add("candidate", world.store.folder(world.adapter) / "adapter")
    network.use("candidate")
    tokenizer = AutoTokenizer.from_pretrained(world.store.folder(world.adapter) / "adapter")
    prompts = []
    for question in QUESTIONS:
        calls = [{"function": {"name": "weather", "arguments": {"city": "Paris"}}}]
        messages = [m | ({"tool_calls": calls} if "tool_calls" in m else {}) for m in question["messages"]]
        options = {"tools": question.get("tools"), "enable_thinking": question.get("thinking", False)}
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False, **options)
        prompts.append(tokenizer(text, add_special_tokens=False)["input_ids"])
    end = tokenizer.eos_token_id
    written = network.answers(prompts, max_new_tokens=24, stop_ids=[end], pad_id=end, batch_size=1)
    return [tokenizer.decode(answer.ids, skip_special_tokens=False) for answer in written]


TEMPLATES = Path(__file__).resolve().parents[1] / "conversations" / "templates"
CALL = '{"name": "f", "arguments": {"b": 1, "a": "</x>"}}'
READ = [{"name": "f", "arguments": '{"a":"</x>","b":1}'}]


@pytest.mark.parametrize(
    ("template", "raw", "content", "thinking", "calls", "malformed"),
    [
        ("chatml", "plain", "plain", None, [], False),
        ("chatml", "<think>\n2 and 2\n</think>\n\n4", "4", "2 and 2", [], False),
        ("chatml", "<think>\n\n</think>\n\nhi", "hi", None, [], False),
        ("chatml", "<think>never closed", "", "never closed", [], True),
        ("chatml", f"Well.\n<tool_call>\n{CALL}\n</tool_call>", "Well.", None, READ, False),
        ("chatml", "<tool_call>\nnot JSON\n</tool_call>", "", None, [], True),
        ("chatml", f"[TOOL_CALLS] [{CALL}]", f"[TOOL_CALLS] [{CALL}]", None, [], False),
        ("mistral_v3", f"[TOOL_CALLS] [{CALL}]", "", None, READ, False),
        ("mistral_v3", f"[TOOL_CALLS] [{CALL}, {CALL}]", "", None, READ * 2, False),
        ("mistral_v3", f'[TOOL_CALLS] [{CALL}, {{"name": "f"', "", None, READ, True),
        ("llama3_1_tools", CALL.replace("arguments", "parameters"), "", None, READ, False),
    ],
)
def test_an_answer_is_read_as_its_template_writes_it(
    template: str,
    raw: str,
    content: str,
    thinking: str | None,
    calls: list[Any],
    malformed: bool,
    tiny: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = None
    if template != "chatml":
        # The tiny tokenizer has one token that ends a turn.
        source = (TEMPLATES / f"{template}.jinja").read_text().replace("<|eot_id|>", "<|im_end|>")
    renderer = Renderer.open(tiny / "adapter-0", source)
    carried = carry_reader(tmp_path / "code")
    monkeypatch.syspath_prepend(tmp_path / "code")
    read = reader(carried.name, renderer.call_style.model_dump(mode="json"))
    expected = {"role": "assistant", "content": content, "thinking": thinking, "tool_calls": calls}
    assert read("Ask", raw) == {**expected, "malformed": malformed, "raw": raw}
    # Where the prompt has opened the block the model writes the rest of it.
    if thinking and not malformed:
        assert read("Ask<think>\n", raw.removeprefix("<think>\n"))["thinking"] == thinking


def test_only_an_adapters_own_matrices_are_registered(tiny: Path, tmp_path: Path) -> None:
    check_weights(tiny / "adapter-0" / "adapter_model.safetensors")
    with pytest.raises(BadInput, match="holds weights that are not an adapter's"):
        check_weights(tiny / "base" / "model.safetensors")
    check_weights(tiny / "whole" / "model.safetensors", whole=True)
    with pytest.raises(BadInput, match="holds weights of another kind"):
        check_weights(tiny / "adapter-0" / "adapter_model.safetensors", whole=True)
    for name, content in {"empty": b"", "pickle": b"\x80\x04K\x01.", "huge": b"\xff" * 64}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(BadInput, match="is not a safetensors file"):
            check_weights(tmp_path / name)


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "tokenizer.json", "chat_template.jinja"])
def test_a_damaged_file_is_an_error_at_load(
    name: str, world: Any, enter: Callable[[Any], Version], embedded: Path, tmp_path: Path
) -> None:
    version = enter(world)
    registry.client()
    import mlflow

    (path,) = (embedded / "mlflow" / "artifacts").rglob(name)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=rf"Damaged model: .*{name} has sha256"):
        mlflow.pyfunc.load_model(version.uri)
    with pytest.raises(WorldFailed, match=rf"{name}: is not the file that was registered"):
        registry.download_adapter(version, tmp_path / "got")
    path.unlink()
    with pytest.raises(RuntimeError, match=rf"Damaged model: .*{name} is missing"):
        mlflow.pyfunc.load_model(version.uri)


def test_mlflow_serves_it_over_http(
    world: Any, enter: Callable[[Any], Version], embedded: Path, tmp_path: Path
) -> None:
    version = enter(world)
    port = free_port(0)
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", version.uri, "--env-manager", "local"]
    log = tmp_path / "serve.log"
    with open(log, "w") as output:
        process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            cwd=tmp_path,
            env={
                **os.environ,
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "MLFLOW_TRACKING_URI": f"sqlite:///{embedded}/mlflow/mlflow.db",
                "NIGHTOWL_HOME": str(embedded),
            },
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        until = time.monotonic() + 300
        while not answers(f"http://127.0.0.1:{port}/ping"):
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < until, log.read_text()[-3000:]
            time.sleep(0.2)
        asked = subprocess.run(
            ["curl", "-sS", "-H", "Content-Type: application/json", "-d", json.dumps({"inputs": QUESTIONS}),
             f"http://127.0.0.1:{port}/invocations"],
            capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
    finally:
        with suppress(ProcessLookupError):  # it ended by itself, and its log tells why
            os.killpg(process.pid, signal.SIGKILL)
        process.wait(30)
    registry.client()
    import mlflow

    assert json.loads(asked.stdout)["predictions"] == mlflow.pyfunc.load_model(version.uri).predict(QUESTIONS)
