"""Where a night's base model and its conversations come from."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from tasks.recipe.part import Kind, Name, Part, Share

_OF_PEOPLE = ("file", "hf", "modelscope", "s3", "postgresql", "mlflow")
_ONLY_FOR = {
    "query": ("postgresql",),
    "cursor": ("postgresql",),
    "overlap": ("postgresql", "mlflow"),
    "recheck": ("postgresql", "mlflow"),
    # What is generated has no such columns: refused, for a rule that is not applied must not look as if it were.
    "consent": _OF_PEOPLE,
    "time": _OF_PEOPLE,
    "max_age": _OF_PEOPLE,
}


class Base(Part):
    """The base model that adapters are trained on; always a pinned reference, never registered."""

    uri: str
    """Where the base model is: hf://org/name@revision, modelscope://org/name@revision, file://folder or
    sample://smollm2-135m-instruct."""
    chat_template: str | None = None
    """Jinja chat template, in full; null: the model's own. Put long ones in chat_template_file."""
    chat_template_file: str | None = None
    """A Jinja file beside the recipe; its text becomes chat_template when the recipe is read."""
    licence: str | None = None
    """Licence of a base model that states none itself, such as your own (SPDX identifier)."""
    max_length: int = Field(1024, ge=16, le=1_048_576)
    """Longest conversation that is trained on, in tokens."""


class Source(Part):
    """One source of conversations."""

    name: Name
    """Name of the source within the recipe."""
    uri: str
    """hf://org/name@revision, modelscope://org/name@revision, file://path-or-glob, s3://bucket/prefix-or-glob,
    postgresql://user@host/database, mlflow://experiment?filter=&feedback=, gym://task?size=&seed= or
    sample://name?size=&seed=."""
    kind: Kind
    """What its conversations teach: chat, reasoning (with a thinking trace) or tool (calls)."""
    share: Share | None = None
    """Share of the training split, in mixture.measure; the shares of all sources add up to 1. Only where
    mixture.method is fixed."""
    licence: str | None = None
    """Licence of a source that states none itself, such as your own data (SPDX identifier)."""
    format: str | None = None
    """Row format (alpaca, sharegpt, openai, ...); null: detected from the columns."""
    columns: dict[str, str] | None = None
    """Column mapping, from our field name to the source's column, where no format fits."""
    query: str | None = None
    """postgresql: one SELECT; it runs read only."""
    cursor: tuple[str, ...] = ()
    """postgresql: columns of the query that are unique together and grow, such as [created_at, id]: what comes
    after the last row's is new. Indexed, if the table is large."""
    overlap: float | None = Field(None, ge=0)
    """postgresql, mlflow: how far before the last row rows are read again each night, since some come late, in
    seconds (in steps, where the cursor is a whole number); null: 3600 for postgresql, a week for mlflow. Where a
    database has more rows before that than it had, everything is read again."""
    recheck: bool | None = None
    """postgresql, mlflow: read everything again each night, so that rows changed or deleted since are followed,
    however old; null: only where consent is set, since it may be withdrawn."""
    consent: str | None = None
    """Column that must be true in every row that is used (a dotted path reaches into objects); other rows are counted
    and not kept; null: none."""
    time: str | None = None
    """Column of a row's time: ISO 8601 text (UTC where it has no zone), or a number of seconds, milli- or microseconds
    since 1970."""
    max_age: float | None = Field(None, ge=1)
    """Greatest age of a row, in days; it is used no more from the day (UTC) on in which it reaches it; null: none."""

    @model_validator(mode="after")
    def _fits_its_scheme(self) -> Self:
        scheme = self.uri.partition("://")[0]
        if scheme == "postgresql" and not (self.query and self.cursor):
            raise ValueError(f"source {self.name!r} reads a database, which takes query and cursor")
        for field, schemes in _ONLY_FOR.items():
            if getattr(self, field) not in (None, ()) and scheme not in schemes:
                raise ValueError(f"{field} is for {' and '.join(schemes)} sources, and this is {scheme}")
        if len(set(self.cursor)) < len(self.cursor):
            raise ValueError("cursor names a column twice")
        if self.max_age is not None and self.time is None:
            raise ValueError("max_age needs time, the column of a row's time")
        return self
