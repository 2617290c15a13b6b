"""prune: remove what no kept version needs, from the registry and from the store. Says first, does when told to.

Kept in the registry: every version that is or ever was champion, that has an alias or a copy in another model, the
newest ones (`registry.keep_versions`) and all younger than `registry.keep_days`; other tools' versions are left alone.
Kept in the store: whatever those versions, and those of all other recipes and of other registries on this store, were
made of, followed from manifest to manifest, and whatever was made or used within that time. So a running night loses
nothing: each output it takes from the store is marked as used when it is found.
"""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout
from pydantic import BaseModel, ConfigDict

from tasks import registry
from tasks.recipe import Recipe
from tasks.store import MANIFEST, Store, home

_ADDRESS = re.compile(rb"[0-9a-f]{64}")
_DAY = 86_400.0  # seconds
_SCRATCH = ("register-*", "reproduce-*")  # folders in the home that a killed process leaves


class Removal(BaseModel):
    """One thing to remove. `size`: bytes; a version's are in MLflow's artifact store and not counted."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str
    name: str
    size: int = 0


class Pruning(BaseModel):
    """What goes (or went), and how much of the store stays. `size`: bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    removals: tuple[Removal, ...]
    kept_versions: int
    kept_outputs: int

    @property
    def size(self) -> int:
        """Bytes of everything that goes."""
        return sum(removal.size for removal in self.removals)


def prune(recipe: Recipe, store: Store, for_real: bool = False) -> Pruning:
    """What the recipe's policy removes; removed only `for_real`.

    A store elsewhere (`NIGHTOWL_STORE` as a URL) is left alone: only the copies here are removed. Raises WorldFailed
    when MLflow does not answer: without it nothing is known about what is needed, and nothing is removed.
    """
    policy = recipe.registry
    before = now() - policy.keep_days * _DAY
    kept, dropped = registry.sort_out_versions(recipe, policy.keep_versions, before)
    if for_real:
        # One that became champion meanwhile stays, and so does all that it needs: that is looked up afterwards.
        dropped = [version for version in dropped if registry.remove(version)]
    removals = [Removal(what="version", name=f"{version.model} {version.version}") for version in dropped]
    unregistered = registry.unregistered(before)
    removals += [Removal(what="unregistered", name=f"{logged.name} {logged.model_id}") for logged in unregistered]
    gone = {(version.model, version.version) for version in dropped}
    roots = registry.roots(leaving_out=gone) | _held_elsewhere(store)
    manifests = {path.parent.name: path for path in store.root.glob(f"*/*/{MANIFEST}") if path.parts[-3] != "work"}
    needed = _reachable([*roots, *_pointed_at(store), *_used_since(manifests, before)], manifests)
    needed = _reachable([*needed, *_about(needed, manifests)], manifests)
    unneeded = [path.parent for address, path in sorted(manifests.items()) if address not in needed]
    removals += [Removal(what=f.parent.name, name=f.name, size=_size(f)) for f in unneeded]
    leftovers = list(_leftovers(store, before))
    removals += [Removal(what="unfinished", name=f.name, size=_size(f)) for f in leftovers]
    if for_real:
        for version in dropped:
            pin = store.pins().get(f"{registry.registry_id()}-{version.model}-{version.version}")
            if pin:
                pin[0].unlink(missing_ok=True)
        for logged in unregistered:
            registry.remove_unregistered(logged.model_id)
        for folder in unneeded:
            _remove_output(folder, store, before)
        for folder in leftovers:
            _remove_leftover(folder)
    return Pruning(removals=tuple(removals), kept_versions=len(kept), kept_outputs=len(needed & manifests.keys()))


def now() -> float:
    """Seconds since 1970."""
    return time.time()


def _reachable(roots: Iterable[str], manifests: dict[str, Path]) -> set[str]:
    """The addresses that these lead to: whatever in a manifest looks like the address of an output is one."""
    seen: set[str] = set()
    to_do = [root for root in roots if root in manifests]
    while to_do:
        address = to_do.pop()
        if address in seen:
            continue
        seen.add(address)
        with suppress(FileNotFoundError):
            found = {text.decode() for text in _ADDRESS.findall(manifests[address].read_bytes())}
            to_do += [name for name in found if name in manifests and name not in seen]
    return seen


def _held_elsewhere(store: Store) -> set[str]:
    """What versions in other registries hold, as noted when they were registered: MLflow here knows none of them."""
    own = f"{registry.registry_id()}-"
    return {address for name, (_, held) in store.pins().items() if not name.startswith(own) for address in held}


def _about(needed: set[str], manifests: dict[str, Path]) -> Iterator[str]:
    """Scores, verdicts and reports of adapters that stay."""
    adapters = {address for address in needed if manifests[address].parts[-3] == "adapter"}
    for address, path in manifests.items():
        if path.parts[-3] in ("scores", "verdict", "report"):
            with suppress(FileNotFoundError):
                if any(text.decode() in adapters for text in _ADDRESS.findall(path.read_bytes())):
                    yield address


def _pointed_at(store: Store) -> Iterator[str]:
    """The newest output of each line: the next night goes on from it."""
    for path in (store.root / "latest").glob("*"):
        if not path.name.startswith("."):
            yield path.read_text(encoding="utf-8")


def _used_since(manifests: dict[str, Path], moment: float) -> Iterator[str]:
    for address, path in manifests.items():
        with suppress(FileNotFoundError):
            if path.stat().st_mtime >= moment:
                yield address


def _leftovers(store: Store, before: float) -> Iterator[Path]:
    """Folders that a killed process left: scratch, and outputs that nobody went on with."""
    for place in (*(p for pattern in _SCRATCH for p in home().glob(pattern)), *(store.root / "work").glob("*")):
        with suppress(FileNotFoundError):
            if place.is_dir() and max(p.stat().st_mtime for p in (place, *place.rglob("*"))) < before:
                yield place


def _remove_output(folder: Path, store: Store, before: float) -> None:
    """Out of sight first, so that nobody finds half of it; back again if somebody used it at that very moment."""
    trash = store.root / "work" / f"pruned-{folder.name}"
    trash.parent.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):
        if (folder / MANIFEST).stat().st_mtime >= before:
            return
        folder.replace(trash)
        if (trash / MANIFEST).stat().st_mtime >= before:
            trash.replace(folder)
            return
        shutil.rmtree(trash)
    if folder.parent.name == "mixture":
        (home() / "index" / "rows" / f"{folder.name}.npy").unlink(missing_ok=True)


def _remove_leftover(folder: Path) -> None:
    with suppress(Timeout), FileLock(f"{folder}.lock", timeout=0):
        shutil.rmtree(folder, ignore_errors=True)
    Path(f"{folder}.lock").unlink(missing_ok=True)


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):
            total += path.stat().st_size if path.is_file() else 0
    return total
