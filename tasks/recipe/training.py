"""How a candidate is trained."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from tasks.recipe.part import Part

OF_LORA = ("rank", "alpha", "dropout", "target_modules", "rslora", "dora", "pissa", "loraplus_ratio")
"""Fields that mean nothing where all weights are trained."""


class Training(Part):
    """How a candidate is trained."""

    backend: Literal["unsloth", "transformers"] = "unsloth"
    """Training library: unsloth, on one device; or transformers, with TRL, PEFT and bitsandbytes, on any number."""
    method: Literal["qlora", "lora", "full"] = "qlora"
    """qlora: base in 4-bit NF4 with double quantisation; lora: base in 16 bit; full: no adapter, all of the base's
    weights, in 32 bit while they are trained; wants a tenth of LoRA's learning_rate or less, and takes the transformers
    backend."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the adapter's initial weights and of the order of batches."""
    rank: int = Field(16, ge=1, le=512)
    """Rank of the LoRA matrices."""
    alpha: int = Field(32, ge=1, le=2048)
    """Scale of the LoRA update, as alpha / rank."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout on the LoRA input."""
    target_modules: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    """Which layers get an adapter: all-linear or a list of module names."""
    rslora: bool = False
    """Scale the LoRA update by alpha / sqrt(rank) instead (rank-stabilised LoRA, arXiv 2312.03732)."""
    dora: bool = False
    """Train the magnitude of each weight column beside its direction (DoRA, arXiv 2402.09353)."""
    pissa: bool = False
    """Begin with the base's principal singular vectors (PiSSA, arXiv 2404.02948); the adapter is saved as plain LoRA
    of twice the rank."""
    loraplus_ratio: float | None = Field(None, ge=1, le=1000)
    """How many times the learning rate of A that of B is (LoRA+, arXiv 2402.12354); null: once."""
    neftune_alpha: float | None = Field(None, gt=0, le=100)
    """Strength of the noise on the input embeddings while training (NEFTune, arXiv 2310.05914); null: none."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw", "paged_adamw_8bit"] = "adamw"
    """adamw, with moments in 32 or 8 bit; a paged one moves them to the host's memory where the GPU's runs short."""
    learning_rate: float = Field(2e-4, gt=0, le=0.1)
    """Peak learning rate."""
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    """Learning-rate schedule after the warm-up."""
    warmup_steps: int = Field(5, ge=0)
    """Optimiser steps of linear warm-up."""
    weight_decay: float = Field(0.0, ge=0, le=1)
    """Decoupled weight decay."""
    batch_size: int = Field(8, ge=1, le=4096)
    """Conversations per optimiser step."""
    micro_batch_size: int | None = Field(None, ge=1, le=4096)
    """Conversations per forward pass; must divide batch_size (by all processes); null: as many of batch_size as memory
    should take and as leave at most 8 % padding. Halved until the longest batch fits, while batch_size stays what it
    is."""
    packing: bool = False
    """Lay a forward pass's rows end to end instead of padding them, each seeing itself alone, which is checked on the
    base before training; takes the transformers backend. Else rows are batched by length."""
    processes: int = Field(1, ge=1, le=64)
    """Processes that train together on a node, one a GPU; more than one takes the transformers backend."""
    nodes: int = Field(1, ge=1, le=1024)
    """Nodes that train together, on a shared NIGHTOWL_HOME; more than one takes a rendezvous."""
    sharding: Literal["none", "base"] = "none"
    """base: each process keeps its part of the frozen base (FSDP2) and gathers a layer while it runs, for a base that
    fits no GPU whole; takes several processes and the transformers backend. The adapter is whole in each. Every process
    first reads the base into the host's memory, in the method's precision."""
    rendezvous: str | None = Field(None, pattern=r"^[^:/ ]+:[0-9]+$")
    """host:port of one of the nodes, where they find each other; null: this machine is alone."""
    epochs: float = Field(1.0, gt=0, le=100)
    """Passes over the training split."""
    max_steps: int | None = Field(None, ge=1)
    """Most optimiser steps; null: as many as the epochs take."""
    save_steps: int = Field(20, ge=1)
    """Optimiser steps between checkpoints."""
    trackers: tuple[Literal["wandb", "swanlab"], ...] = ()
    """Trackers that mirror what MLflow is told of training, under NIGHTOWL_HOME/trackers. They send nothing unless
    WANDB_MODE or SWANLAB_MODE is online, with the account that their own login keeps."""

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> Self:
        together = self.processes * self.nodes
        if self.batch_size % together:
            raise ValueError(f"batch_size {self.batch_size} can't be shared evenly by {together} processes")
        if self.micro_batch_size and self.batch_size // together % self.micro_batch_size:
            by = f" by {together} processes" if together > 1 else ""
            raise ValueError(
                f"micro_batch_size {self.micro_batch_size} does not divide batch_size {self.batch_size}{by}"
            )
        if self.nodes > 1 and not self.rendezvous:
            raise ValueError("several nodes need a rendezvous, the host:port where they find each other")
        if len(set(self.trackers)) < len(self.trackers):
            raise ValueError(f"trackers has one of {', '.join(self.trackers)} twice")
        return self
