"""`modelscope://`: repositories of the ModelScope hub, through its own client.

The client never resolves a branch to a commit, and an unknown revision may come back as an empty
listing (modelscope 1.40): so the commit is read from the tree, and the tree is listed again at that
commit to see that it is the same. Every file is listed with its sha256.
"""

from __future__ import annotations

import errno
import os
import re
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml

from tasks.errors import NightowlError, WorldFailed
from tasks.sources.hub import COMMIT, NotAnAnswer, Trouble
from tasks.sources.pin import Listing, RemoteFile, Unreachable
from tasks.sources.uri import SourceUri

_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)
TOKEN = "MODELSCOPE_API_TOKEN"


class ModelScope:
    """A repository on the hub that MODELSCOPE_ENDPOINT names, read with the token in MODELSCOPE_API_TOKEN."""

    def __init__(self, uri: SourceUri, kind: Literal["dataset", "model"]) -> None:
        from modelscope_hub import HubApi

        if "/" not in uri.path:
            raise uri.bad("does not name an owner", "Write modelscope://org/name.")
        self.uri = uri
        self.kind = kind
        self.endpoint = (os.environ.get("MODELSCOPE_ENDPOINT") or "https://modelscope.cn").rstrip("/")
        self.api = HubApi(endpoint=self.endpoint, token=os.environ.get(TOKEN) or None)

    def listing(self, revision: str | None) -> Listing:
        from modelscope_hub.errors import HubError

        try:
            return self._listing(revision)
        except HubError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise NotAnAnswer(repr(error)) from error

    def _listing(self, revision: str | None) -> Listing:
        asked = revision or "master"
        entries = self._entries(asked)
        commit = asked if COMMIT.fullmatch(asked) else self._commit(asked, entries)
        files = tuple(
            RemoteFile(name=entry["Path"], size=entry.get("Size") or 0, sha256=entry.get("Sha256"))
            for entry in entries
            if entry.get("Type") != "tree"
        )
        if not files:
            raise self.uri.bad(
                f"has no files at revision {asked!r}", f"Check the revision on {self._page()}; it may not exist."
            )
        if lacking := [file.name for file in files if not file.sha256]:
            raise WorldFailed(
                self.uri.text, f"the hub lists no sha256 for {lacking[0]}", f"See {self._page()}; try again later."
            )
        return Listing(commit=commit, files=files, card={})

    def get(self, commit: str, file: RemoteFile, target: Path) -> None:
        from modelscope_hub import errors

        try:
            # The client names its partial file after the target, and goes on from it.
            self.api.download_file(
                self.uri.path,
                self.kind,
                file.name,
                revision=commit,
                local_dir=target.parent / f"{target.name}.d",
                cache_dir=target.parent,  # where its lock goes
                file_size=file.size,
            ).replace(target)
        except errors.NetworkError as error:
            if full := _of_the_disk(error):
                raise full from error
            problem = f"broke off while it sent {file.name}"
            raise _Broken(Trouble(self._failed(problem, "Run again later; what came is kept."), again=True)) from error
        except errors.NotExistError as error:
            problem = f"no longer has {file.name} (404)"
            raise _Broken(Trouble(self._failed(problem, f"See {self._page()}."), again=False)) from error
        except errors.InvalidParameter as error:
            problem = f"refuses to send {file.name} ({error.status_code})"
            raise _Broken(Trouble(self._failed(problem, f"See {self._page()}."), again=False)) from error

    def card(self, listing: Listing, work: Path) -> dict[str, Any]:
        """The front matter of the README at the listing's commit."""
        readme = next((file for file in listing.files if file.name == "README.md"), None)
        if readme is None:
            return {}
        work.mkdir(parents=True, exist_ok=True)
        self.get(listing.commit, readme, work / "README.md")
        text = (work / "README.md").read_text(encoding="utf-8", errors="replace")
        (work / "README.md").unlink()
        front = re.match(r"\ufeff?---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        try:
            card = yaml.safe_load(front[1]) if front else {}
        except yaml.YAMLError:
            return {}
        return card if isinstance(card, dict) else {}

    def explain(self, error: Exception) -> Trouble | None:
        import requests
        from modelscope_hub import errors

        token = os.environ.get(TOKEN)
        if isinstance(error, _Broken):
            return error.trouble
        if isinstance(error, NotAnAnswer):
            way_out = "Check MODELSCOPE_ENDPOINT and HTTPS_PROXY: a proxy or a login page may speak in its place."
            return Trouble(self._failed(f"answered with what is no listing ({error})", way_out), again=True)
        if isinstance(error, errors.RequestTimeoutError):
            return Trouble(self._failed("did not answer in time", "Run again later; what came is kept."), again=True)
        if isinstance(error, errors.NetworkError):
            return Trouble(
                Unreachable(
                    f"{self.uri.field}: {self.uri.text}",
                    f"{self.endpoint} cannot be reached ({str(error)[:200]})",
                    "Check the network and MODELSCOPE_ENDPOINT; a commit that was fetched before can be used offline.",
                ),
                again=True,
            )
        if isinstance(error, errors.RateLimitError):
            wait = getattr(error, "retry_after", None)
            return Trouble(self._failed("is asked too often (429)", "Run again later."), again=True, wait=wait)
        if isinstance(error, errors.AuthenticationError):
            problem = f"refuses the token in {TOKEN} (401)" if token else "takes a token (401)"
            way_out = f"Make one on {self.endpoint}/my/myaccesstoken and set {TOKEN} to it."
            return Trouble(self._failed(problem, way_out), again=False)
        if isinstance(error, errors.PermissionDeniedError):
            reader = f"the token in {TOKEN} has no right to it" if token else "it takes a token"
            way_out = f"Ask for access on {self._page()} and set {TOKEN} to a token of that account."
            return Trouble(self._failed(f"may not be read (403: {reader})", way_out), again=False)
        if isinstance(error, errors.NotExistError | errors.InvalidParameter):
            revision = f" or has no revision {self.uri.revision!r}" if self.uri.revision else ""
            reader = f"may not be read with {TOKEN}" if token else f"needs {TOKEN}"
            return Trouble(
                self.uri.bad(
                    f"is not there{revision} ({error.status_code})",
                    f"Check it on {self._page()}; a private repository {reader}.",
                ),
                again=False,
            )
        if isinstance(error, errors.FileIntegrityError):
            return Trouble(
                self._failed("sent another file than it lists", "Run again later; what came whole is kept."), again=True
            )
        if isinstance(error, errors.HubError):
            status = getattr(error, "status_code", None) or type(error).__name__
            return Trouble(
                self._failed(f"answered {status}", "Run again later."),
                again=bool(error.retryable),
                wait=getattr(error, "retry_after", None),
            )
        if isinstance(error, requests.RequestException):
            problem = f"did not answer as it should ({type(error).__name__}: {str(error)[:200]})"
            return Trouble(self._failed(problem, "Check MODELSCOPE_ENDPOINT and HTTPS_PROXY."), again=True)
        return None

    def _entries(self, revision: str) -> list[dict[str, Any]]:
        entries = self.api.legacy.list_repo_files(self.uri.path, self.kind, revision=revision, recursive=True)
        if getattr(self.api.legacy._read_state, "listing_incomplete", False):
            raise WorldFailed(
                self.uri.text, "has more files than the hub can list", "Take a repository with fewer files a folder."
            )
        return entries

    def _commit(self, asked: str, entries: list[dict[str, Any]]) -> str:
        """The commit that a branch or tag points at: its tree's last one, seen to hold the same files."""
        files = [entry for entry in entries if entry.get("Type") != "tree"]
        newest = sorted(files, key=lambda entry: entry.get("CommittedDate") or 0)[-1:]
        for candidate in [self._head(asked), *(str(entry.get("Revision")) for entry in newest)]:
            if candidate and COMMIT.fullmatch(candidate) and _contents(self._entries(candidate)) == _contents(entries):
                return candidate
        if not files:
            return ""
        raise WorldFailed(
            self.uri.text,
            f"the hub does not say which commit {asked!r} is, so it cannot be pinned",
            f"Give a commit: {self.uri.scheme}://{self.uri.path}@COMMIT; see {self._page()}.",
        )

    def _head(self, revision: str) -> str:
        tree = "repo/tree" if self.kind == "dataset" else "repo/files"
        response = self.api.legacy._request(
            "GET", f"{self.kind}s/{self.uri.path}/{tree}", params={"Revision": revision, "Recursive": "False"}
        )
        # The client follows where the hub sends it, and does not say that it did.
        there = re.search(rf"/{self.kind}s/([^/]+/[^/]+)/{tree}", urlsplit(response.url).path)
        if there and there[1].lower() != self.uri.path.lower():
            raise self.uri.bad(f"has been renamed to {there[1]}", f"Write modelscope://{there[1]}.")
        data = response.json().get("Data")
        latest = data.get("LatestCommitter") if isinstance(data, dict) else None
        return str((latest or {}).get("Id") or "")

    def _page(self) -> str:
        return f"{self.endpoint}/{self.kind}s/{self.uri.path}"

    def _failed(self, problem: str, way_out: str) -> NightowlError:
        return WorldFailed(f"{self.uri.field}: {self.uri.text}", f"the hub or the repository {problem}", way_out)


class _Broken(Exception):
    """A transfer of a listed file that failed, which the client tells in the words of a failed request."""

    def __init__(self, trouble: Trouble) -> None:
        super().__init__(str(trouble.error))
        self.trouble = trouble


def _of_the_disk(error: BaseException | None) -> OSError | None:
    """What the disk said, where that is the cause of an error: the client takes every one for the network's."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK:
            return error
        error = error.__cause__ or error.__context__
    return None


def _contents(entries: list[dict[str, Any]]) -> set[tuple[str, str]]:
    return {(entry["Path"], str(entry.get("Sha256"))) for entry in entries if entry.get("Type") != "tree"}
