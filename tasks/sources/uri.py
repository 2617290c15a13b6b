"""Source URIs: what a recipe may write as the place of a data set or a base model.

    hf://org/name@revision?subset=&split=            a Hugging Face repository
    modelscope://org/name@revision?subset=&split=    a ModelScope repository
    file://path-or-glob                              files on this machine (a folder: everything in it)
    gym://task?size=&seed=&planted=&...              a reasoning-gym task, with its own settings
    sample://name?size=&seed=&planted=               what the repository carries
    s3://bucket/prefix-or-glob                       objects of a bucket, on AWS_ENDPOINT_URL where it is set
    postgresql://user@host/database                  a database; what is read is the recipe's `query`
    mlflow://experiment?filter=&feedback=            MLflow traces that people liked

A password has no place in a URI: it would be in every manifest and log. It comes from the environment.
A path in `file://` is relative to the working directory unless it starts with `/` or `~`;
characters that mean something in a URI (`?`, `%`) are written percent-encoded there.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal
from urllib.parse import parse_qsl, unquote

from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInput

Scheme = Literal["hf", "modelscope", "file", "gym", "sample", "s3", "postgresql", "mlflow"]
SCHEMES: tuple[Scheme, ...] = ("hf", "modelscope", "file", "gym", "sample", "s3", "postgresql", "mlflow")
HUBS: tuple[Scheme, ...] = ("hf", "modelscope")
# What has no commits and is read from a watermark on.
STREAMS: tuple[Scheme, ...] = ("postgresql", "mlflow")

# `gym` has no list here: a task's own settings are parameters too, and only the task knows them.
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "hf": ("subset", "split", "files"),
    "modelscope": ("subset", "split", "files"),
    "file": ("header",),
    "sample": ("size", "seed", "planted"),
    "s3": ("header", "anonymous"),
    "postgresql": ("host", "port", "user", "sslmode", "sslrootcert", "sslcert", "sslkey", "connect_timeout"),
    "mlflow": ("filter", "feedback"),
}
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"[\w.][\w./+-]*")
_SECRET = re.compile(r"(?<=://)([^/?#@]*?):[^?#]*(?=@)|(?<=[?&])(\w*(?:password|passwd|secret|token)\w*)=[^&]*", re.I)
_BUCKET = re.compile(r"[A-Za-z0-9][\w.-]{1,254}")


class SourceUri(BaseModel):
    """A parsed URI.

    `text`: as written; `field`: where it was written, for messages; `path`: repository, file path,
    task or sample name; `revision`: branch, tag or commit asked for, or None; `params`: the query.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    text: str
    field: str
    scheme: Scheme
    path: str
    revision: str | None
    params: dict[str, str]

    @property
    def part(self) -> str:
        """The part of the recipe that the URI is a field of, such as `sources.own`."""
        return self.field.rpartition(".")[0]

    def bad(self, problem: str, way_out: str) -> BadInput:
        """The error that this URI cannot be used as given."""
        return BadInput(self.field, self.text, problem, way_out)

    def whole(self, name: str, default: int, *, least: int = 0, most: int = 10**9) -> int:
        """A whole-number parameter; raises BadInput outside `least` to `most`."""
        text = self.params.get(name, str(default))
        if not re.fullmatch(r"\d{1,18}", text) or not least <= int(text) <= most:
            raise self.bad(
                f"has {name}={text}, which is not a whole number from {least} to {most}", f"Correct {name}=."
            )
        return int(text)

    def fraction(self, name: str, default: float, *, most: float) -> float:
        """A parameter that is a fraction from 0 to `most`; raises BadInput outside."""
        text = self.params.get(name, str(default))
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if not 0 <= value <= most:
            raise self.bad(f"has {name}={text}, which is not a fraction from 0 to {most:g}", f"Correct {name}=.")
        return value


def parse_uri(text: str, *, field: str = "uri") -> SourceUri:
    """Parse a source URI; `field` is where it was written, for the message.

    Raises BadInput for an unknown scheme, a path that is none of the scheme's, a bad revision and
    an unknown, empty or repeated parameter.
    """
    if (shown := redacted(text)) != text:
        raise BadInput(
            field,
            shown,
            "carries a secret, which would be written into manifests and logs",
            "Leave it out of the URI: PGPASSWORD or ~/.pgpass, AWS_SECRET_ACCESS_KEY or a profile, HF_TOKEN.",
        )
    scheme, separator, rest = text.partition("://")
    if not separator or scheme not in SCHEMES:
        near = nearest(scheme, SCHEMES) if separator else ""
        way_out = f"{near}It starts with one of {', '.join(f'{known}://' for known in SCHEMES)}."
        if not separator:
            way_out += f" For a file on this machine: file://{text}"
        raise BadInput(field, text, "is not a source URI", way_out)
    place, _, query = rest.partition("?")
    revision = None
    if scheme in HUBS:
        place, at, revision = place.partition("@")
        if not at:
            revision = None
        elif not _REVISION.fullmatch(revision) or ".." in revision:
            raise BadInput(field, text, "has no usable revision after '@'", "Give a branch, a tag or a commit.")
        if not _REPOSITORY.fullmatch(place) or ".." in place:
            raise BadInput(field, text, "does not name a repository", f"Write {scheme}://org/name@revision.")
    elif scheme == "s3":
        place = unquote(place)
        if place and not _BUCKET.fullmatch(place.partition("/")[0]):
            raise BadInput(field, text, "does not begin with the name of a bucket", "Write s3://bucket/prefix.")
    elif scheme == "postgresql":
        if not place.partition("/")[2]:
            raise BadInput(field, text, "does not name a database", "Write postgresql://user@host/database.")
    else:
        place = unquote(place)
    if not place:
        raise BadInput(field, text, "names nothing after '://'", "See the recipe for the forms of a URI.")
    if "\0" in place:
        raise BadInput(field, text, "contains a NUL character", "Remove it.")
    params = _params(field, text, scheme, query)
    return SourceUri.model_validate(
        {"text": text, "field": field, "scheme": scheme, "path": place, "revision": revision, "params": params}
    )


def redacted(text: str) -> str:
    """A URI without the password or key that it may carry."""
    return _SECRET.sub(lambda found: f"{found[1]}:***" if found[1] is not None else f"{found[2]}=***", text)


def nearest(name: str, known: Iterable[str]) -> str:
    """`Did you mean 'x'? ` for the closest known name, or an empty text."""
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"Did you mean {near[0]!r}? " if near else ""


def local_path(uri: SourceUri) -> Path:
    """The path of a `file://` URI, absolute; raises BadInput for the home of a user who does not exist."""
    try:
        return Path(uri.path).expanduser().absolute()
    except RuntimeError as error:
        raise uri.bad(f"cannot be resolved ({error})", "Write the path out.") from error


def _params(field: str, text: str, scheme: str, query: str) -> dict[str, str]:
    try:
        pairs = parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError as error:
        raise BadInput(field, text, f"has a malformed query ({error})", "Write ?name=value&name=value.") from error
    params = dict(pairs)
    if len(params) < len(pairs):
        raise BadInput(field, text, "gives a parameter twice", "Give each parameter once.")
    known = _PARAMETERS.get(scheme)
    for name, value in pairs:
        if known is not None and name not in known:
            raise BadInput(
                field, text, f"has no parameter {name!r}", f"{nearest(name, known)}Known here: {', '.join(known)}."
            )
        if not value:
            raise BadInput(field, text, f"gives {name} no value", f"Write {name}=value or leave it out.")
    return params
