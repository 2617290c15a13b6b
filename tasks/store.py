"""Where artefacts live, and how they become visible.

An output's address is the digest of its inputs: the digests of what it is made from, the part
of the recipe it depends on and the code that makes it. The same inputs give the same address,
so a step whose output exists is not run again. An output is built in a work folder, its files
are hashed, the manifest is written last and the folder is renamed into place: what has no
manifest does not exist, and a killed process leaves nothing that could be mistaken for a result.

`NIGHTOWL_HOME` (default `.nightowl/`) holds everything of the embedded default. `NIGHTOWL_STORE`
may name another place for the artefacts, an fsspec URL (`s3://bucket/prefix`) included: then
the local store is a cache in front of it.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Self, TypeVar

from filelock import FileLock
from pydantic import BaseModel, ConfigDict, model_validator

from tasks.errors import BadInput, WorldFailed

MANIFEST = "manifest.json"
_CODE_ROOT = Path(__file__).resolve().parent.parent


def home() -> Path:
    """The folder of the embedded default, made if absent.

    Raises BadInput when it cannot be made or written to.
    """
    path = Path(os.environ.get("NIGHTOWL_HOME", ".nightowl")).expanduser().absolute()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise BadInput(
            "NIGHTOWL_HOME",
            str(path),
            f"cannot be written to ({error.strerror or error})",
            "Set NIGHTOWL_HOME to a folder on a disk with free space that you may write to.",
        ) from error
    return path


def digest(value: object) -> str:
    """sha256 (hex, 64 characters) of the canonical JSON of a value (keys sorted, no spaces)."""
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode()).hexdigest()


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{type(value).__name__} has no canonical JSON form")


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@cache
def code_digest(*parts: str, libraries: tuple[str, ...] = ()) -> str:
    """sha256 of the source that makes an output, and the versions of the libraries it leans on.

    `parts` are files or folders relative to the repository root, such as `tasks/mix.py` or
    `tasks/mixture`. Any changed byte counts: redoing a step once too often after an upgrade is
    cheaper than trusting an output that today's code would not make.
    """
    files = []
    for part in parts:
        path = _CODE_ROOT / part
        files += sorted(p for p in path.rglob("*") if p.suffix in {".py", ".jinja"}) if path.is_dir() else [path]
    return digest(
        {
            "source": {str(f.relative_to(_CODE_ROOT)): file_digest(f) for f in files},
            "libraries": {name: metadata.version(name) for name in libraries},
        }
    )


class Manifest(BaseModel):
    """What a step leaves behind beside its files; small, frozen, and passed between steps.

    `address`: digest of the inputs, 64 hex characters. `files`: sha256 by name relative to the
    output's folder. `made_at`: UTC, ISO 8601.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    kind: ClassVar[str]

    address: str
    inputs: dict[str, Any]
    files: dict[str, str]
    made_at: str

    @property
    def short(self) -> str:
        """The first twelve characters of the address, for people."""
        return self.address[:12]


M = TypeVar("M", bound=Manifest)


class RowManifest(Manifest):
    """A manifest of a step that takes rows in; it does not exist unless they add up.

    `set_aside` counts each row once, under the first reason that applied to it.
    """

    rows_in: int
    rows_out: int
    set_aside: dict[str, int]

    @model_validator(mode="after")
    def _conserves_rows(self) -> Self:
        if self.rows_in != self.rows_out + sum(self.set_aside.values()):
            raise ValueError(
                f"{self.kind}: {self.rows_in} rows went in, but {self.rows_out} came out and "
                f"{sum(self.set_aside.values())} were set aside ({self.set_aside})"
            )
        return self


class Store:
    """The content-addressed store.

    `root` is the local folder; `remote` an fsspec URL that every finished output is copied to
    and looked up in, or None.
    """

    def __init__(self, root: Path, remote: str | None = None) -> None:
        self.root = root
        self.remote = remote.rstrip("/") if remote else None

    @classmethod
    def open(cls) -> Store:
        """The store that the environment names."""
        place = os.environ.get("NIGHTOWL_STORE", "")
        if "://" in place:
            return cls(home() / "store", remote=place)
        return cls(Path(place).expanduser().absolute() if place else home() / "store")

    @staticmethod
    def address(kind: type[Manifest], inputs: Mapping[str, Any]) -> str:
        """The address that `make` gives the output of these inputs."""
        return digest({"kind": kind.kind, **inputs})

    def folder(self, manifest: Manifest) -> Path:
        """Where an output's files are; fetched from the remote store when they are only there."""
        path = self._path(type(manifest), manifest.address)
        if not (path / MANIFEST).exists():
            self.find(type(manifest), manifest.address)
        return path

    def work(self, kind: type[Manifest], address: str) -> Path:
        """Where an output is being built, before it exists."""
        return self.root / "work" / f"{kind.kind}-{address}"

    def find(self, kind: type[M], address: str) -> M | None:
        """The output at an address, or None where there is none (yet)."""
        path = self._path(kind, address)
        if not (path / MANIFEST).exists() and not self._fetch(kind, address):
            return None
        with suppress(OSError):  # a store that may only be read
            os.utime(path / MANIFEST)  # when it was last used, for `nightowl prune`
        try:
            return kind.model_validate_json((path / MANIFEST).read_bytes())
        except FileNotFoundError:
            return None  # pruned at this very moment: it is made again

    def all(self, kind: type[M]) -> list[M]:
        """Every output of a kind in the local store, oldest first."""
        found = []
        for path in (self.root / kind.kind).glob(f"*/{MANIFEST}"):
            with suppress(FileNotFoundError):  # pruned at this very moment
                found.append(kind.model_validate_json(path.read_bytes()))
        return sorted(found, key=lambda m: m.made_at)

    def latest(self, kind: type[M], line: str) -> M | None:
        """The newest output of a line, which is a digest of what its outputs have in common; None where none is."""
        try:
            address = (self.root / "latest" / f"{kind.kind}-{line}").read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        return self.find(kind, address)

    def set_latest(self, line: str, manifest: Manifest) -> None:
        """Make an output the newest of a line."""
        (self.root / "latest").mkdir(exist_ok=True)
        write_whole(self.root / "latest" / f"{manifest.kind}-{line}", manifest.address)

    def pin(self, registry: str, version: str, addresses: Iterable[str]) -> None:
        """Note what a version in a registry holds on to, for a prune that knows of another registry only."""
        (self.root / "pins").mkdir(parents=True, exist_ok=True)
        write_whole(self.root / "pins" / f"{registry}-{version}", "\n".join(addresses))

    def pins(self) -> dict[str, tuple[Path, list[str]]]:
        """Every such note, by registry and version: its file, and the addresses in it."""
        notes = [path for path in (self.root / "pins").glob("*") if not path.name.startswith(".")]
        return {path.name: (path, path.read_text(encoding="utf-8").split()) for path in notes}

    def make(
        self,
        kind: type[M],
        inputs: Mapping[str, Any],
        build: Callable[[Path], Mapping[str, Any]],
        *,
        resumable: bool = False,
    ) -> tuple[M, bool]:
        """The output of these inputs, built unless it exists; and whether it was built now.

        `build` gets an empty folder on the store's disk, writes its files there and returns the
        manifest's own fields. With `resumable`, it gets what an earlier, killed attempt left.
        Of two processes that want the same output, the second waits for the first.

        Raises WorldFailed when the disk is full or cannot be written.
        """
        address = self.address(kind, inputs)
        if found := self.find(kind, address):
            return found, False
        work = self.work(kind, address)
        try:
            work.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(str(work) + ".lock"):
                if found := self.find(kind, address):
                    return found, False
                if not resumable:
                    shutil.rmtree(work, ignore_errors=True)
                work.mkdir(exist_ok=True)
                fields = build(work)
                manifest = self._finish(kind, address, inputs, fields, work)
        except OSError as error:
            raise WorldFailed(
                str(self.root),
                f"writing {kind.kind} failed ({error.strerror or error})",
                "Free disk space there, or set NIGHTOWL_STORE to another disk; what is finished is kept.",
            ) from error
        self._push(kind, address)
        return manifest, True

    def withdraw(self, manifest: Manifest, damaged: Iterable[str]) -> None:
        """Take back an output of which files are damaged; they are removed, the others wait for a resumable `make`."""
        path = self._path(type(manifest), manifest.address)
        work = self.work(type(manifest), manifest.address)
        work.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(str(work) + ".lock"):
            if not (path / MANIFEST).exists():
                return
            shutil.rmtree(work, ignore_errors=True)
            path.replace(work)
            for name in [*damaged, MANIFEST]:
                (work / name).unlink(missing_ok=True)

    def _finish(
        self, kind: type[M], address: str, inputs: Mapping[str, Any], fields: Mapping[str, Any], work: Path
    ) -> M:
        files = {
            str(path.relative_to(work)): file_digest(path)
            for path in sorted(work.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        manifest = kind(
            address=address,
            # The round trip through JSON makes the manifest equal to what a later night reads back.
            inputs=json.loads(json.dumps(dict(inputs), default=_plain)),
            files=files,
            made_at=datetime.now(UTC).isoformat(timespec="seconds"),
            **fields,
        )
        write_whole(work / MANIFEST, manifest.model_dump_json(indent=2))
        target = self._path(kind, address)
        target.parent.mkdir(parents=True, exist_ok=True)
        work.replace(target)
        return manifest

    def _path(self, kind: type[Manifest], address: str) -> Path:
        return self.root / kind.kind / address

    def _push(self, kind: type[Manifest], address: str) -> None:
        if self.remote is None:
            return
        import fsspec

        local = self._path(kind, address)
        filesystem, prefix = fsspec.url_to_fs(f"{self.remote}/{kind.kind}/{address}")
        names = sorted(str(p.relative_to(local)) for p in local.rglob("*") if p.is_file() and p.name != MANIFEST)
        for name in [*names, MANIFEST]:
            filesystem.makedirs(f"{prefix}/{name}".rpartition("/")[0], exist_ok=True)
            filesystem.put_file(str(local / name), f"{prefix}/{name}")

    def _fetch(self, kind: type[Manifest], address: str) -> bool:
        if self.remote is None:
            return False
        import fsspec

        filesystem, prefix = fsspec.url_to_fs(f"{self.remote}/{kind.kind}/{address}")
        if not filesystem.exists(f"{prefix}/{MANIFEST}"):
            return False
        target = self._path(kind, address)
        target.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{address[:12]}-", dir=target.parent))
        try:
            manifest = kind.model_validate_json(filesystem.cat_file(f"{prefix}/{MANIFEST}"))
            for name, expected in manifest.files.items():
                (work / name).parent.mkdir(parents=True, exist_ok=True)
                filesystem.get_file(f"{prefix}/{name}", str(work / name))
                if file_digest(work / name) != expected:
                    raise WorldFailed(
                        f"{self.remote}/{kind.kind}/{address}/{name}",
                        "its sha256 is not the one in its manifest",
                        "Remove that folder from the remote store; the night makes it again.",
                    )
            write_whole(work / MANIFEST, manifest.model_dump_json(indent=2))
            if not (target / MANIFEST).exists():
                work.replace(target)
            return True
        finally:
            shutil.rmtree(work, ignore_errors=True)


def write_whole(path: Path, text: str) -> None:
    """Write a small file so that a reader sees all of it or none of it, even across a crash."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with open(temporary, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def link(source: Path, target: Path) -> None:
    """Make `target` the same file as `source`, without a copy where the disk can do that; its folder is made."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        # Another disk, or one that knows no links.
        temporary = target.with_name(f".{target.name}")
        shutil.copyfile(source, temporary)
        temporary.replace(target)
