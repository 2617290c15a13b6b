"""A recipe read from a file and the command line: each value knows where it came from, and each mistake its way out."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from tasks.errors import BadInput
from tasks.recipe.part import Part
from tasks.recipe.whole import Recipe

PRESETS = Path(__file__).resolve().parents[2] / "deployments" / "recipes"


class Setting(BaseModel):
    """One resolved value and where it came from."""

    path: str
    value: Any
    origin: Literal["default", "recipe", "command line"]


def load(path: str | Path, overrides: Sequence[str] = ()) -> tuple[Recipe, list[Setting]]:
    """Read a recipe file (or a preset by name), apply `path=value` overrides, and say where each value came from.

    Raises BadInput for a missing or malformed file, an unknown key and a value out of bounds.
    """
    file = _find(path)
    try:
        given = yaml.safe_load(file.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{file}:{mark.line + 1}" if mark else str(file)
        raise BadInput(place, getattr(error, "problem", "?"), "is not YAML", "Correct that line.") from error
    except UnicodeDecodeError as error:
        raise BadInput(str(file), error.reason, "is not UTF-8 text", "Save the recipe as UTF-8.") from error
    if not isinstance(given, dict):
        raise BadInput(str(file), type(given).__name__, "is no mapping of recipe fields", "See `nightowl plan demo`.")
    set_paths = [_override(given, text) for text in overrides]
    _inline_template(given, file.parent)
    recipe = parse(given)
    return recipe, list(_settings(recipe, given, set_paths))


def parse(given: Mapping[str, Any]) -> Recipe:
    """A Recipe of plain data; raises BadInput that names the first field at fault."""
    from tasks.sources import parse_uri

    try:
        recipe = Recipe.model_validate(given)
    except ValidationError as error:
        raise _explain(error, given) from error
    parse_uri(recipe.base.uri, field="base.uri")
    for source in recipe.sources:
        parse_uri(source.uri, field=f"sources.{source.name}.uri")
    return recipe


def settings_of(recipe: Recipe) -> list[Setting]:
    """Each value of a recipe that came as data rather than by `load`, and whether it was given or is the default."""
    return list(_settings(recipe, recipe.model_dump(exclude_unset=True), ()))


def is_recipe(text: str) -> bool:
    """Whether a text names a recipe (a YAML file, or a preset) rather than data or a model."""
    return text.endswith((".yaml", ".yml")) or (PRESETS / f"{text}.yaml").is_file()


def _find(path: str | Path) -> Path:
    file = Path(path)
    if file.is_file():
        return file
    preset = PRESETS / f"{path}.yaml"
    if preset.is_file():
        return preset
    names = sorted(p.stem for p in PRESETS.glob("*.yaml"))
    raise BadInput("recipe", str(path), "is neither a file nor a preset", f"Presets: {', '.join(names)}.")


def _override(given: dict[str, Any], text: str) -> str:
    """Set `a.b=value` in the recipe's data; lists are addressed by index or by the entry's `name`."""
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise BadInput("--set", text, "is not of the form path=value", "For example --set training.seed=1.")
    keys = path.split(".")
    at: Any = given
    for key in keys[:-1]:
        at = _step(at, key, path)
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise BadInput(f"--set {path}", value, "is not a YAML value", "Quote it.") from error
    # YAML 1.1 reads 2e-4 as text; a person who writes it means a number.
    if isinstance(parsed, str):
        with suppress(ValueError):
            parsed = float(parsed)
    if isinstance(at, list):
        at[_index(at, keys[-1], path)] = parsed
    else:
        at[keys[-1]] = parsed
    return path


def _step(at: Any, key: str, path: str) -> Any:
    if isinstance(at, list):
        return at[_index(at, key, path)]
    if isinstance(at, dict):
        at.setdefault(key, {})
        if at[key] is None:
            at[key] = {}
        return at[key]
    raise BadInput(f"--set {path}", key, "is below a plain value", "See `nightowl plan` for the fields.")


def _index(entries: list[Any], key: str, path: str) -> int:
    names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
    if key in names:
        return names.index(key)
    if key.isdigit() and int(key) < len(entries):
        return int(key)
    known = ", ".join(str(name) for name in names)
    raise BadInput(f"--set {path}", key, "is no entry of that list", f"Entries: {known}.")


def _inline_template(given: dict[str, Any], folder: Path) -> None:
    base = given.get("base")
    if not isinstance(base, dict) or not isinstance(base.get("chat_template_file"), str):
        return
    if base.get("chat_template") is not None:
        raise BadInput(
            "base.chat_template_file",
            base["chat_template_file"],
            "is given beside base.chat_template",
            "Keep one of them.",
        )
    file = folder / base["chat_template_file"]
    try:
        base["chat_template"] = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BadInput(
            "base.chat_template_file",
            str(file),
            f"cannot be read ({error})",
            "Give a Jinja file relative to the recipe.",
        ) from error


def _explain(error: ValidationError, given: Any) -> BadInput:
    from tasks.sources import redacted

    first = error.errors()[0]
    location = [part for part in first["loc"] if not (isinstance(part, str) and part.startswith("literal["))]
    field = ".".join(_named(given, location)) or "recipe"
    if first["type"] == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1, cutoff=0.4)
        way_out = f"Did you mean {near[0]!r}? " if near else ""
        way_out += f"Known here: {', '.join(known)}."
        return BadInput(field, first["input"], "is not a field of the recipe", way_out)
    if first["type"] == "missing":
        return BadInput(field, None, "is missing", "Every recipe needs it; `nightowl plan demo` shows one.")
    message = first["msg"].removeprefix("Value error, ")
    value = first["input"] if not isinstance(first["input"], dict | BaseModel) else "..."
    value = redacted(value) if isinstance(value, str) else value
    return BadInput(field, value, f"is refused ({message})", "Correct it in the recipe or with --set.")


def _named(data: Any, keys: Sequence[int | str]) -> list[str]:
    """A path in a recipe or its data, with list entries named rather than numbered where they have a name."""
    named = []
    for key in keys:
        try:
            data = getattr(data, str(key)) if isinstance(data, Part) else data[key]
        except (AttributeError, KeyError, IndexError, TypeError):
            data = None
        name = data.get("name") if isinstance(data, dict) else getattr(data, "name", None)
        named.append(name if isinstance(key, int) and isinstance(name, str) else str(key))
    return named


def _known_keys(location: Iterable[int | str]) -> list[str]:
    model: Any = Recipe
    for part in location:
        if isinstance(part, str) and part in model.model_fields:
            model = _part_of(model.model_fields[part].annotation)
    return sorted(model.model_fields)


def _part_of(annotation: Any) -> Any:
    """The recipe part inside an annotation such as `tuple[Source, ...]` or `Part | None`."""
    if get_origin(annotation) in (tuple, dict, Union, UnionType):
        return next((_part_of(arg) for arg in get_args(annotation) if _is_part(_part_of(arg))), annotation)
    return annotation


def _is_part(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, Part)


def _settings(recipe: Recipe, given: Any, set_paths: Sequence[str]) -> Iterator[Setting]:
    for path, value, keys in _leaves(recipe):
        origin: Literal["default", "recipe", "command line"] = "recipe" if _has(given, keys) else "default"
        by_name = ".".join(_named(recipe, keys))
        if any(
            text in (path, by_name)
            or any(whole.startswith(text + ".") or text.startswith(whole + ".") for whole in (path, by_name))
            for text in set_paths
        ):
            origin = "command line"
        yield Setting(path=by_name, value=value, origin=origin)


def _leaves(value: Any, keys: tuple[str | int, ...] = ()) -> Iterator[tuple[str, Any, tuple[str | int, ...]]]:
    if isinstance(value, Part):
        for name in type(value).model_fields:
            yield from _leaves(getattr(value, name), (*keys, name))
    elif isinstance(value, tuple) and value and isinstance(value[0], Part):
        for index, entry in enumerate(value):
            yield from _leaves(entry, (*keys, index))
    else:
        yield ".".join(map(str, keys)), value, keys


def _has(given: Any, keys: Sequence[str | int]) -> bool:
    at = given
    for key in keys:
        try:
            at = at[key]
        except (KeyError, IndexError, TypeError):
            return False
    return True
