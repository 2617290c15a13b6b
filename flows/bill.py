"""What a night took: wall seconds by stage, bytes fetched, tokens trained and generated, and money."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

import polars as pl
from pydantic import BaseModel, ConfigDict

from tasks.evaluation import Scores
from tasks.recipe import Recipe
from tasks.sources import BaseSnapshot, Snapshot
from tasks.store import Manifest, Store
from tasks.training import Adapter

ON_GPU = ("train", "evaluate")
"""Steps of a night that run on the gpu pool, whether that has a GPU or not."""


class Bill(BaseModel):
    """`seconds`: wall time by step; `gpu_seconds`: of training and evaluation; `cost`: in the recipe's currency, None
    where the recipe states no price. What the store had already is not counted."""

    model_config = ConfigDict(frozen=True)

    seconds: dict[str, float]
    gpu_seconds: float
    bytes_fetched: int
    tokens_trained: int
    tokens_generated: int
    cost: float | None
    currency: str

    @property
    def metrics(self) -> dict[str, float]:
        """The same as numbers by name, for MLflow."""
        named = {f"bill/seconds/{step}": seconds for step, seconds in self.seconds.items()}
        named |= {f"bill/{name}": getattr(self, name) for name in ("gpu_seconds", "bytes_fetched", "tokens_trained")}
        named["bill/tokens_generated"] = self.tokens_generated
        return named | ({"bill/cost": self.cost} if self.cost is not None else {})

    @property
    def lines(self) -> list[dict[str, object]]:
        """The same as rows of a table."""
        rows: list[dict[str, object]] = [
            {"what": step, "amount": f"{seconds:.1f} s", "on": "gpu" if step in ON_GPU else "data"}
            for step, seconds in self.seconds.items()
        ]
        rows += [
            {"what": "fetched", "amount": f"{self.bytes_fetched / 1e6:.1f} MB", "on": "data"},
            {"what": "trained", "amount": f"{self.tokens_trained} tokens", "on": "gpu"},
            {"what": "generated", "amount": f"{self.tokens_generated} tokens", "on": "gpu"},
        ]
        if self.cost is not None:
            rows.append({"what": "cost", "amount": f"{self.cost:.2f} {self.currency}", "on": ""})
        return rows


def bill(
    recipe: Recipe, seconds: Mapping[str, float], since: datetime, outputs: Iterable[Manifest], store: Store
) -> Bill:
    """The bill of a night that began at `since` (UTC) and used these outputs of the store."""
    new = [output for output in outputs if datetime.fromisoformat(output.made_at) >= since.replace(microsecond=0)]
    on_gpu = sum(spent for step, spent in seconds.items() if step in ON_GPU)
    elsewhere = sum(seconds.values()) - on_gpu
    price = recipe.price
    cost = (on_gpu * price.gpu_hour + elsewhere * price.data_hour) / 3600
    return Bill(
        seconds=dict(seconds),
        gpu_seconds=round(on_gpu, 1),
        bytes_fetched=sum(output.size for output in new if isinstance(output, Snapshot | BaseSnapshot)),
        tokens_trained=sum(output.tokens for output in new if isinstance(output, Adapter)),
        tokens_generated=sum(_generated(output, store) for output in new if isinstance(output, Scores)),
        cost=round(cost, 4) if price.gpu_hour or price.data_hour else None,
        currency=price.currency,
    )


def _generated(scores: Scores, store: Store) -> int:
    items = pl.scan_parquet(store.folder(scores) / "items.parquet").select(pl.col("new_tokens").sum())
    return int(items.collect().item())
