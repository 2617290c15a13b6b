"""`hf://`: repositories of the Hugging Face hub, through its own client.

The client would hand out a stale snapshot when the hub answers 429 or 503, checks sizes only and does
not go on with the download of a killed process (huggingface_hub 1.33): so the revision is resolved
first, digests are checked by `hub.download`, and a transfer appends to a file of a name that lasts.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

from tasks.errors import NightowlError, WorldFailed
from tasks.sources.hub import NotAnAnswer, Trouble, retry_after
from tasks.sources.pin import Listing, RemoteFile, Unreachable
from tasks.sources.uri import SourceUri

TOKEN = "HF_TOKEN"


class HuggingFace:
    """A repository on the hub that HF_ENDPOINT names, read with the token in HF_TOKEN (or the one logged in with)."""

    def __init__(self, uri: SourceUri, kind: Literal["dataset", "model"]) -> None:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        # Bars of several transfers at once write over each other, and over ours.
        disable_progress_bars("huggingface_hub.http_get")
        self.uri = uri
        self.kind = kind
        self.endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        self.api = HfApi(endpoint=self.endpoint, token=os.environ.get(TOKEN) or None)

    def listing(self, revision: str | None) -> Listing:
        from huggingface_hub.errors import HFValidationError

        try:
            info: Any = self.api.repo_info(
                self.uri.path, repo_type=self.kind, revision=revision, files_metadata=True, timeout=30
            )
            if info.id.lower() != self.uri.path.lower():
                raise self.uri.bad(f"has been renamed to {info.id}", f"Write hf://{info.id}.")
            card = info.card_data.to_dict() if info.card_data else {}
            return Listing(commit=info.sha, files=tuple(_file(sibling) for sibling in info.siblings or []), card=card)
        except HFValidationError:
            raise
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise NotAnAnswer(repr(error)) from error

    def get(self, commit: str, file: RemoteFile, target: Path) -> None:
        from huggingface_hub import hf_hub_url
        from huggingface_hub.file_download import http_get

        url = hf_hub_url(
            self.uri.path, file.name, repo_type=self.kind, revision=commit, endpoint=self.endpoint.rstrip("/")
        )
        if target.exists() and target.stat().st_size > file.size:
            target.unlink()
        with open(target, "ab") as content:
            http_get(
                url,
                content,
                resume_size=content.tell(),
                headers=self.api._build_hf_headers(),
                expected_size=file.size,
                displayed_filename=file.name,
            )

    def explain(self, error: Exception) -> Trouble | None:
        import httpx
        from huggingface_hub import errors

        if isinstance(error, errors.OfflineModeIsEnabled):
            return Trouble(self._unreachable(self.endpoint, "HF_HUB_OFFLINE is set"), again=False)
        if isinstance(error, NotAnAnswer):
            way_out = "Check HF_ENDPOINT and HTTPS_PROXY: a proxy or a login page may speak in its place."
            return Trouble(self._failed(f"answered with what is no listing ({error})", way_out), again=True)
        if isinstance(error, httpx.ConnectError | httpx.ConnectTimeout):
            # Files come from other hosts than the listing.
            host = str(error.request.url.copy_with(raw_path=b"/")).rstrip("/")
            return Trouble(self._unreachable(host, str(error) or type(error).__name__), again=True)
        if isinstance(error, httpx.TooManyRedirects | httpx.InvalidURL):
            problem = f"redirects to where no file is ({error})"
            return Trouble(self._failed(problem, "Check HF_ENDPOINT and HTTPS_PROXY."), again=True)
        if isinstance(error, httpx.RequestError):
            problem = f"broke off the answer ({type(error).__name__}: {error})"
            return Trouble(self._failed(problem, "Run again later; what was downloaded is kept."), again=True)
        if isinstance(error, errors.HfHubHTTPError):
            return self._answered(error)
        # What the client raises for a file that is too short or too long is nothing narrower than this.
        if type(error) is OSError and "Consistency check failed" in str(error):
            way_out = "Run again; what was downloaded is kept."
            return Trouble(self._failed("sent a file of another size than it lists", way_out), again=True)
        if isinstance(error, errors.HFValidationError):
            return Trouble(self.uri.bad(f"is no repository name ({error})", "Write hf://org/name."), again=False)
        return None

    def _answered(self, error: Any) -> Trouble:
        from huggingface_hub import errors

        status = error.response.status_code
        page = f"{self.endpoint.rstrip('/')}/{'datasets/' if self.kind == 'dataset' else ''}{self.uri.path}"
        token = self.api.token or _logged_in()
        theirs = "the token in HF_TOKEN" if os.environ.get(TOKEN) else "the token that you logged in with"
        if isinstance(error, errors.GatedRepoError):
            way_out = f"Accept its terms on {page}" + (
                f" as the owner of {theirs}." if token else " and set HF_TOKEN to a token of that account."
            )
            return Trouble(self._failed("is gated", way_out), again=False)
        if isinstance(error, errors.RevisionNotFoundError):
            return Trouble(
                self.uri.bad(f"has no revision {self.uri.revision or 'main'!r}", f"See {page}/commits/main."), False
            )
        if status == 401 and token:
            settings = f"{self.endpoint.rstrip('/')}/settings/tokens"
            return Trouble(
                self._failed(f"refuses {theirs} (401)", f"Make a new one on {settings} and set HF_TOKEN to it."), False
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            reader = f"may not be read with {theirs}" if token else "needs HF_TOKEN set to a token that may read it"
            return Trouble(
                self.uri.bad(f"is not there ({status})", f"Check the name on {page}; a private repository {reader}."),
                again=False,
            )
        if isinstance(error, errors.DisabledRepoError):
            return Trouble(self._failed("has been disabled by the hub", f"See {page}."), again=False)
        if status in (401, 403):
            reader = f"{theirs} has no right to it" if token else "it takes a token"
            return Trouble(
                self._failed(f"may not be read ({status}: {reader})", f"Set HF_TOKEN to a token that may read {page}."),
                again=False,
            )
        if isinstance(error, errors.RemoteEntryNotFoundError) or status == 404:
            return Trouble(self._failed("no longer has one of its files (404)", f"See {page}."), again=False)
        if status == 416:
            return Trouble(self._failed("sent more of a file than it lists", "Run again later."), again=True)
        wait = retry_after(error.response.headers.get("Retry-After"))
        if status == 429:
            way_out = "Run again later" + ("." if token else ", or set HF_TOKEN: the limit is higher with a token.")
            return Trouble(self._failed("is asked too often (429)", way_out), again=True, wait=wait)
        again = status >= 500 or status == 408
        way_out = "Run again later; see https://status.huggingface.co." if again else f"See {page}."
        return Trouble(self._failed(f"answered {status}", way_out), again=again, wait=wait)

    def _failed(self, problem: str, way_out: str) -> NightowlError:
        return WorldFailed(f"{self.uri.field}: {self.uri.text}", f"the hub or the repository {problem}", way_out)

    def _unreachable(self, host: str, reason: str) -> NightowlError:
        return Unreachable(
            f"{self.uri.field}: {self.uri.text}",
            f"{host} cannot be reached ({reason})",
            "Check the network, HF_ENDPOINT and HTTPS_PROXY; a commit that was fetched before can be used offline.",
        )


def _logged_in() -> str | None:
    from huggingface_hub import get_token

    return get_token()


def _file(sibling: Any) -> RemoteFile:
    return RemoteFile(
        name=sibling.rfilename,
        size=sibling.size or 0,
        sha256=sibling.lfs.sha256 if sibling.lfs else None,
        git_blob=None if sibling.lfs else sibling.blob_id,
    )
