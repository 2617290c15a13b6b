"""Files of a source, without the rows that may not be used.

Files have no server that could be asked for some of their rows. Where the recipe asks for consent or for an age,
what was fetched is read once and only what may be used is written into the snapshot, as JSON lines; the files
themselves are not kept.
"""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

from tasks.sources.permission import Permission
from tasks.sources.rows import pieces
from tasks.sources.uri import SourceUri

RAW = "raw"
_LINES = ".jsonl"
CODE = tuple(f"tasks/sources/{part}.py" for part in ("sift", "permission", "rows", "records", "pieces"))


def sifted_name(name: str) -> str:
    """The name of a data file's rows that may be used; that of such a file is itself."""
    return name if name.endswith(_LINES) else name + _LINES


def sift(uri: SourceUri, raw: Path, data: Path, permission: Permission, cutoff: int | None) -> dict[str, Any]:
    """Write the rows of the files below `raw` that may be used to files of the same names below `data`.

    `cutoff`: the time in microseconds since 1970 before which a row is too old. Returns the manifest's fields:
    `rows_in`, `set_aside` by reason and `oldest`, the least time of the rows written. Raises BadInput for a file
    that cannot be read, and for a column that the recipe asks for and no row has.
    """
    shutil.rmtree(data, ignore_errors=True)
    rows_in = 0
    set_aside = Counter[str]()
    columns: dict[str, None] = {}
    oldest: int | None = None
    for path, parts in pieces(uri, raw):
        target = data / sifted_name(str(path.relative_to(raw)))
        if target.exists():
            problem = f"has two files whose rows would be kept in {sifted_name(path.name)}"
            raise uri.bad(problem, "Rename one of them.")
        target.parent.mkdir(parents=True, exist_ok=True)
        with open(target, "xb") as file:
            for piece in parts:
                places = []
                for place, record in enumerate(piece.records()):
                    columns.update(dict.fromkeys(record))
                    if reason := permission.reason(record, cutoff):
                        set_aside[reason] += 1
                        continue
                    places.append(place)
                    if (when := permission.when(record)) is not None:
                        oldest = when if oldest is None else min(oldest, when)
                rows_in += len(piece)
                file.writelines(text + b"\n" for text in piece.texts(places))
    if rows_in:
        permission.require(columns, uri)
    return {"rows_in": rows_in, "set_aside": dict(set_aside), "oldest": oldest}
