"""The Recipe: one night, described by parts that fit together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, Self

from pydantic import model_validator

from tasks.recipe.evaluation import Evaluation, Gate
from tasks.recipe.mixture import Mixture
from tasks.recipe.operation import Price, Registry, Schedule
from tasks.recipe.part import Name, Part
from tasks.recipe.quality import Quality
from tasks.recipe.search import Search, resolved
from tasks.recipe.sources import Base, Source
from tasks.recipe.training import Training


class Recipe(Part):
    """One night, described."""

    name: Name
    """Name of the recipe; also of its MLflow experiment and, by default, its registered model."""
    base: Base
    """The base model."""
    sources: tuple[Source, ...]
    """Where conversations come from."""
    quality: Quality = Quality()
    """What the data gate asks."""
    mixture: Mixture = Mixture()
    """How conversations become splits."""
    training: Training = Training()
    """How a candidate is trained."""
    evaluation: Evaluation
    """How models are compared."""
    gate: Gate = Gate()
    """When a candidate is let out."""
    registry: Registry = Registry()
    """Where champions are kept."""
    placement: Literal["here", "pools"] = "here"
    """here: every stage runs where the night does; pools: data stages on the data pool, training and evaluation on
    the gpu pool."""
    schedule: Schedule | None = None
    """When its night starts by itself, once deployed; null: only by hand or by an event."""
    price: Price = Price()
    """What an hour costs."""
    search: Search | None = None
    """Several candidates a night, over what may vary; null: one, the recipe as it stands."""

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if not self.sources:
            raise ValueError("sources is empty")
        names = [source.name for source in self.sources]
        if doubled := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"source {doubled[0]!r} appears more than once")
        _check_shares(self.sources, self.mixture)
        kinds = {source.kind for source in self.sources}
        for suite in self.evaluation.suites:
            if suite.kind is not None and suite.kind not in kinds:
                raise ValueError(f"suite {suite.name!r} needs {suite.kind} conversations, and no source has that kind")
        if self.mixture.test + self.mixture.validation >= 1:
            raise ValueError("mixture.test and mixture.validation leave nothing to train on")
        resolved(self)
        return self

    @property
    def registered_model(self) -> str:
        """Name of the registered model in MLflow."""
        return self.registry.model or f"nightowl-{self.name}"


def _check_shares(sources: Sequence[Source], mixture: Mixture) -> None:
    given = {source.name: source.share for source in sources if source.share is not None}
    if mixture.method != "fixed" and given:
        raise ValueError(f"source {next(iter(given))!r} has a share, and mixture.method is {mixture.method}")
    if mixture.method == "fixed":
        if missing := [source.name for source in sources if source.share is None]:
            raise ValueError(f"source {missing[0]!r} has no share; leave it out only with another mixture.method")
        if abs((total := sum(given.values())) - 1) > 1e-6:
            shares = ", ".join(f"{name} {share:g}" for name, share in given.items())
            raise ValueError(f"the sources' shares add up to {total:g}, not 1 ({shares})")
    reasoning = {source.kind == "reasoning" for source in sources}
    if mixture.reasoning_share is not None and len(reasoning) == 1:
        raise ValueError("mixture.reasoning_share needs sources of the kind reasoning and of another kind")
    if mixture.rows is not None and mixture.rows < mixture.min_rows:
        raise ValueError(f"mixture.rows {mixture.rows} is below mixture.min_rows {mixture.min_rows}")
