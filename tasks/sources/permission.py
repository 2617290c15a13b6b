"""Consent and retention: which rows of a source may be trained on at all, and for how long.

What may not be used is counted and left out where the source is read, so that it lies neither in the
snapshot nor in a quarantine. A row whose age or consent cannot be read is left out as well: what is
not known to be allowed is not allowed. Ages are counted to the end of the day (UTC): a row is used no more
from the day on in which it reaches the greatest age, and two nights of one day use the same rows.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import orjson
from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInput
from tasks.sources.uri import SourceUri, nearest

NO_CONSENT = "no_consent"
NO_TIME = "no_time"
EXPIRED = "expired"

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
# Numbers are seconds, milliseconds or microseconds since 1970, told apart by their size: seconds reach this
# bound in the year 5138, milliseconds passed it in 1973.
_SECONDS = 1e11
_MILLISECONDS = 1e14
# A number as text, as a CSV has it; with fewer digits it is a date.
_NUMBER = re.compile(r"\d{9,16}(\.\d+)?")


class Permission(BaseModel):
    """What the recipe asks of every row.

    `consent`: a column that must be true (or the text "true", in any case, since a CSV has no other way to say it);
    `time`: the column of a row's time; `max_age`: days, None: for ever.
    A column may be a path into objects (`metadata.consent`), where no column has that very name.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    consent: str | None = None
    time: str | None = None
    max_age: float | None = None

    def asks(self) -> bool:
        """Whether there is anything that a row must fulfil."""
        return self.consent is not None or self.max_age is not None

    def cutoff(self) -> int | None:
        """The time, in microseconds since 1970, before which a row is too old today; None: none is."""
        if self.max_age is None:
            return None
        tomorrow = now().replace(hour=0, minute=0, second=0, microsecond=0) + timedelta(days=1)
        return microseconds(tomorrow - timedelta(days=self.max_age))

    def require(self, columns: Collection[str], uri: SourceUri) -> None:
        """Raises BadInput unless the source has the columns that are asked for."""
        for field, column in (("consent", self.consent), ("time", self.time)):
            if column is not None and not {column, column.partition(".")[0]} & set(columns):
                way_out = f"{nearest(column, columns)}Columns: {', '.join(columns)}."
                raise BadInput(f"{uri.part}.{field}", column, "is not a column of the source", way_out)

    def when(self, record: Mapping[str, Any]) -> int | None:
        """A row's time in microseconds since 1970; None where it has none that can be read."""
        return time_of(lookup(record, self.time)) if self.time else None

    def reason(self, record: Mapping[str, Any], cutoff: int | None) -> str | None:
        """Why a row may not be used; None where it may."""
        if self.consent is not None and lookup(record, self.consent) is not True:
            return NO_CONSENT
        if cutoff is not None:
            when = self.when(record)
            if when is None:
                return NO_TIME
            if when < cutoff:
                return EXPIRED
        return None


def now() -> datetime:
    """The time by this machine's clock."""
    return datetime.now(UTC)


def microseconds(moment: datetime) -> int:
    """Microseconds since 1970; a moment without a zone is taken as UTC."""
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // _MICROSECOND


def moment(value: int) -> datetime:
    """The moment of microseconds since 1970."""
    return _EPOCH + value * _MICROSECOND


def time_of(value: object) -> int | None:
    """Microseconds since 1970 of ISO 8601 text, a date, or a number of seconds, milli- or microseconds or its text."""
    try:
        if isinstance(value, bool):
            return None
        if isinstance(value, int | float):
            scale = 10**6 if abs(value) < _SECONDS else 10**3 if abs(value) < _MILLISECONDS else 1
            return int(value * scale)
        if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
            return time_of(float(value))
        if isinstance(value, str):
            return microseconds(datetime.fromisoformat(value.strip()))
        if isinstance(value, datetime):
            return microseconds(value)
        if isinstance(value, date):
            return microseconds(datetime(value.year, value.month, value.day))
    except (ValueError, OverflowError):
        return None
    return None


def lookup(record: Mapping[str, Any], column: str) -> Any:
    """A column's value, or that of a path into objects, which may be JSON text; None where there is none."""
    if column in record or "." not in column:
        return _plain(record.get(column))
    value: Any = record
    for part in column.split("."):
        if isinstance(value, str):
            try:
                value = orjson.loads(value)
            except orjson.JSONDecodeError:
                return None
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return _plain(value)


def _plain(value: Any) -> Any:
    return True if isinstance(value, str) and value.strip().lower() == "true" else value
