"""From a URI to what it points at, and from there to files: the one place that knows every scheme."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import orjson

from tasks.errors import BadInput
from tasks.sources import files, gym, hub, s3, sample, smollm2, stream
from tasks.sources.huggingface import HuggingFace
from tasks.sources.mlflow_traces import LikedTraces
from tasks.sources.modelscope import ModelScope
from tasks.sources.permission import Permission
from tasks.sources.pin import Pin
from tasks.sources.postgresql import Query
from tasks.sources.rows import DATA, survey
from tasks.sources.sift import RAW, sift, sifted_name
from tasks.sources.snapshot import Snapshot
from tasks.sources.uri import HUBS, SourceUri, parse_uri
from tasks.store import link

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


class Earlier(NamedTuple):
    """A snapshot of the same source; `files`: those of it that are sound, by name."""

    snapshot: Snapshot
    files: Mapping[str, Path]


def write_data(
    uri: SourceUri,
    pin: Pin,
    folder: Path,
    permission: Permission,
    cutoff: int | None,
    earlier: Earlier | None,
) -> dict[str, Any]:
    """Write the files of a data source at a pin into a snapshot's folder; the fields of its manifest.

    `permission`: what every row must fulfil, with the `cutoff` of its age; `earlier`: a snapshot made under the same
    permission, whose files need not be fetched again. Raises BadInput for a source without rows and for a file that
    cannot be read, with its line.
    """
    # Rows that must be asked about are written a second time, which the check of the disk has to know beforehand.
    asks = permission.asks()
    data = folder / (RAW if asks else DATA)
    licence = watermark = None
    if earlier and earlier.snapshot.revision == pin.revision and earlier.files.keys() == earlier.snapshot.files.keys():
        licence, watermark = earlier.snapshot.licence, earlier.snapshot.watermark
        _link(earlier.files, folder, data)
    elif uri.scheme in HUBS:
        licence = _download(uri, "data", pin, folder, data, asks)
    elif uri.scheme == "file":
        files.write(uri, pin, data, asks)
    elif uri.scheme == "s3":
        kept_as = sifted_name if asks else str
        watermark = s3.write(uri, pin, folder, data, earlier.files if earlier else {}, kept_as, asks)
    elif uri.scheme == "gym":
        licence = gym.write(uri, data)
    else:
        licence = sample.write(uri, data)
    sifted: dict[str, Any] = {}
    if asks:
        sifted = sift(uri, data, folder / DATA, permission, cutoff)
        shutil.rmtree(data)
    rows = survey(uri, folder)
    if not rows:
        raise no_rows(uri, sifted.get("set_aside", {}))
    return {**_origin(uri, pin, licence), "rows": rows, "size": _size(folder), "watermark": watermark, **sifted}


def no_rows(uri: SourceUri, set_aside: Mapping[str, int]) -> BadInput:
    """The error that a source has nothing to train on."""
    aside = ", ".join(f"{rows} {reason}" for reason, rows in set_aside.items())
    return uri.bad(f"yields no rows{f' (set aside: {aside})' if aside else ''}", "Give a source with at least one row.")


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
    rows = survey(uri, folder)
    fields = {"rows": rows, "size": _size(folder), "rows_in": chain.rows_in, "set_aside": chain.set_aside}
    return {**_origin(uri, Pin(revision=chain.revision, requested=None), None), **fields, "watermark": chain.watermark}


def write_base(uri: SourceUri, pin: Pin, folder: Path) -> dict[str, Any]:
    """Write a base model's files into a base snapshot's folder; the fields of its manifest."""
    licence: str | None = None
    if uri.scheme in HUBS:
        licence = _download(uri, "model", pin, folder, folder, sifted=False)
    elif uri.scheme == "file":
        files.write_model(uri, pin, folder)
    else:
        licence = smollm2.write(uri, folder)
    _require_shards(uri, folder)
    return {**_origin(uri, pin, licence), "size": _size(folder)}


def _require_shards(uri: SourceUri, folder: Path) -> None:
    """Raises BadInput where the weights are in several files and one that their index names is not there."""
    for index in folder.glob("*.safetensors.index.json"):
        try:
            named = set(orjson.loads(index.read_bytes())["weight_map"].values())
        except (orjson.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            problem = f"has an index of its weights that cannot be read ({index.name})"
            raise uri.bad(problem, "Save the model again, or choose another repository.") from error
        if lacking := sorted(name for name in named if not (folder / str(name)).is_file()):
            problem = f"lacks {lacking[0]}, which its {index.name} names"
            raise uri.bad(problem, "Add what is missing, or choose another repository.")


def _resolve_hub(uri: SourceUri, what: What) -> Pin:
    # A commit is what it is: it can be looked up in the store with no hub in reach.
    if uri.revision and hub.COMMIT.fullmatch(uri.revision):
        return Pin(revision=uri.revision, requested=None)
    client = _client(uri, what)
    return Pin(revision=hub.with_retries(client, lambda: client.listing(uri.revision)).commit, requested=uri.revision)


def _download(uri: SourceUri, what: What, pin: Pin, folder: Path, target: Path, sifted: bool) -> str | None:
    client = _client(uri, what)
    listing = hub.with_retries(client, lambda: client.listing(pin.revision))
    if isinstance(client, ModelScope):
        listing = listing.model_copy(update={"card": client.card(listing, folder / hub.PARTIAL)})
    chosen = hub.choose_data(uri, listing) if what == "data" else hub.choose_model(uri, listing)
    hub.download(client, uri, pin.revision, chosen, folder, target, sum(f.size for f in chosen) if sifted else 0)
    return listing.licence


def _link(found: Mapping[str, Path], folder: Path, data: Path) -> None:
    """Take over an earlier snapshot's files: its data into `data`, what lies beside it into `folder`."""
    shutil.rmtree(data, ignore_errors=True)
    for name, path in found.items():
        within = Path(name)
        link(path, data / within.relative_to(DATA) if within.parts[0] == DATA else folder / name)


def _client(uri: SourceUri, what: What) -> HuggingFace | ModelScope:
    kind: Literal["dataset", "model"] = "dataset" if what == "data" else "model"
    return HuggingFace(uri, kind) if uri.scheme == "hf" else ModelScope(uri, kind)


def _origin(uri: SourceUri, pin: Pin, licence: str | None) -> dict[str, Any]:
    return {"uri": uri.text, "revision": pin.revision, "requested": pin.requested, "licence": licence}


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
