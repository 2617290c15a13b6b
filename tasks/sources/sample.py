"""`sample://`: the data sets and the base model that a night can be tried with, with nothing to download.

`sample://tools` and `sample://chat` are generated, `sample://smollm2-135m-instruct` is in an installed
package. The digest of the code and the parameters that make a data set stands for its commit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tasks.sources import sample_chat, sample_tools
from tasks.sources.files import write_json_lines
from tasks.sources.pin import Pin
from tasks.sources.planted import Row, Spoil, plant
from tasks.sources.uri import SourceUri, nearest
from tasks.store import code_digest, digest

_DATA_SETS: dict[str, tuple[Callable[[int], Iterator[Row]], Mapping[str, Spoil]]] = {
    "tools": (sample_tools.conversations, sample_tools.WAYS),
    "chat": (sample_chat.conversations, sample_chat.WAYS),
}
# So many draws without a new prompt say that there are hardly any left.
_REPEATED = 2000
_CODE = ("sample.py", "sample_tools.py", "sample_chat.py", "planted.py")


def resolve(uri: SourceUri) -> Pin:
    """Raises BadInput for an unknown name or a parameter out of bounds."""
    if uri.path not in _DATA_SETS:
        known = ", ".join(f"sample://{name}" for name in _DATA_SETS)
        raise uri.bad("is no sample data set", f"{nearest(uri.path, _DATA_SETS)}Known: {known}.")
    code = code_digest(*(f"tasks/sources/{name}" for name in _CODE))
    return Pin(revision=digest({"name": uri.path, **_settings(uri), "code": code}), requested=None)


def write(uri: SourceUri, data: Path) -> str:
    """Generate the data set into a folder; the licence of what was generated.

    Raises BadInput when so many distinct prompts cannot be made.
    """
    conversations, ways = _DATA_SETS[uri.path]
    settings = _settings(uri)
    rows = _distinct(uri, conversations(int(settings["seed"])), int(settings["size"]))
    write_json_lines(data / f"{uri.path}.jsonl", plant(rows, settings["planted"], ways))
    return "Apache-2.0"


def _settings(uri: SourceUri) -> dict[str, float]:
    return {
        "size": uri.whole("size", 500, least=1, most=1_000_000),
        "seed": uri.whole("seed", 0, most=2**31),
        "planted": uri.fraction("planted", 0.02, most=0.5),
    }


def _distinct(uri: SourceUri, conversations: Iterator[Row], size: int) -> list[Row]:
    rows: dict[str, Row] = {}
    repeated = 0
    for row in conversations:
        known = len(rows)
        rows.setdefault(row["messages"][0]["content"], row)
        if len(rows) == size:
            return list(rows.values())
        repeated = 0 if len(rows) > known else repeated + 1
        if repeated == _REPEATED:
            break
    raise uri.bad(
        f"asks for {size} conversations, and only about {len(rows)} distinct ones can be generated", "Lower size=."
    )
