"""What both hubs have in common: a listing at a commit, the choice of files, and a download that holds.

A hub's own client asks and transfers; here is what it leaves open. A download goes on where a killed
one stopped, needs its space before it starts, is checked against the listing's digests when it ends,
and is tried again where that can help, after the wait that the hub asks for or a growing one.
"""

from __future__ import annotations

import hashlib
import logging
import random
import re
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from tasks.errors import NightowlError, WorldFailed
from tasks.sources.files import TEMPLATES, require_space
from tasks.sources.pin import BrokenOff, Listing, RemoteFile
from tasks.sources.records import form, is_data_file
from tasks.sources.uri import SourceUri

log = logging.getLogger(__name__)
T = TypeVar("T")

COMMIT = re.compile(r"[0-9a-f]{40}")
ATTEMPTS = 5
FIRST_WAIT = 1.0  # seconds; doubled at each attempt, times a random factor from 0.5 to 1
LONGEST_WAIT = 120.0  # a hub that asks for more is not waited for
_TRANSFERS = 4
PARTIAL = "partial"


class Server(Protocol):
    """Whoever knows what the exceptions of a client mean."""

    def explain(self, error: Exception) -> Trouble | None:
        """What an exception of the client means; None where it is not the server's doing."""


class Hub(Server, Protocol):
    """A hub's client, as far as this program needs it. Both methods raise what `explain` understands."""

    def listing(self, revision: str | None) -> Listing:
        """The repository at a revision, or at its default branch."""

    def get(self, commit: str, file: RemoteFile, target: Path) -> None:
        """Transfer a file to `target`, going on from what is there."""


class NotAnAnswer(Exception):
    """What came is not what a hub's API answers: a proxy, a login page or another server spoke in its place."""

    def __init__(self, what: object) -> None:
        super().__init__(" ".join(str(what).split())[:120])


class Trouble(NamedTuple):
    """What is told to the user, whether trying again can help, and the wait in seconds that the hub asks for."""

    error: NightowlError
    again: bool
    wait: float | None = None


def with_retries(server: Server | None, call: Callable[[], T]) -> T:
    """The result of `call`, tried again after a wait where that can help; else the error for the user.

    `server`: who explains what `call` raises; None where it raises errors for the user alone.
    """
    for attempt in range(ATTEMPTS):
        cause: BaseException | None
        try:
            return call()
        except BrokenOff as error:
            trouble, cause = Trouble(error, again=True), error.__cause__
        except NightowlError:
            raise
        except Exception as error:
            explained = server.explain(error) if server else None
            if explained is None:
                raise
            trouble, cause = explained, error
        wait = trouble.wait if trouble.wait is not None else FIRST_WAIT * 2**attempt * random.uniform(0.5, 1)
        if not trouble.again or attempt == ATTEMPTS - 1 or wait > LONGEST_WAIT:
            raise trouble.error from cause
        log.info("%s Trying again in %.1f s.", trouble.error, wait)
        time.sleep(wait)
    raise AssertionError("the last attempt returns or raises")


def retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, given as seconds or as a date (RFC 9110, 10.2.3)."""
    if not value:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        try:
            return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
        except (ValueError, TypeError):
            return None


def download(
    hub: Hub, uri: SourceUri, commit: str, files: list[RemoteFile], work: Path, target: Path, beside: int = 0
) -> None:
    """Bring `files` at a commit into `target`; what an earlier attempt left in `work` is made use of.

    `beside`: bytes that will be written to that disk besides the files.
    Raises WorldFailed when they don't fit on the disk, or when a file does not have the listed digest
    even after it was fetched a second time.
    """
    wanted = {target / file.place for file in files}
    for path in [path for path in work.rglob("*") if path.is_file()]:
        if path not in wanted and (work / PARTIAL) not in path.parents:
            path.unlink()
    missing = [file for file in files if not _is(target / file.place, file)]
    partial = {file: work / PARTIAL / hashlib.sha256(file.place.encode()).hexdigest() for file in missing}
    here = sum(path.stat().st_size for path in (work / PARTIAL).rglob("*") if path.is_file())
    work.mkdir(parents=True, exist_ok=True)
    require_space(work, sum(file.size for file in missing) - here + beside, uri.text)
    (work / PARTIAL).mkdir(exist_ok=True)
    with ThreadPoolExecutor(_TRANSFERS) as pool:
        transfers = [
            pool.submit(_transfer, hub, uri, commit, file, partial[file], target / file.place) for file in missing
        ]
        try:
            for transfer in transfers:
                transfer.result()
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    shutil.rmtree(work / PARTIAL)


def _transfer(hub: Hub, uri: SourceUri, commit: str, file: RemoteFile, partial: Path, target: Path) -> None:
    for _ in range(2):
        # A process that was killed before it had checked what came leaves it whole; a server has no more to send then.
        whole = partial.exists() and partial.stat().st_size >= file.size
        if whole and not _is(partial, file):
            partial.unlink()
            whole = False
        if not whole:
            with_retries(hub, lambda: hub.get(commit, file, partial))
        if _is(partial, file):
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.replace(target)
            return
        log.warning("%s: %s does not have the listed digest; fetching it again", uri.text, file.name)
        partial.unlink(missing_ok=True)
    raise WorldFailed(
        f"{uri.text}: {file.name}",
        "was fetched twice, and neither time its digest was the one that the hub lists",
        "Something between here and the hub changes or truncates it; try another network, or tell its owner.",
    )


def _is(path: Path, file: RemoteFile) -> bool:
    """Whether a local file is the listed one, by size and digest."""
    if not path.is_file() or path.stat().st_size != file.size:
        return False
    if file.etag is not None:
        return True
    # Git's id of a blob is the sha1 of this header and the content.
    algorithm = hashlib.sha256() if file.sha256 else hashlib.sha1(f"blob {file.size}\0".encode())
    with open(path, "rb") as content:
        while piece := content.read(2**20):
            algorithm.update(piece)
    return algorithm.hexdigest() == (file.sha256 or file.git_blob)


def choose_model(uri: SourceUri, listing: Listing) -> list[RemoteFile]:
    """Config, tokenizer and safetensors weights of a model repository.

    Raises BadInput where the weights are in other formats only, or there is no config.
    """
    top = {file.name: file for file in listing.files if "/" not in file.name}
    weights = [name for name in top if name.endswith(".safetensors")]
    # Beside the shards that transformers reads, some repositories hold the same weights in one more layout.
    weights = [name for name in weights if name.startswith("model")] or weights
    if not weights:
        raise uri.bad("has no safetensors weights", "Only safetensors are loaded; choose a repository that has them.")
    if "config.json" not in top:
        raise uri.bad("has no config.json", "It is no model that transformers can load; choose another repository.")
    others = [name for name in top if name.endswith((".json", ".txt", ".model", ".jinja", ".tiktoken"))]
    templates = [file for file in listing.files if re.fullmatch(rf"{TEMPLATES}/[^/]+\.jinja", file.name)]
    return [*(top[name] for name in sorted([*weights, *others])), *templates]


_SPLITS = {"train": "train", "training": "train", "test": "test", "testing": "test"} | dict.fromkeys(
    ("validation", "valid", "val", "dev"), "validation"
)
_NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json", "config.json")


def choose_data(uri: SourceUri, listing: Listing) -> list[RemoteFile]:
    """The data files of a repository that the URI's `subset`, `split` and `files` select.

    Subsets and splits are those that the card declares under `configs`, else the folders and the names
    of the files. Where there are several and the URI names none, that is an error which lists them: a
    test split that slips into training is worse than a question.
    """
    files = [file for file in listing.files if is_data_file(file.name) and Path(file.name).name not in _NOT_ROWS]
    if pattern := uri.params.get("files"):
        files = [file for file in files if glob_pattern(pattern).fullmatch(file.name)]
    if not files:
        endings = sorted({Path(file.name).suffix for file in listing.files if Path(file.name).suffix})
        raise uri.bad(
            "has no data files" + (f" that match files={pattern}" if pattern else ""),
            f"Its files end in {', '.join(endings) or 'nothing'}; Parquet, JSON lines, JSON and CSV are read.",
        )
    configs = [config for config in listing.card.get("configs") or [] if {"data_files", "data_dir"} & config.keys()]
    splits = _declared(uri, configs, files) if configs and not pattern else _by_name(uri, files)
    if not pattern:
        chosen = _pick(uri, "split", splits)
    else:
        chosen = _pick(uri, "split", splits) if "split" in uri.params else files
    forms = sorted({form(file.name) for file in chosen})
    if len(forms) > 1:
        raise uri.bad(
            f"has files of several formats ({', '.join(forms)})",
            f"They may hold the same rows: choose with ?files=, such as files=**/*{forms[-1]}.",
        )
    return sorted(chosen, key=lambda file: file.name)


def _declared(uri: SourceUri, configs: list[dict[str, Any]], files: list[RemoteFile]) -> dict[str, list[RemoteFile]]:
    config = _pick(uri, "subset", {str(config.get("config_name", "default")): config for config in configs})
    folder = str(config.get("data_dir") or "").strip("/")
    start = f"{folder}/" if folder else ""
    data_files = config.get("data_files")
    if data_files is None:
        return _splits([file for file in files if file.name.startswith(start)])
    if isinstance(data_files, str):
        data_files = [data_files]
    parts = [part if isinstance(part, dict) else {"split": "train", "path": part} for part in data_files]
    splits: dict[str, list[RemoteFile]] = {}
    for part in parts:
        paths = part["path"] if isinstance(part["path"], list) else [part["path"]]
        splits.setdefault(str(part["split"]), []).extend(
            file
            for file in files
            if any(glob_pattern(start + path.removeprefix("./")).fullmatch(file.name) for path in paths)
        )
    return {split: found for split, found in splits.items() if found}


def _by_name(uri: SourceUri, files: list[RemoteFile]) -> dict[str, list[RemoteFile]]:
    if subset := uri.params.get("subset"):
        folders = sorted({part for file in files for part in Path(file.name).parts[:-1]})
        files = [file for file in files if subset in Path(file.name).parts[:-1]]
        if not files:
            raise uri.bad(f"has no subset {subset!r}", f"Its folders: {', '.join(folders) or 'none'}.")
    return _splits(files)


def _splits(files: list[RemoteFile]) -> dict[str, list[RemoteFile]]:
    splits: dict[str, list[RemoteFile]] = {}
    for file in files:
        words = re.split(r"[/._-]", file.name.lower())
        split = next((_SPLITS[word] for word in words if word in _SPLITS), "train")
        splits.setdefault(split, []).append(file)
    return splits


def _pick(uri: SourceUri, what: str, options: dict[str, T]) -> T:
    asked = uri.params.get(what)
    known = ", ".join(options)
    if asked is not None and asked not in options:
        raise uri.bad(f"has no {what} {asked!r}", f"It has: {known or 'none with files'}.")
    if asked is None and len(options) > 1:
        if what == "subset" and "default" in options:
            return options["default"]
        raise uri.bad(f"has several {what}s", f"Name one of them with ?{what}=: {known}.")
    if not options:
        raise uri.bad(f"has no {what} with files", "Choose another repository or subset.")
    return options[asked] if asked is not None else next(iter(options.values()))


def glob_pattern(pattern: str) -> re.Pattern[str]:
    """A glob over repository paths: `*` within a folder, `**` across folders, `[...]` one of some characters."""
    parts = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]/]+\])", pattern.removeprefix("./"))
    signs = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}

    def sign(part: str) -> str:
        if part.startswith("[") and len(part) > 1:
            others = part[1] == "!"
            letters = re.escape(part[1 + others : -1]).replace(r"\-", "-")
            return f"[{'^' if others else ''}{letters}]"
        return signs.get(part, re.escape(part))

    return re.compile("".join(map(sign, parts)))
