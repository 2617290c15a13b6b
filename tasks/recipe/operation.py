"""Where champions are kept, when a night starts by itself, and what it costs."""

from __future__ import annotations

from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, model_validator

from tasks.recipe.part import Part


class Registry(Part):
    """Where champions are kept."""

    model: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    """Registered model in MLflow; null: nightowl-<recipe name>."""
    keep_versions: int = Field(20, ge=1)
    """Newest versions that `nightowl prune` keeps, beside champions of today and ever, which always stay."""
    keep_days: float = Field(30, ge=1)
    """Days that a version, and an output of the store since a night last used it, is kept in any case."""
    licences: Literal["flag", "refuse"] = "flag"
    """Sources and a base model whose licence is not stated or non-commercial: flag: told on the model card; refuse:
    the night stops before anything is validated or trained."""


class Schedule(Part):
    """When a deployed recipe's night starts by itself."""

    cron: str = Field("0 2 * * *", pattern=r"^\S+( \S+){4}$")
    """Minute, hour, day of the month, month, day of the week."""
    timezone: str = "UTC"
    """Time zone of the cron line, by IANA name such as Asia/Shanghai."""

    @model_validator(mode="after")
    def _zone_exists(self) -> Self:
        try:
            ZoneInfo(self.timezone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{self.timezone!r} is no time zone; one is Europe/Berlin") from None
        return self


class Price(Part):
    """What an hour costs, for the night's bill."""

    gpu_hour: float = Field(0, ge=0)
    """Price of an hour of training or evaluation."""
    data_hour: float = Field(0, ge=0)
    """Price of an hour of any other stage."""
    currency: str = Field("USD", pattern="^[A-Z]{3}$")
    """Currency of both (ISO 4217)."""
