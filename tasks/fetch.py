"""Fetch: pin each source by commit or digest and keep its files in the store.

What a source points at is asked first and is cheap; the files are fetched only when the store does not
hold them at that commit, so a source that did not move costs next to nothing.
"""

from __future__ import annotations

from functools import partial

from tasks.recipe import Base, Source
from tasks.sources import BaseSnapshot, Snapshot, parse_uri, resolve, write_base, write_data
from tasks.store import Store, code_digest


def fetch(source: Source, store: Store) -> Snapshot:
    """The source's snapshot at what it points at now.

    Raises BadInput where the source cannot be used as given, WorldFailed where a hub or the disk fails.
    """
    uri = parse_uri(source.uri, field=f"sources.{source.name}.uri")
    pin = resolve(uri)
    inputs = {"uri": uri.text, "revision": pin.revision, "layout": code_digest("tasks/sources/columns.py")}
    return store.make(Snapshot, inputs, partial(write_data, uri, pin))[0]


def fetch_base(base: Base, store: Store) -> BaseSnapshot:
    """The base model's snapshot at what it points at now; raises as `fetch` does."""
    uri = parse_uri(base.uri, field="base.uri")
    pin = resolve(uri, "model")
    inputs = {"uri": uri.text, "revision": pin.revision}
    if uri.scheme == "sample":
        inputs["code"] = code_digest("tasks/sources/smollm2.py", libraries=("transformers",))
    return store.make(BaseSnapshot, inputs, partial(write_base, uri, pin))[0]
