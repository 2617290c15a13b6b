"""Doctor: is this machine fit for a night, and is the home in order?

Each check answers ok, warning or error with one sentence that says what to do. Nothing is changed.
"""

from __future__ import annotations

import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict

from tasks.errors import BadInput, WorldFailed
from tasks.store import MANIFEST, home

GIB = 2**30
MIN_FREE_DISK = 2 * GIB
"""Bytes: a converted base, checkpoints and an adapter of the smallest recipe, with room to spare."""
MIN_FREE_MEMORY = GIB
"""Bytes: the data path alone; what training needs is estimated from the base once that is known."""

IDLE = 30 * 86_400
"""Seconds since a night last used an output, from which it counts as idle."""

LIBRARIES = ("prefect", "mlflow", "unsloth", "torch", "transformers", "evalscope", "great-expectations", "polars")


class Check(BaseModel):
    """One thing looked at."""

    model_config = ConfigDict(frozen=True)

    name: str
    state: Literal["ok", "warning", "error"]
    detail: str


def preflight() -> None:
    """Refuse to start a night that this machine's disk or memory could not carry to its first stage.

    Raises BadInput for an unwritable home, WorldFailed for too little disk or memory.
    """
    folder = home()
    free = shutil.disk_usage(folder).free
    if free < MIN_FREE_DISK:
        raise WorldFailed(
            str(folder),
            f"{free / GIB:.1f} GiB of disk are free, a night needs {MIN_FREE_DISK / GIB:.0f} GiB",
            "Free some, or set NIGHTOWL_HOME to a folder on another disk.",
        )
    memory = free_memory()
    if memory < MIN_FREE_MEMORY:
        raise WorldFailed(
            "memory",
            f"{memory / GIB:.1f} GiB are free, a night needs {MIN_FREE_MEMORY / GIB:.0f} GiB before training",
            "End other programs or raise this process's memory limit.",
        )


def free_memory() -> int:
    """Bytes this process may still take: the machine's, the container's or the process's limit, the least of them."""
    import psutil

    limits = [psutil.virtual_memory().available]
    group = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):  # no control group, or one without a limit
        limits.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    if sys.platform != "win32":
        import resource

        soft, _ = resource.getrlimit(resource.RLIMIT_AS)
        if soft != resource.RLIM_INFINITY:
            limits.append(soft - psutil.Process().memory_info().vms)
    return max(0, min(limits))


def examine() -> list[Check]:
    """Look at Python, libraries, home, disk, memory, GPU, the store and the registry."""
    return list(_checks())


def _checks() -> Iterator[Check]:
    fits = (3, 11) <= sys.version_info[:2] <= (3, 13)
    yield Check(
        name="python", state="ok" if fits else "error", detail=f"{sys.version.split()[0]} (3.11 to 3.13 are supported)"
    )
    for name in LIBRARIES:
        try:
            yield Check(name=name, state="ok", detail=metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name=name, state="error", detail="is not installed; run `make setup`")
    try:
        preflight()
        folder = home()
        disk, memory = shutil.disk_usage(folder).free / GIB, free_memory() / GIB
        yield Check(
            name="home", state="ok", detail=f"{folder}: {disk:.0f} GiB of disk and {memory:.0f} GiB of memory are free"
        )
    except (BadInput, WorldFailed) as error:
        yield Check(name="home", state="error", detail=str(error))
        return
    yield _gpu()
    yield from _store(folder / "store")
    yield from _registry(folder / "mlflow")


def _gpu() -> Check:
    import torch

    if not torch.cuda.is_available():
        return Check(name="gpu", state="ok", detail="none; small models train on the CPU, larger recipes need one")
    properties = torch.cuda.get_device_properties(0)
    return Check(name="gpu", state="ok", detail=f"{properties.name}, {properties.total_memory / GIB:.0f} GiB")


def _store(root: Path) -> Iterator[Check]:
    kinds = sorted(path for path in root.glob("*") if path.is_dir() and path.name not in ("work", "latest", "pins"))
    sizes = {path.name: (len(list(path.iterdir())), _size(path)) for path in kinds}
    described = ", ".join(f"{name} {count} ({size / 1e6:.0f} MB)" for name, (count, size) in sizes.items())
    yield Check(name="store", state="ok", detail=described or "empty")
    idle = [path.parent for path in root.glob(f"*/*/{MANIFEST}") if time.time() - path.stat().st_mtime > IDLE]
    if idle:
        size = sum(map(_size, idle)) / 1e6
        told = f"{len(idle)} outputs ({size:.0f} MB) were not used for {IDLE // 86_400} days"
        yield Check(name="idle", state="ok", detail=f"{told}; `nightowl prune` says which nobody needs")
    orphans = [path for name in ("register-*", "reproduce-*") for path in root.parent.glob(name)]
    if orphans:
        size = sum(map(_size, orphans)) / 1e6
        told = f"{len(orphans)} folders ({size:.0f} MB) of commands that run or were killed"
        yield Check(name="orphans", state="warning", detail=f"{told}; `nightowl prune` removes old ones")
    left = [path for path in (root / "work").glob("*") if path.is_dir()]
    if left:
        size = sum(map(_size, left)) / 1e6
        yield Check(
            name="unfinished",
            state="warning",
            detail=f"{len(left)} outputs ({size:.0f} MB) are being made or were interrupted; the next night goes on",
        )


def _registry(embedded: Path) -> Iterator[Check]:
    """Sizes and orphans of the registry; on a server MLflow does not tell how large artifacts are."""
    if not os.environ.get("MLFLOW_TRACKING_URI") and not (embedded / "mlflow.db").exists():
        yield Check(name="registry", state="ok", detail="empty")
        return
    from tasks import registry

    try:
        held = registry.holdings()
        lost = registry.unregistered(time.time())
    except WorldFailed as error:
        yield Check(name="registry", state="error", detail=str(error))
        return
    told = ", ".join(
        f"{name} {count} versions (champion: {champion or 'none'})" for name, (count, champion) in held.items()
    )
    size = f"; {_size(embedded) / 1e6:.0f} MB" if not os.environ.get("MLFLOW_TRACKING_URI") else ""
    yield Check(name="registry", state="ok", detail=f"{registry.tracking_uri()}: {told or 'no models'}{size}")
    if lost:
        told = f"{len(lost)} adapters were logged and are no version, {lost[-1].model_id} the last"
        yield Check(name="unregistered", state="warning", detail=f"{told}; `nightowl prune` removes old ones")


def _size(folder: Path) -> int:
    """Bytes of a folder; a file that goes away meanwhile counts as nothing."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() and not path.is_symlink() else 0
        except FileNotFoundError:
            continue
    return total
