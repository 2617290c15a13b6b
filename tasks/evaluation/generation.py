"""One loaded base, adapters switched on it, prompts answered in batches.

Decoding is greedy, or draws from what the model finds likely; it is bounded. What keeps it cheap: prompts of
like length share a batch, an answer that is done leaves its batch at once, and an answer that goes round in
circles is cut off, because decoding hardly ever leaves a circle.

On a CPU the 4-bit base is unpacked once to the 16-bit values that its own kernels would unpack for
every product: the logits are the same, bit for bit, and each step is faster. Where the CPU has no
16-bit arithmetic, products are taken in 32 bits and rounded back (16 rows: 5 times faster; 800: 9).
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tasks.evaluation.sampling import Sampling

_CIRCLE = 64  # tokens that repeat with a short period before an answer counts as going in circles
_PERIOD = 16
_LOOK_EVERY = 16
_WIDE = 1024  # tokens, prompt and answer: of what is shorter, a batch holds more rows, as a step hardly costs more
_MORE = 4
_LOGIT_BYTES = 256 * 2**20  # of float32 logits at a time when answers are scored


class Written(NamedTuple):
    """An answer: ids without the stop token; `stopped`: on a stop token; `circles`: cut off as endless."""

    ids: list[int]
    stopped: bool
    circles: bool


class Network:
    """A base model with any number of adapters on it, of which one or none is active.

    `four_bit`: NF4 with double quantisation, as QLoRA trains; else as the weights are.
    """

    def __init__(self, base: Path, *, four_bit: bool) -> None:
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS") or torch.get_num_threads()))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        narrow = self.device.type == "cuda" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
        dtype = torch.bfloat16 if narrow else torch.float32
        quantisation = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        self.model: Any = AutoModelForCausalLM.from_pretrained(
            base,
            dtype=dtype,
            device_map={"": self.device},
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            **({"quantization_config": quantisation} if four_bit else {}),
        )
        if four_bit and self.device.type == "cpu":
            self.model = self.model.dequantize()
        self.model.eval()
        self._adapted: Any = None

    def add(self, name: str, adapter: Path) -> None:
        """Load an adapter beside those already there."""
        from peft import PeftModel

        # In the base's precision, as in training under autocast; nothing is trained here.
        options: dict[str, Any] = {"adapter_name": name, "is_trainable": False, "autocast_adapter_dtype": False}
        if self._adapted is None:
            self._adapted = PeftModel.from_pretrained(self.model, adapter, **options)
        else:
            self._adapted.load_adapter(adapter, **options)
        for parameter_name, parameter in self._adapted.named_parameters():
            if f".{name}." in parameter_name and parameter.is_floating_point():
                parameter.data = parameter.data.to(self.device, self.model.dtype)
        self._adapted.eval()

    def use(self, name: str | None) -> None:
        """Make an adapter the active one; None: the base as it is."""
        if self._adapted is None:
            if name is not None:
                raise ValueError(f"adapter {name} was not added")
        elif name is None:
            self._adapted.base_model.disable_adapter_layers()
        else:
            self._adapted.base_model.enable_adapter_layers()
            self._adapted.set_adapter(name)

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
        """Answers to prompts (token ids), in their order; `on_done` hears how many are written.

        `batch_size`: prompts answered together; of short ones up to four times as many, which take no more memory than
        as many of 1,024 tokens.
        `sampling`: None decodes greedily; else `draws` has a number from 0 to 1 for each token of each answer.
        """
        import torch

        order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]), reverse=True)
        written: list[Written] = [Written([], False, False)] * len(prompts)
        with torch.inference_mode():
            at = 0
            while at < len(order):
                length = len(prompts[order[at]]) + max_new_tokens
                batch = order[at : at + batch_size * max(1, min(_MORE, _WIDE // length))]
                luck = np.asarray([draws[i] for i in batch]) if sampling else None
                asked = [prompts[i] for i in batch]
                for row, answer in self._batch(asked, max_new_tokens, stop_ids, pad_id, sampling, luck):
                    written[batch[row]] = answer
                at += len(batch)
                on_done(at)
        return written

    def _batch(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int,
        stop_ids: Sequence[int],
        pad_id: int,
        sampling: Sampling | None,
        luck: NDArray[np.float64] | None,
    ) -> Iterator[tuple[int, Written]]:
        import torch
        from transformers import DynamicCache

        width = max(map(len, prompts))
        ids = torch.tensor([[pad_id] * (width - len(p)) + list(p) for p in prompts], device=self.device)
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=self.device)
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = DynamicCache(config=self.model.config)
        rows = list(range(len(prompts)))
        texts: list[list[int]] = [[] for _ in prompts]
        for step in range(1, max_new_tokens + 1):
            logits = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                **self._last_only(),
            ).logits[:, -1]
            if sampling is None or luck is None:
                chosen = logits.argmax(-1)
            else:
                chosen = drawn(logits, sampling, luck[rows, step - 1])
            kept = []
            for place, token in enumerate(chosen.tolist()):
                row = rows[place]
                if token in stop_ids:
                    yield row, Written(texts[row], True, False)
                    continue
                texts[row].append(token)
                circles = step % _LOOK_EVERY == 0 and in_circles(texts[row])
                if circles or step == max_new_tokens:
                    yield row, Written(texts[row], False, circles)
                else:
                    kept.append(place)
            if not kept:
                return
            if len(kept) < len(rows):
                keep = torch.tensor(kept, device=self.device)
                cache.batch_select_indices(keep)
                rows, chosen, mask, positions = [rows[i] for i in kept], chosen[keep], mask[keep], positions[keep]
            ids = chosen[:, None]
            mask = torch.cat([mask, mask.new_ones(len(kept), 1)], dim=1)
            positions = positions[:, -1:] + 1

    def losses(
        self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], *, batch_size: int, pad_id: int
    ) -> list[float]:
        """Mean nats per supervised token of each row of ids and mask, teacher-forced, in order."""
        import torch

        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]), reverse=True)
        found = [0.0] * len(rows)
        vocabulary = int(self.model.get_input_embeddings().weight.shape[0])
        with torch.inference_mode():
            at = 0
            while at < len(order):
                width = len(rows[order[at]][0])
                fits = max(1, min(batch_size, _LOGIT_BYTES // (4 * vocabulary * width)))
                batch = order[at : at + fits]
                for i, loss in zip(batch, self._batch_losses([rows[i] for i in batch], pad_id), strict=True):
                    found[i] = loss
                at += fits
        return found

    def _batch_losses(self, rows: Sequence[tuple[Sequence[int], Sequence[bool]]], pad_id: int) -> list[float]:
        import torch

        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([list(i) + [pad_id] * (width - len(i)) for i, _ in rows], device=self.device)
        attended = torch.tensor([[1] * len(i) + [0] * (width - len(i)) for i, _ in rows], device=self.device)
        logits = self.model(input_ids=ids, attention_mask=attended, use_cache=False).logits
        losses = []
        for place, (_, mask) in enumerate(rows):
            at = torch.tensor([t for t, supervised in enumerate(mask) if supervised and t], device=self.device)
            if not len(at):
                raise ValueError("a row has no supervised token")
            loss = torch.nn.functional.cross_entropy(logits[place, at - 1].float(), ids[place, at])
            losses.append(float(loss))
        return losses

    def _last_only(self) -> dict[str, int]:
        return {"logits_to_keep": 1} if "logits_to_keep" in inspect.signature(self.model.forward).parameters else {}


def drawn(logits: Any, sampling: Sampling, luck: NDArray[np.float64]) -> Any:
    """A token for each row of logits: the one at which the likeliest tokens' probabilities, added up, pass its number.

    Temperature first, then `top_k`, then the fewest tokens that hold `top_p` of what is left.
    """
    import torch

    wanted = min(sampling.top_k or logits.shape[-1], logits.shape[-1])
    values, tokens = torch.topk(logits.double() / sampling.temperature, wanted, dim=-1)
    shares = values.softmax(-1)
    passed = shares.cumsum(-1)
    # A token stays while those before it hold less than top_p; the first one always does.
    shares = torch.where(passed - shares < sampling.top_p, shares, 0.0)
    passed = shares.cumsum(-1)
    aims = torch.as_tensor(luck, dtype=passed.dtype, device=passed.device)[:, None] * passed[:, -1:]
    places = (passed <= aims).sum(-1, keepdim=True).clamp(max=wanted - 1)
    return tokens.gather(-1, places)[:, 0]


def first_circle(ids: Sequence[int]) -> int | None:
    """After how many tokens an answer would have been cut off as going in circles; None where it would not."""
    return next((at for at in range(_LOOK_EVERY, len(ids) + 1, _LOOK_EVERY) if in_circles(ids[:at])), None)


def in_circles(ids: Sequence[int]) -> bool:
    """Whether the last 64 tokens repeat with a period of 16 or less."""
    if len(ids) < _CIRCLE:
        return False
    tail = np.asarray(ids[-_CIRCLE:])
    return any(np.array_equal(tail[period:], tail[:-period]) for period in range(1, _PERIOD + 1))
