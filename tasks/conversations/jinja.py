"""Chat templates as transformers renders them: same sandbox, same settings and filters, in a third of the time.

A template comes from a hub, so it runs in Jinja's sandbox. The sandbox looks at every attribute that a template
reads; for the types that conversations and loops over them are made of, what it finds is known beforehand.
"""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import datetime
from functools import cache, lru_cache
from types import BuiltinMethodType
from typing import Any, NoReturn

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace

# A dict's own methods come before its keys; a str's `format` reads attributes of what it is given.
_OF_DICT = frozenset(dir(dict))
_OF_STR = frozenset(name for name in dir(str) if name[0] != "_" and name not in ("format", "format_map"))
_OF_LOOP = frozenset(name for name in dir(LoopContext) if name[0] != "_")


class _Environment(ImmutableSandboxedEnvironment):
    def getattr(self, obj: Any, attribute: str) -> Any:
        kind = type(obj)
        if kind is dict and attribute not in _OF_DICT:
            return obj[attribute] if attribute in obj else self.undefined(obj=obj, name=attribute)
        if (kind is str and attribute in _OF_STR) or (kind is LoopContext and attribute in _OF_LOOP):
            return getattr(obj, attribute)
        if kind is Namespace and attribute[0] != "_":
            with suppress(AttributeError):
                return getattr(obj, attribute)
        return super().getattr(obj, attribute)

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        # A str's own methods and namespaces ask for no context, and are safe to call: the usual way finds no more.
        if __obj is Namespace or (type(__obj) is BuiltinMethodType and type(__obj.__self__) is str):
            kwargs.pop("_loop_vars", None)
            kwargs.pop("_block_vars", None)
            return __obj(*args, **kwargs)
        return super().call(__context, __obj, *args, **kwargs)


class _Generation(Extension):
    """{% generation %} ... {% endgeneration %}: marks what the model writes, and renders its body."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


@lru_cache(maxsize=32)
def compiled(source: str) -> Template:
    """A chat template, ready to render; raises jinja2.TemplateError for what is no Jinja."""
    return _environment().from_string(source)


@cache
def _environment() -> _Environment:
    environment = _Environment(trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols])
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = lambda form: datetime.now().strftime(form)
    return environment


def _tojson(
    value: Any, ensure_ascii: bool = False, indent: int | None = None, separators: Any = None, sort_keys: bool = False
) -> str:
    """JSON as it is: Jinja's own filter escapes what HTML would misread."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
