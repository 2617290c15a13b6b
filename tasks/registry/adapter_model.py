"""What MLflow loads as the model: a LoRA adapter on a base that is found by reference and checked by digest, or a
whole model where all weights were trained.

This file travels with the adapter and runs where nothing of Nightowl is installed, so it imports nothing of it but
the reader of answers, which travels beside it under a name of its own.

A request is `{"messages": [...], "tools": [...], "max_new_tokens": 256, "thinking": false}` (the last three may be
left out); the answer is one assistant message, `{"role", "content", "thinking", "tool_calls", "malformed", "raw"}`.
Decoding is greedy and answers are read as they are when candidates are judged.

The base is looked for in NIGHTOWL_BASE (a folder), in the store of NIGHTOWL_STORE or NIGHTOWL_HOME, and, where it
came from a hub, there at its pinned commit. Wherever it is found, its files must have the sha256 they had in training,
and the files of this model those they had when it was registered.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# MLflow runs this file as a script to get the model out of it; nothing of Nightowl imports it.
from mlflow.models import set_model  # noqa: TID253
from mlflow.pyfunc import PythonModel, PythonModelContext  # noqa: TID253

# Messages and tool schemas are open JSON: that MLflow can't check their types is as it should be.
warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType")


class AdapterModel(PythonModel):
    """Chat messages and tool schemas in, assistant messages out."""

    def load_context(self, context: PythonModelContext) -> None:
        """Find the base, check it, and put the adapter on it, in the precision in which candidates are judged."""
        import torch
        from peft import PeftModel
        from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, GenerationConfig

        config = context.model_config
        adapter = context.artifacts["adapter"]
        check_files(Path(adapter).parents[1], config.get("files", {}))
        whole = not (Path(adapter) / "adapter_config.json").exists()
        base = adapter if whole else find_base(config["base"])
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        narrow = device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        dtype = torch.bfloat16 if narrow else torch.float32
        options: dict[str, Any] = {}
        if config["four_bit"]:
            options["quantization_config"] = BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=dtype,
            )
        model = AutoModelForCausalLM.from_pretrained(
            base, dtype=dtype, device_map={"": device}, use_safetensors=True, trust_remote_code=False, **options
        )
        if config["four_bit"] and device.type == "cpu":
            model = model.dequantize()
        self.model = model if whole else PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=False)
        for name, parameter in self.model.named_parameters():
            if "lora_" in name:
                parameter.data = parameter.data.to(device, dtype)
        self.model.eval()
        self.tokenizer = AutoTokenizer.from_pretrained(adapter, trust_remote_code=False)
        self.read = reader(config["reader"], config["call_style"])
        self.max_new_tokens = int(config["max_new_tokens"])
        self.stops = _stops(self.tokenizer, GenerationConfig.from_pretrained(adapter))

    def predict(self, context: Any, model_input: list[dict[str, Any]], params: Any = None) -> list[dict[str, Any]]:
        """One assistant message a request, in order."""
        return [self._answer(request) for request in model_input]

    def _answer(self, request: dict[str, Any]) -> dict[str, Any]:
        import torch

        prompt = self.tokenizer.apply_chat_template(
            [_for_template(message) for message in _plain(request["messages"])],
            tools=_plain(request.get("tools")) or None,
            add_generation_prompt=True,
            tokenize=False,
            enable_thinking=bool(request.get("thinking", False)),
        )
        ids = self.tokenizer(prompt, return_tensors="pt", add_special_tokens=False).to(self.model.device)
        with torch.inference_mode():
            answer = self.model.generate(
                **ids,
                max_new_tokens=int(request.get("max_new_tokens") or self.max_new_tokens),
                do_sample=False,
                temperature=None,
                top_p=None,
                top_k=None,
                eos_token_id=self.stops,
                pad_token_id=self.stops[0] if self.tokenizer.pad_token_id is None else self.tokenizer.pad_token_id,
            )[0, ids["input_ids"].shape[1] :].tolist()
        if answer and answer[-1] in self.stops:
            answer.pop()
        return self.read(prompt, self.tokenizer.decode(answer, skip_special_tokens=False))


def reader(package: str, call_style: dict[str, Any]) -> Callable[[str, str], dict[str, Any]]:
    """A function of a prompt and the answer's text to a message, its calls read as the model's template writes them.

    `malformed`: something is not as the template writes it. A call without a name and an object of arguments is left
    out of `tool_calls`; `raw` has all of it.
    """
    answers = importlib.import_module(package)
    style = answers.CallStyle(**call_style)

    def read(prompt: str, raw: str) -> dict[str, Any]:
        # A template may open the thinking block itself; the answer is read together with that opening.
        opened = "<think>" if prompt.rstrip().endswith("<think>") else ""
        answer = answers.parse_answer(opened + raw, style=style)
        calls = [
            {"name": call.name, "arguments": call.arguments}
            for call in answer.tool_calls
            if call.name and call.arguments is not None
        ]
        message = {"role": "assistant", "content": answer.content, "thinking": answer.thinking, "tool_calls": calls}
        return {**message, "malformed": answer.malformed, "raw": raw}

    return read


def find_base(base: dict[str, Any]) -> str:
    """The folder of the base model whose files have the digests in `base["files"]`; raises RuntimeError without one."""
    looked = []
    for place in _places(base):
        folder = Path(place) / base["folder"]
        if not (folder / "config.json").is_file():
            looked.append(f"{folder}: no model there")
            continue
        check_base(folder, base)
        return str(folder)
    if base["uri"].startswith(("hf://", "modelscope://")):
        folder = Path(_download(base)) / base["folder"]
        check_base(folder, base)
        return str(folder)
    raise RuntimeError(
        f"The base model {base['uri']} at {base['revision']} is not here ({'; '.join(looked) or 'nowhere to look'}). "
        "Set NIGHTOWL_BASE to its folder, or NIGHTOWL_HOME to a home that has it."
    )


def check_files(model: Path, files: dict[str, str]) -> None:
    """Raise RuntimeError unless every file of the registered model is, byte for byte, the one that was registered."""
    for name, expected in files.items():
        path = model / name
        if not path.is_file():
            raise RuntimeError(f"Damaged model: {path} is missing.")
        if (found := _sha256(path)) != expected:
            raise RuntimeError(f"Damaged model: {path} has sha256 {found}, and {expected} when it was registered.")


def check_base(folder: Path, base: dict[str, Any]) -> None:
    """Raise RuntimeError unless every weights and config file is, byte for byte, the one that was trained on."""
    for name, expected in base["files"].items():
        path = folder / name
        if not path.is_file():
            raise RuntimeError(f"Wrong base model: {path} is missing; the adapter was trained on {base['uri']}.")
        if (found := _sha256(path)) != expected:
            raise RuntimeError(
                f"Wrong base model: {path} has sha256 {found}, not {expected}. The adapter was trained on "
                f"{base['uri']} at {base['revision']} and is worth nothing on another."
            )


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _places(base: dict[str, Any]) -> list[str]:
    if chosen := os.environ.get("NIGHTOWL_BASE"):
        return [chosen]
    places = []
    store = os.environ.get("NIGHTOWL_STORE", "")
    if store and "://" not in store:
        places.append(f"{store}/base/{base['address']}")
    home = Path(os.environ.get("NIGHTOWL_HOME", ".nightowl")).expanduser().absolute()
    return [*places, f"{home}/store/base/{base['address']}"]


def _download(base: dict[str, Any]) -> str:
    scheme, _, rest = base["uri"].partition("://")
    name = rest.partition("@")[0].partition("?")[0]
    if scheme == "hf":
        from huggingface_hub import snapshot_download

        return str(snapshot_download(name, revision=base["revision"], allow_patterns=["*.json", "*.safetensors"]))
    from modelscope import snapshot_download as from_modelscope

    return str(from_modelscope(name, revision=base["revision"], allow_patterns=["*.json", "*.safetensors"]))


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """Templates want a call's arguments as an object, requests may bring them as JSON text."""
    message = {key: value for key, value in message.items() if value is not None}
    if "thinking" in message:  # what templates call it
        message["reasoning_content"] = message.pop("thinking")
    calls = []
    for call in message.get("tool_calls") or []:
        function = call.get("function", call)
        arguments = function["arguments"]
        arguments = json.loads(arguments) if isinstance(arguments, str) else arguments
        calls.append({"type": "function", "function": {"name": function["name"], "arguments": arguments}})
    return {**message, "tool_calls": calls} if calls else {k: v for k, v in message.items() if k != "tool_calls"}


def _plain(value: Any) -> Any:
    """Lists and dicts again, where a server made arrays of them; JSON text is read."""
    if isinstance(value, str):
        return json.loads(value)
    return value.tolist() if hasattr(value, "tolist") else value


def _stops(tokenizer: Any, generation_config: Any) -> list[int]:
    configured = generation_config.eos_token_id
    stops = configured if isinstance(configured, list) else [configured]
    return sorted({token for token in [*stops, tokenizer.eos_token_id] if token is not None})


set_model(AdapterModel())
