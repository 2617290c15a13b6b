"""How much memory training will take, from the base's config and the recipe alone: no weights are read.

The model is built on PyTorch's meta device, so its matrices are the true ones of any architecture. What a layer keeps
for the backward pass was counted tensor by tensor on Llama and Qwen3 shapes: both norms' inputs in float32, a
16-bit copy of the input of each adapted layer, queries, keys, values and output of the attention, and three tensors
of the gated MLP. What an allocator makes of that is measured on a CPU (tests/tasks/training/test_memory.py). On a GPU
nothing here has been measured: there the figures are the account alone, and the trial batch has the last word.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from tasks.recipe import Training

_NF4 = 0.5  # bytes a weight
_CONSTANTS = 1 / 64 + 4 / (64 * 256)  # an 8-bit scale a block of 64, a 32-bit one for 256 of those: arXiv 2305.14314
_MOMENTS = {"adamw": 8.0, "paged_adamw": 8.0, "adamw_8bit": 2 + 8 / 256, "paged_adamw_8bit": 2 + 8 / 256}
# Measured on a CPU, with glibc's allocator: what the libraries take before any weight, how much more than the
# tensors alone the activations take (transients, and holes between them), and the bytes a token and an entry of the
# vocabulary that logits, their logarithms and gradients take, with the loss in one piece and with Unsloth's in chunks.
_PROCESS = 1.15e9
_HOLES = 1.9
_LOGITS = {"transformers": 12.0, "unsloth": 1.0}
_CONTEXT = 0.6e9  # CUDA's own, not measured here
_GATHERED = 3  # layers of a split base: the one that runs, and the next as received and as copied out


@dataclass(frozen=True)
class Shape:
    """What of a model counts: parameters in all, those in layers that 4 bits take, and sizes a layer.

    `adapted`: (inputs, outputs) of every layer that gets an adapter; `queries`, `keys`: width of all heads together;
    `normed`: whether queries and keys go through norms of their own.
    """

    parameters: int
    quantised: int
    adapted: tuple[tuple[int, int], ...]
    layers: int
    hidden: int
    intermediate: int
    queries: int
    keys: int
    vocabulary: int
    normed: bool


class Memory(BaseModel):
    """Bytes that training takes at its peak, by what takes them; `process`: libraries, or CUDA's context; `gathered`:
    what is whole for a time of a base that the processes have between them."""

    model_config = ConfigDict(frozen=True)

    process: int
    weights: int
    gathered: int
    constants: int
    adapter: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        return sum(self.model_dump().values())


def shape_of(base: Path, training: Training) -> Shape:
    """The shape of the model whose config.json is in this folder. Raises OSError or ValueError where it has none."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, local_files_only=True).get_text_config()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = [
        (name.rpartition(".")[2], module)
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear) and module is not model.get_output_embeddings()
    ]
    targets = training.target_modules
    heads = config.num_attention_heads
    head = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Shape(
        parameters=sum(p.numel() for p in model.parameters()),
        quantised=sum(module.weight.numel() for _, module in linear),
        adapted=tuple((m.in_features, m.out_features) for n, m in linear if targets == "all-linear" or n in targets),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        intermediate=config.intermediate_size,
        queries=heads * head,
        keys=(getattr(config, "num_key_value_heads", None) or heads) * head,
        vocabulary=config.vocab_size,
        normed=any(name.endswith("q_norm") for name, _ in model.named_modules()),
    )


def estimate(shape: Shape, training: Training, *, length: int, micro: int, gpu: bool) -> Memory:
    """Peak memory of a process that trains with `micro` rows of `length` tokens in a forward pass.

    On a GPU activations are recomputed layer by layer; a CPU keeps them all (trainer.recomputes). A split base takes
    its part on a GPU, besides the layers that run, and the embeddings and the head, which stay whole from the forward
    pass to the end of the backward pass; a CPU's process has had it whole at first, so there nothing is less.
    """
    whole = training.method == "full"
    rank = 0 if whole else training.rank
    trained = shape.parameters if whole else sum(rank * (inputs + outputs) for inputs, outputs in shape.adapted)
    tokens = micro * length
    attention = 4 * (shape.queries + shape.keys) + 4 * (shape.queries + shape.keys) * shape.normed
    kept = shape.layers * (8 * shape.hidden + attention + 6 * shape.intermediate)
    kept += sum(2 * (inputs + rank) for inputs, _ in shape.adapted)
    if gpu:
        kept = kept // shape.layers + 2 * shape.hidden * shape.layers
    quantised = shape.quantised if training.method == "qlora" else 0
    weights = _NF4 * quantised + 2 * (shape.parameters - quantised)
    gathered = 0.0
    if gpu and training.sharding != "none":
        ends = 2 * (shape.parameters - shape.quantised)
        gathered = ends + _GATHERED * (weights - ends) / shape.layers
        weights /= training.processes * training.nodes
    if quantised and not gpu:
        weights += 2 * quantised  # the file that they were read from stays mapped
    activations = tokens * kept * (1 if gpu else _HOLES)
    logits = tokens * shape.vocabulary * _LOGITS[training.backend]
    gradients = 4.0 * trained
    if whole and micro * training.processes * training.nodes == training.batch_size:
        # With one pass a step, the gradients grow while the backward pass gives back what the forward pass has kept.
        gradients = max(0.0, gradients - activations - logits)
    return Memory(
        process=int(_CONTEXT if gpu else _PROCESS),
        weights=int(weights),
        gathered=int(gathered),
        constants=int(_CONSTANTS * quantised),
        adapter=4 * trained,  # with method full, the 32-bit weights, beside the 16-bit ones that a pass computes with
        gradients=int(gradients),
        optimizer=int(_MOMENTS[training.optimizer] * trained),
        activations=int(activations),
        logits=int(logits),
    )


def fitting(shape: Shape, training: Training, *, length: int, memory: int, gpu: bool) -> int:
    """The most rows of a forward pass that fit `memory` bytes and divide the batch; 0 where not even one does."""
    share = training.batch_size // (training.processes * training.nodes)
    most = training.micro_batch_size or share
    for micro in range(most, 0, -1):
        if share % micro == 0 and estimate(shape, training, length=length, micro=micro, gpu=gpu).total <= memory:
            return micro
    return 0


def longest(shape: Shape, training: Training, *, memory: int, gpu: bool) -> int:
    """The longest row, in tokens, that fits `memory` bytes by itself; 0 where none does."""
    fixed = estimate(shape, training, length=0, micro=1, gpu=gpu).total
    token = (estimate(shape, training, length=4096, micro=1, gpu=gpu).total - fixed) / 4096
    return max(0, int((memory - fixed) / token))
