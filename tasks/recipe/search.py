"""What may vary from candidate to candidate, and a recipe with other values in those places.

Whatever varies must leave every candidate with the same held-out rows and the same way of being scored, since all of a
night's candidates are compared on the same items. So the shares and the size of the training split may vary and how a
candidate is trained; the base, the data gate, what is held out and the suites may not.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from itertools import islice, product
from typing import TYPE_CHECKING, Any, Self

from pydantic import Field, ValidationError, model_validator

from tasks.errors import BadInput
from tasks.recipe.mixture import Mixture
from tasks.recipe.part import Part
from tasks.recipe.training import OF_LORA, Training

if TYPE_CHECKING:
    from tasks.recipe.whole import Recipe

Value = bool | int | float | str | None
_OF_MIXTURE = ("reasoning_share", "method", "temperature", "measure", "repeats", "rows", "seed")
_NOT_OF_TRAINING = (
    "backend",
    "method",
    "packing",
    "processes",
    "nodes",
    "rendezvous",
    "save_steps",
    "sharding",
    "target_modules",
    "trackers",
)
_CORNERS = 256  # most combinations of bounds that are tried when a recipe is read
_WHOLE = 100  # most whole numbers of a range that are tried one by one


class Vary(Part):
    """A field that varies, over a range or over choices. The recipe's own value has to be one of them."""

    field: str
    """The field, by its path as for --set: of training, of mixture's shares and sizes, or sources.NAME.share, beside
    which the other sources keep their proportions."""
    low: float | None = Field(None, allow_inf_nan=False)
    """Lowest value of a range; whole numbers where the field takes those."""
    high: float | None = Field(None, allow_inf_nan=False)
    """Highest value of a range."""
    log: bool = False
    """A range is searched by its logarithm: as much between 0.0001 and 0.001 as between 0.001 and 0.01."""
    choices: tuple[Value, ...] = ()
    """Instead of a range: the values."""

    @model_validator(mode="after")
    def _range_or_choices(self) -> Self:
        if bool(self.choices) == (self.low is not None or self.high is not None):
            raise ValueError(f"{self.field} needs either low and high, or choices")
        if self.choices:
            if len(self.choices) < 2 or any(self.choices.count(choice) > 1 for choice in self.choices):
                raise ValueError(f"{self.field} needs at least two choices, each once")
            if self.log:
                raise ValueError(f"{self.field} has log, which is for a range")
            return self
        if self.low is None or self.high is None or self.low >= self.high:
            raise ValueError(f"{self.field} needs a low below its high")
        if self.log and self.low <= 0:
            raise ValueError(f"{self.field} has log, which needs a low above 0")
        return self


class Search(Part):
    """Several candidates a night: the first ever is the recipe as it stands, the others are proposed (by Optuna's TPE)
    from what earlier ones scored on the target suites, subject to the guards."""

    vary: tuple[Vary, ...]
    """What varies."""
    candidates: int = Field(2, ge=1, le=64)
    """Candidates a night."""
    seed: int = Field(0, ge=0, lt=2**31)
    """Seed of the proposals."""
    storage: str | None = Field(None, pattern=r"^postgresql://([^:@/?]+@)?[^:@/?]+(:[0-9]+)?/[^:@/?]+$")
    """Where what has been tried is kept: postgresql://user@host/database, with the password in PGPASSWORD or ~/.pgpass;
    null: a SQLite file in the store."""

    @model_validator(mode="after")
    def _varies(self) -> Self:
        fields = [vary.field for vary in self.vary]
        if not fields:
            raise ValueError("vary is empty, so all candidates would be the same")
        if doubled := sorted({field for field in fields if fields.count(field) > 1}):
            raise ValueError(f"vary has {doubled[0]} twice")
        return self


def variant(recipe: Recipe, values: Mapping[str, Value]) -> Recipe:
    """The recipe of one candidate: these values by field, and no search any more.

    Raises BadInput where the values do not make a recipe.
    """
    given = recipe.model_dump(exclude_unset=True)
    given["search"] = None
    shares = {}
    for field, value in values.items():
        section, _, name = field.partition(".")
        if section == "sources":
            shares[name.removesuffix(".share")] = value
        else:
            given.setdefault(section, {})[name] = value
    if shares:
        _share_out(given["sources"], shares)
    try:
        return type(recipe).model_validate(given)
    except ValidationError as error:
        said = error.errors()[0]["msg"].removeprefix("Value error, ")
        told = ", ".join(f"{field}={value}" for field, value in values.items())
        raise BadInput("search", told, f"makes no recipe ({said})", "Change what search.vary allows.") from error


def value_of(recipe: Recipe, field: str) -> Value:
    """The value of a field that may vary."""
    section, _, name = field.partition(".")
    if section == "sources":
        return next(source.share for source in recipe.sources if source.name == name.removesuffix(".share"))
    found: Value = getattr(getattr(recipe, section), name)
    return found


def may_vary(recipe: Recipe) -> list[str]:
    """The fields that may vary."""
    left_out = (*_NOT_OF_TRAINING, *(OF_LORA if recipe.training.method == "full" else ()))
    training = [f"training.{name}" for name in Training.model_fields if name not in left_out]
    mixture = [f"mixture.{name}" for name in Mixture.model_fields if name in _OF_MIXTURE]
    return [*training, *mixture, *(f"sources.{source.name}.share" for source in recipe.sources)]


def in_space(vary: Vary, value: Value) -> bool:
    """Whether a value is one of those that a field may take."""
    if vary.choices:
        return any(value == choice and type(value) is type(choice) for choice in vary.choices)
    assert vary.low is not None
    assert vary.high is not None
    return isinstance(value, int | float) and not isinstance(value, bool) and vary.low <= value <= vary.high


def bounds(recipe: Recipe, vary: Vary) -> tuple[int, int] | tuple[float, float]:
    """Both ends of a range; ints where its field takes whole numbers."""
    assert vary.low is not None
    assert vary.high is not None
    if isinstance(value_of(recipe, vary.field), int):
        return int(vary.low), int(vary.high)
    return vary.low, vary.high


def resolved(recipe: Recipe) -> Search | None:
    """The recipe's search with choices as its fields read them, such as 16 for "16".

    Raises BadInput for a field that is none or may not vary, for a bound or a choice that is no value of its field, for
    bounds that do not go together, and where the recipe's own value is outside.
    """
    if recipe.search is None:
        return None
    checked = tuple(_checked(recipe, vary) for vary in recipe.search.vary)
    corners = product(*(vary.choices or bounds(recipe, vary) for vary in checked))
    for corner in islice(corners, _CORNERS):
        variant(recipe, dict(zip((vary.field for vary in checked), corner, strict=True)))
    return recipe.search.model_copy(update={"vary": checked})


def _checked(recipe: Recipe, vary: Vary) -> Vary:
    place = f"search.vary.{vary.field}"
    known = may_vary(recipe)
    if vary.field not in known:
        near = difflib.get_close_matches(vary.field, known, n=1, cutoff=0.5)
        hint = f"Did you mean {near[0]}? " if near else ""
        raise BadInput(place, vary.field, "is no field that may vary", f"{hint}These may: {', '.join(known)}.")

    def read(name: str, value: Value) -> Value:
        try:
            return value_of(variant(recipe, {vary.field: value}), vary.field)
        except BadInput as error:
            why = str(error).partition("makes no recipe (")[2].partition("). Change")[0]
            raise BadInput(
                f"{place}.{name}", value, f"is no value of {vary.field} ({why})", "Correct it in the recipe."
            ) from error

    if vary.choices:
        vary = vary.model_copy(update={"choices": tuple(read("choices", choice) for choice in vary.choices)})
    else:
        for name in ("low", "high"):
            if not isinstance(found := read(name, getattr(vary, name)), int | float) or isinstance(found, bool):
                raise BadInput(f"{place}.{name}", getattr(vary, name), "is of no number", "Give choices instead.")
        low, high = bounds(recipe, vary)
        if isinstance(low, int) and isinstance(high, int) and high - low <= _WHOLE:
            for number in range(low + 1, high):
                read("low", number)
    if not in_space(vary, own := value_of(recipe, vary.field)):
        raise BadInput(
            vary.field,
            own,
            f"is outside what {place} allows, and the first candidate is the recipe as it stands",
            "Give it a value that is inside.",
        )
    return vary


def _share_out(sources: list[dict[str, Any]], shares: Mapping[str, Value]) -> None:
    """Give sources these shares, and the others the rest, in the proportions that they have."""
    others = [source for source in sources if source["name"] not in shares]
    before = sum(source.get("share") or 0 for source in others)
    left = 1 - sum(float(share or 0) for share in shares.values())
    for source in sources:
        if source["name"] in shares:
            source["share"] = shares[source["name"]]
        elif before and source.get("share") is not None:
            source["share"] *= left / before
