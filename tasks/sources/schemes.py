"""From a URI to what it points at, and from there to files: the one place that knows every scheme."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from tasks.sources import files, gym, hub, s3, sample, smollm2, stream
from tasks.sources.huggingface import HuggingFace
from tasks.sources.mlflow_traces import LikedTraces
from tasks.sources.modelscope import ModelScope
from tasks.sources.pin import Pin
from tasks.sources.postgresql import Query
from tasks.sources.rows import DATA, has_header, survey
from tasks.sources.uri import HUBS, SourceUri, parse_uri

What = Literal["data", "model"]


def resolve(uri: str | SourceUri, what: What = "data") -> Pin:
    """What a URI points at now: a commit, or a digest that stands for one. Downloads nothing.

    Raises BadInput for a URI that cannot be one, Unreachable when its hub cannot be reached, and
    WorldFailed for any other trouble on its way.
    """
    parsed = parse_uri(uri) if isinstance(uri, str) else uri
    if parsed.scheme in HUBS:
        return _resolve_hub(parsed, what)
    if parsed.scheme == "file":
        return files.resolve(parsed) if what == "data" else files.resolve_model(parsed)
    if parsed.scheme == "s3" and what == "data":
        return s3.resolve(parsed)
    if parsed.scheme == "sample" and what == "model":
        if parsed.path != smollm2.NAME or parsed.params:
            raise parsed.bad("is no sample base model", f"There is one: sample://{smollm2.NAME}.")
        return smollm2.resolve(parsed)
    if parsed.scheme == "sample":
        return sample.resolve(parsed)
    if parsed.scheme == "gym" and what == "data":
        return gym.resolve(parsed)
    raise parsed.bad(f"is no source of a {what}", "See the recipe for the forms of a URI.")


def write_data(uri: SourceUri, pin: Pin, folder: Path, earlier: Mapping[str, Path] | None = None) -> dict[str, Any]:
    """Write the files of a data source at a pin into a snapshot's folder; the fields of its manifest.

    `earlier`: sound files of an earlier snapshot of it, by name; they need not be fetched again.
    Raises BadInput for a source without rows and for a file that cannot be read, with its line.
    """
    licence = watermark = None
    if uri.scheme in HUBS:
        licence = _download(uri, "data", pin, folder)
    elif uri.scheme == "file":
        files.write(uri, pin, folder)
    elif uri.scheme == "s3":
        watermark = s3.write(uri, pin, folder, earlier or {})
    elif uri.scheme == "gym":
        licence = gym.write(uri, folder)
    else:
        licence = sample.write(uri, folder)
    rows = survey(folder, header=has_header(uri))
    if not rows:
        raise uri.bad("yields no rows", "Give a source with at least one row.")
    return {**_origin(uri, pin, licence), "rows": rows, "size": _size(folder), "watermark": watermark}


def read_stream(uri: SourceUri, wanted: stream.Wanted, before: stream.Chain, stage: Path | None) -> stream.Chain:
    """A stream's rows as they are now: those of `before`, and what came since; new ones are written to `stage`.

    Raises BadInput for a query or a filter that cannot be used, Unreachable where its server cannot be reached,
    and WorldFailed for any other trouble on its way.
    """

    def read() -> stream.Chain:
        with Query(uri, wanted) if uri.scheme == "postgresql" else LikedTraces(uri, wanted) as upstream:
            return stream.read(upstream, before, wanted, stage)

    return hub.with_retries(None, read)


def write_stream(uri: SourceUri, chain: stream.Chain, folder: Path) -> dict[str, Any]:
    """Write a stream's segments into a snapshot's folder; the fields of its manifest."""
    stream.write(chain, folder)
    rows = survey(folder)
    fields = {"rows": rows, "size": _size(folder), "rows_in": chain.rows_in, "set_aside": chain.set_aside}
    return {**_origin(uri, Pin(revision=chain.revision, requested=None), None), **fields, "watermark": chain.watermark}


def write_base(uri: SourceUri, pin: Pin, folder: Path) -> dict[str, Any]:
    """Write a base model's files into a base snapshot's folder; the fields of its manifest."""
    licence: str | None = None
    if uri.scheme in HUBS:
        licence = _download(uri, "model", pin, folder)
    elif uri.scheme == "file":
        files.write_model(uri, pin, folder)
    else:
        licence = smollm2.write(uri, folder)
    return {**_origin(uri, pin, licence), "size": _size(folder)}


def _resolve_hub(uri: SourceUri, what: What) -> Pin:
    # A commit is what it is: it can be looked up in the store with no hub in reach.
    if uri.revision and hub.COMMIT.fullmatch(uri.revision):
        return Pin(revision=uri.revision, requested=None)
    client = _client(uri, what)
    return Pin(revision=hub.with_retries(client, lambda: client.listing(uri.revision)).commit, requested=uri.revision)


def _download(uri: SourceUri, what: What, pin: Pin, folder: Path) -> str | None:
    client = _client(uri, what)
    listing = hub.with_retries(client, lambda: client.listing(pin.revision))
    if isinstance(client, ModelScope):
        listing = listing.model_copy(update={"card": client.card(listing, folder / hub.PARTIAL)})
    if what == "data":
        hub.download(client, uri, pin.revision, hub.choose_data(uri, listing), folder, folder / DATA)
    else:
        hub.download(client, uri, pin.revision, hub.choose_model(uri, listing), folder, folder)
    return listing.licence


def _client(uri: SourceUri, what: What) -> HuggingFace | ModelScope:
    kind: Literal["dataset", "model"] = "dataset" if what == "data" else "model"
    return HuggingFace(uri, kind) if uri.scheme == "hf" else ModelScope(uri, kind)


def _origin(uri: SourceUri, pin: Pin, licence: str | None) -> dict[str, Any]:
    return {"uri": uri.text, "revision": pin.revision, "requested": pin.requested, "licence": licence}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
