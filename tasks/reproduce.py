"""reproduce: make a version's mixture again from its pinned sources, its adapter too if asked, and say what differs.

Everything is made in a store of its own that is thrown away afterwards, so that nothing counts as reproduced because
it was still lying there. Two things may come from the store of the home, each file held to the sha256 in the record,
and the outcome says so: the base model, and a source that cannot be had as it was (its hub is out of reach, its commit
is gone, its files were changed, it is a stream).
"""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import BaseModel, ConfigDict

from tasks.conversations import Conversations
from tasks.errors import NightowlError
from tasks.fetch import adopt, fetch_again, fetch_base_again
from tasks.mix import mix
from tasks.mixture import TokenisedMixture
from tasks.recipe import Source
from tasks.registry import Record, code_version, libraries
from tasks.sources import BaseSnapshot, Snapshot, Unreachable
from tasks.store import Store, home
from tasks.train import adapter_inputs, train
from tasks.training import Adapter, is_whole
from tasks.validate import conversations_inputs, look

if TYPE_CHECKING:
    import torch

TOLERANCE = 0.05
"""Largest distance of retrained weights, relative to how far training moved them, that counts as the same where sums
are made in another order: on more than one thread, on a GPU, with other libraries."""


class Part(BaseModel):
    """One thing that was compared. `told`: what was found, in words."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    state: Literal["same", "differs", "not compared"]
    told: str


class Reproduction(BaseModel):
    """What came of it.

    `circumstances`: code, lock and libraries, which may differ without consequence; `outcome`: sources, gate, splits
    and adapter, which may not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    circumstances: tuple[Part, ...]
    outcome: tuple[Part, ...]

    @property
    def same(self) -> bool:
        """Whether everything that was to be reproduced was."""
        return all(part.state == "same" for part in self.outcome)


def reproduce(record: Record, store: Store, with_training: bool = False) -> Reproduction:
    """Make what the record describes again, and compare.

    `store`: the home's, for the files named above. Raises WorldFailed where a hub cannot be reached and the store
    does not have the files either, and what the stages raise for other reasons.
    """
    with tempfile.TemporaryDirectory(prefix="reproduce-", dir=home()) as folder:
        return _reproduce(record, store, Store(Path(folder)), with_training)


def _reproduce(record: Record, store: Store, fresh: Store, with_training: bool) -> Reproduction:
    circumstances = [*_code(record), *_libraries(record)]
    base, told = _base(record, store, fresh)
    outcome = [told]
    snapshots = {}
    for source in record.recipe.sources:
        snapshots[source.name], told = _source(source, record.snapshots[source.name], store, fresh)
        outcome.append(told)
    found = {name: snapshot for name, snapshot in snapshots.items() if snapshot is not None}
    if base is None or len(found) < len(snapshots):
        outcome += [_not_made(f"split {name}") for name in record.mixture.splits]
        return Reproduction(circumstances=tuple(circumstances), outcome=tuple(outcome))
    gated = []
    recorded = {entry.source: entry for entry in record.conversations}
    for source in record.recipe.sources:
        passed, _ = look(record.recipe, source, found[source.name], base, fresh, fresh.root / "pages")
        outcome.append(_gate(recorded[source.name], passed))
        gated.append(passed)
    try:
        mixture = mix(record.recipe, gated, fresh, fresh.root / "pages")
    except NightowlError as error:
        outcome += [_not_made(f"split {name}", str(error)) for name in record.mixture.splits]
        return Reproduction(circumstances=tuple(circumstances), outcome=tuple(outcome))
    outcome += [_split(name, record.mixture, mixture) for name in record.mixture.splits]
    if with_training:
        outcome.append(_adapter(record, mixture, base, store, fresh))
    return Reproduction(circumstances=tuple(circumstances), outcome=tuple(outcome))


def _code(record: Record) -> Iterator[Part]:
    """The code as a whole, and the parts of it that decide: they may be the same in two versions."""
    version, lock = code_version()
    yield _compared("code", record.code, version)
    yield _compared("lock", record.lock, lock)
    conversations, recipe = record.conversations[0], record.recipe
    source = next(entry for entry in recipe.sources if entry.name == conversations.source)
    snapshot = record.snapshots[source.name]
    now = {
        "code of the data gate": (
            conversations.inputs["code"],
            conversations_inputs(source, snapshot, recipe.base, record.base, recipe.quality)["code"],
        ),
        "code of training": (
            record.adapter.inputs.get("code"),
            adapter_inputs(recipe, record.mixture, record.base)["code"],
        ),
    }
    for name, (then, here) in now.items():
        yield _compared(name, str(then), str(here))


def _libraries(record: Record) -> Iterator[Part]:
    here = libraries()
    moved = {
        name: f"{record.libraries.get(name, 'absent')} then, {here.get(name, 'absent')} now"
        for name in sorted({*record.libraries, *here})
        if record.libraries.get(name) != here.get(name)
    }
    for name, told in moved.items():
        yield Part(name=f"library {name}", state="differs", told=told)
    if not moved:
        yield Part(name="libraries", state="same", told=f"all {len(here)} that are asked for")


def _base(record: Record, store: Store, fresh: Store) -> tuple[BaseSnapshot | None, Part]:
    """The base: large, and held to its digests wherever it comes from, so the store comes first."""
    name, recorded = "base", record.base
    if adopted := adopt(recorded, store, fresh):
        return adopted, Part(name=name, state="same", told=f"{_pinned(recorded)}, from the store, every sha256 as then")
    try:
        got = fetch_base_again(record.recipe.base, recorded, fresh)
    except Unreachable:
        raise
    except NightowlError as error:
        return None, Part(name=name, state="differs", told=str(error))
    return got, _files(name, recorded, got, "fetched again")


def _source(source: Source, recorded: Snapshot, store: Store, fresh: Store) -> tuple[Snapshot | None, Part]:
    """A source as it was, from where it was, and the store's copy of it where that fails."""
    name = f"source {source.name}"
    trouble: NightowlError | None = None
    part = None
    got = None
    try:
        got = fetch_again(source, recorded, fresh)
        part = _files(name, recorded, got, "fetched again")
        if part.state == "same":
            return got, part
    except NightowlError as error:
        trouble = error
    adopted = adopt(recorded, store, fresh)
    if part is not None:
        goes_on = "the rest is compared with the copy in the store" if adopted else "the rest is made of what is there"
        return adopted or got, part.model_copy(update={"told": f"{part.told}; {goes_on}"})
    assert trouble is not None
    if adopted is None:
        if isinstance(trouble, Unreachable):
            raise trouble
        return None, Part(name=name, state="differs", told=f"{trouble} The store has no whole copy of it either.")
    stays = isinstance(trouble, Unreachable) or recorded.inputs.get("stream") is not None
    told = f"{_pinned(recorded)}, from the store, every sha256 as then: {trouble}"
    return adopted, Part(name=name, state="same" if stays else "differs", told=told)


def _files(name: str, recorded: Snapshot | BaseSnapshot, got: Snapshot | BaseSnapshot, how: str) -> Part:
    then, now = recorded.files, got.files
    told = [f"{file} is gone" for file in sorted(then.keys() - now.keys())]
    told += [f"{file} is new" for file in sorted(now.keys() - then.keys())]
    told += [
        f"{file} has sha256 {now[file][:12]}, then {then[file][:12]}"
        for file in sorted(then.keys() & now.keys())
        if now[file] != then[file]
    ]
    if told:
        more = f" and {len(told) - 5} more" if len(told) > 5 else ""
        return Part(name=name, state="differs", told="; ".join(told[:5]) + more)
    return Part(name=name, state="same", told=f"{_pinned(recorded)}, {how}, {len(then)} files with the same sha256")


def _gate(recorded: Conversations, got: Conversations) -> Part:
    figures = ("rows_in", "rows_out", "set_aside", "tokens", "supervised_tokens", "changed")
    told = [
        f"{figure} {getattr(got, figure)}, then {getattr(recorded, figure)}"
        for figure in figures
        if getattr(got, figure) != getattr(recorded, figure)
    ]
    name = f"gate {recorded.source}"
    if told:
        return Part(name=name, state="differs", told="; ".join(told))
    return Part(name=name, state="same", told=f"{got.rows_out} of {got.rows_in} rows, {got.tokens} tokens")


def _split(name: str, recorded: TokenisedMixture, got: TokenisedMixture) -> Part:
    then, now, file = recorded.splits[name], got.splits[name], f"{name}.parquet"
    label = f"split {name}"
    if recorded.files[file] == got.files[file]:
        return Part(name=label, state="same", told=f"{now.rows} rows, {now.tokens} tokens, the same file byte for byte")
    if then.digest != now.digest:
        told = f"other rows or another order: {now.rows} rows, {now.tokens} tokens; then {then.rows} and {then.tokens}"
    else:
        told = f"the same rows in the same order, but other tokens or columns ({now.tokens} tokens, then {then.tokens})"
    return Part(name=label, state="differs", told=told)


def _adapter(record: Record, mixture: TokenisedMixture, base: BaseSnapshot, store: Store, fresh: Store) -> Part:
    recorded = record.adapter
    with _threads(recorded.environment):
        got = train(record.recipe, mixture, base, fresh)
    if _weights(got) == _weights(recorded):
        return Part(name="adapter", state="same", told="the same weights bit for bit")
    if store.find(Adapter, recorded.address) is None:
        told = f"other weights (loss {got.loss:.4f}, then {recorded.loss:.4f}); how far is not known: "
        return Part(name="adapter", state="differs", told=f"{told}the store does not have the recorded ones")
    then, now = store.folder(recorded) / "adapter", fresh.folder(got) / "adapter"
    far = distance(then, now, store.folder(base) if is_whole(then) else None)
    exact = recorded.environment.get("threads") == 1 and "gpu" not in recorded.environment
    allowed = 0.0 if exact else TOLERANCE
    told = f"{far:.2e} of what training moved them apart, at most {allowed:g} is allowed"
    told += f"; loss {got.loss:.4f}, then {recorded.loss:.4f}"
    return Part(name="adapter", state="same" if far <= allowed else "differs", told=told)


def _weights(adapter: Adapter) -> dict[str, str]:
    return {name: sha256 for name, sha256 in adapter.files.items() if name.endswith(".safetensors")}


def distance(one: Path, other: Path, base: Path | None = None) -> float:
    """How far the weights in two folders are apart, relative to how far the first's are from where they began.

    LoRA's begin with an update of nothing; a whole model's with those in the folder `base`. The norm of the difference
    of all matrices over the norm of what training did to the first's. Infinite where the two do not have the same
    matrices.
    """
    import torch
    from safetensors import safe_open

    def read(folder: Path) -> dict[str, Callable[[], torch.Tensor]]:
        opened = [safe_open(path, "pt") for path in sorted(folder.glob("*.safetensors"))]
        return {name: partial(file.get_tensor, name) for file in opened for name in file.keys()}  # noqa: SIM118

    a, b, begun = read(one), read(other), read(base) if base else {}
    apart = length = 0.0
    for name in {*a, *b}:
        if name not in a or name not in b or a[name]().shape != b[name]().shape:
            return math.inf
        first = a[name]().double()
        apart += float(torch.sum((first - b[name]().double()) ** 2))
        if name in begun or not base:
            length += float(torch.sum((first - begun[name]().double() if base else first) ** 2))
    return (apart / length) ** 0.5 if length else math.inf if apart else 0.0


@contextmanager
def _threads(environment: Mapping[str, object]) -> Iterator[None]:
    """As many threads as then: another number makes sums in another order."""
    before = os.environ.get("OMP_NUM_THREADS")
    if threads := environment.get("threads"):
        os.environ["OMP_NUM_THREADS"] = str(threads)
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = before


def _compared(name: str, then: str, now: str) -> Part:
    if then == now:
        return Part(name=name, state="same", told=now)
    return Part(name=name, state="differs", told=f"{then} then, {now} now")


def _not_made(name: str, why: str = "what it is made of could not be had") -> Part:
    return Part(name=name, state="not compared", told=why)


def _pinned(snapshot: Snapshot | BaseSnapshot) -> str:
    return f"{snapshot.uri} at {snapshot.revision[:12]}"
