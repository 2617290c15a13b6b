"""The record of a version: everything it was made of, in full, in one file that travels with the registered model."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from tasks.conversations import Conversations
from tasks.errors import BadInput
from tasks.mixture import TokenisedMixture
from tasks.recipe import Recipe
from tasks.registry.lineage import Snapshots, code_version, source_names
from tasks.registry.schema import Version
from tasks.registry.tracking import download
from tasks.sources import BaseSnapshot, Snapshot
from tasks.training import Adapter

RECORD = "record.json"


class Record(BaseModel):
    """What a version was made of. `snapshots`: by the source's name; `libraries`: versions by package.

    Texts of rows are left out: of what the data gate found, the counts are here and not the examples.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    recipe: Recipe
    base: BaseSnapshot
    snapshots: dict[str, Snapshot]
    conversations: tuple[Conversations, ...]
    mixture: TokenisedMixture
    adapter: Adapter
    code: str
    lock: str
    libraries: dict[str, str]


def make_record(
    recipe: Recipe,
    base: BaseSnapshot,
    snapshots: Snapshots,
    conversations: Sequence[Conversations],
    mixture: TokenisedMixture,
    adapter: Adapter,
) -> Record:
    """The record of an adapter made here and now."""
    code, lock = code_version()
    return Record(
        recipe=recipe,
        base=base,
        snapshots=source_names(snapshots, conversations),
        conversations=tuple(_without_texts(entry) for entry in conversations),
        mixture=mixture,
        adapter=adapter,
        code=code,
        lock=lock,
        libraries=libraries(),
    )


def read_record(version: Version) -> Record:
    """The record of a registered version.

    Raises BadInput for a version without one, or with one that this code cannot read; WorldFailed when MLflow does
    not answer.
    """
    with tempfile.TemporaryDirectory(prefix="nightowl-") as folder:
        path = download(f"{version.uri}/{RECORD}", Path(folder))
        if path is None:
            problem = f"of {version.model} has no {RECORD}"
            raise BadInput("VERSION", version.version, problem, "Choose a later version.")
        text = path.read_bytes()
    try:
        return Record.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise BadInput(
            f"{RECORD} of {version.model} version {version.version}",
            place,
            f"is not what this code reads ({first['msg']})",
            "Check out the code that wrote it: `nightowl candidates` and MLflow's tag nightowl.code name it.",
        ) from error


def libraries() -> dict[str, str]:
    """Versions of the packages that Nightowl asks for, as installed here."""
    found = {}
    for entry in metadata.requires("nightowl") or ():
        name, _, condition = entry.partition(";")
        if "extra" not in condition:
            package = re.split(r"[^\w.-]", name, maxsplit=1)[0]
            with suppress(metadata.PackageNotFoundError):
                found[package] = metadata.version(package)
    return dict(sorted(found.items()))


def _without_texts(entry: Conversations) -> Conversations:
    findings = tuple(finding.model_copy(update={"example": None}) for finding in entry.findings)
    return entry.model_copy(update={"findings": findings})
