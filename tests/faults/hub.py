"""A hub on the loopback that speaks both hubs' APIs, as far as their clients use them, and can be told to fail.

Repositories are folders of bytes by commit. Large files are LFS files, which both sides send from another host
name. A fault is armed for a part of a path and a number of requests.
"""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

LFS_FROM = 2000  # bytes


@dataclass
class Repository:
    """`commits`: files by path, by commit; `branches`: commit by name. `token`: the only one that may read, if any."""

    kind: str
    name: str
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    card: dict[str, Any] = field(default_factory=dict)
    token: str | None = None
    gated: bool = False
    renamed_to: str | None = None
    says_commit: bool = True

    def commit(self, files: dict[str, bytes], branch: str | None = None) -> str:
        """Add a commit; both hubs' default branches move to it unless one is named."""
        sha = hashlib.sha1(repr((self.name, len(self.commits), sorted(files))).encode()).hexdigest()
        self.commits[sha] = files
        for name in [branch] if branch else ["main", "master"]:
            self.branches[name] = sha
        return sha

    def at(self, revision: str) -> tuple[str, dict[str, bytes]] | None:
        sha = self.branches.get(revision, revision)
        return (sha, self.commits[sha]) if sha in self.commits else None


@dataclass
class Fault:
    """What is done to `times` requests whose path contains `where`.

    `do`, to any request: status, portal (a page of HTML, as a login page or a proxy sends), reset, loop (redirects to
    itself), lost (redirects to where nobody listens). To a file: drop, flip, truncate, stall, ignore_range, longer
    (more bytes than listed), other_range (other bytes than asked for).
    """

    do: str
    where: str
    times: int = 1
    status: int = 503
    headers: dict[str, str] = field(default_factory=dict)


class LoopbackHub:
    """The server, its repositories, the armed faults and what was asked of it."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.stalled = threading.Event()
        self.released = threading.Event()
        self._lock = threading.Lock()
        hub = self

        class Handler(_Handler):
            pass

        Handler.hub = hub
        self.server = _Server(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.port = self.server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()

    def repository(self, kind: str, name: str, **settings: Any) -> Repository:
        repository = Repository(kind, name, **settings)
        self.repositories[kind, name] = repository
        return repository

    def fail(self, do: str, where: str, times: int = 1, **settings: Any) -> None:
        self.faults.append(Fault(do, where, times, **settings))

    def take(self, path: str, kinds: tuple[str, ...]) -> Fault | None:
        with self._lock:
            for fault in self.faults:
                if fault.do in kinds and fault.where in path and fault.times > 0:
                    fault.times -= 1
                    return fault
        return None

    def asked(self, part: str) -> list[tuple[str, str, dict[str, str]]]:
        """Requests (host, path, headers) whose path contains a text."""
        return [request for request in self.requests if part in request[1]]


class _Server(ThreadingHTTPServer):
    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is what some tests are about."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LoopbackHub

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(b"", 404)

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        query = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        shown = f"{path} {query.get('FilePath', '')}".strip()
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.requests.append((headers.get("host", ""), shown, headers))
        if fault := self.hub.take(shown, ("status", "portal", "reset", "loop", "lost")):
            self._fail(fault)
            return
        routes: list[tuple[str, Callable[..., None]]] = [
            (r"/lfs/(?P<digest>[0-9a-f]{64})/(?P<name>.+)", self._lfs),
            (r"/api/v1/(?P<kind>dataset|model)s/(?P<repo>[^/]+/[^/]+)/repo/(?:tree|files)", self._ms_tree),
            (r"/api/v1/(?P<kind>dataset|model)s/(?P<repo>[^/]+/[^/]+)/repo", self._ms_file),
            (r"/api/(?P<kind>dataset|model)s/(?P<repo>[^/]+/[^/]+)(?:/revision/(?P<revision>.+))?", self._hf_info),
            (r"(?P<kind>/datasets)?/(?P<repo>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)", self._hf_file),
        ]
        for pattern, route in routes:
            if match := re.fullmatch(pattern, path):
                route(query, **match.groupdict())
                return
        self._answer(b"{}", 404)

    # Hugging Face

    def _hf_info(self, query: dict[str, str], kind: str, repo: str, revision: str | None) -> None:
        repository = self.hub.repositories.get((kind, repo))
        if repository is None or (repository.token and not repository.gated and not self._may_read(repository)):
            self._hf_error(401 if not self._token() else 404, "RepoNotFound")
            return
        if self._token() == "bad":
            self._answer(b"{}", 401, {"X-Error-Message": "Invalid credentials in Authorization header"})
            return
        if repository.renamed_to:
            self._answer(b"", 307, {"Location": f"/api/{kind}s/{repository.renamed_to}"})
            return
        found = repository.at(revision or "main")
        if found is None:
            self._hf_error(404, "RevisionNotFound")
            return
        if repository.gated and not self._may_read(repository):
            self._hf_error(401 if not self._token() else 403, "GatedRepo")
            return
        sha, files = found
        siblings = []
        for name, content in files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": _git_blob(content)}
            if len(content) >= LFS_FROM:
                sibling["lfs"] = {"sha256": _sha256(content), "size": len(content), "pointerSize": 130}
            siblings.append(sibling)
        info = {"id": repo, "sha": sha, "siblings": siblings, "cardData": repository.card, "private": False, "tags": []}
        self._answer(json.dumps(info).encode())

    def _hf_file(self, query: dict[str, str], kind: str | None, repo: str, revision: str, name: str) -> None:
        repository = self.hub.repositories.get(("dataset" if kind else "model", repo))
        found = repository.at(revision) if repository else None
        if repository is None or found is None or name not in found[1]:
            self._hf_error(404, "EntryNotFound")
            return
        if repository.token and not self._may_read(repository):
            self._hf_error(403, "GatedRepo")
            return
        content = found[1][name]
        if len(content) < LFS_FROM:
            self._file(content, name)
            return
        location = f"http://localhost:{self.hub.port}/lfs/{_sha256(content)}/{name}"
        self._answer(b"", 302, {"Location": location, "X-Linked-Etag": f'"{_sha256(content)}"'})

    def _lfs(self, query: dict[str, str], digest: str, name: str) -> None:
        for repository in self.hub.repositories.values():
            for files in repository.commits.values():
                if name in files and _sha256(files[name]) == digest:
                    self._file(files[name], name)
                    return
        self._answer(b"", 404)

    def _hf_error(self, status: int, code: str) -> None:
        self._answer(json.dumps({"error": code}).encode(), status, {"X-Error-Code": code})

    # ModelScope

    def _ms_tree(self, query: dict[str, str], kind: str, repo: str) -> None:
        repository = self.hub.repositories.get((kind, repo))
        if repository is None:
            self._answer(b'{"Code": 10010205001, "Message": "not there", "Success": false}', 404)
            return
        if self._token() == "bad":
            self._answer(b'{"Code": 401, "Message": "token", "Success": false}', 401)
            return
        if repository.token and not self._may_read(repository):
            self._answer(b'{"Code": 403, "Message": "access denied", "Success": false}', 403)
            return
        if repository.renamed_to:
            tree = urlsplit(self.path).path.rpartition("/")[2]
            location = f"/api/v1/{kind}s/{repository.renamed_to}/repo/{tree}?{urlsplit(self.path).query}"
            self._answer(b"", 307, {"Location": location})
            return
        sha, files = repository.at(query["Revision"]) or ("", {})
        entries: list[dict[str, Any]] = []
        for name, content in files.items():
            entries.append(
                {
                    "Name": name.rpartition("/")[2],
                    "Path": name,
                    "Size": len(content),
                    "Sha256": _sha256(content),
                    "Type": "blob",
                    "Revision": _last_change(repository, sha, name),
                    "CommittedDate": list(repository.commits).index(_last_change(repository, sha, name)),
                }
            )
        for folder in sorted({name.rpartition("/")[0] for name in files if "/" in name}):
            entries.append({"Name": folder, "Path": folder, "Size": 0, "Sha256": "", "Type": "tree", "Revision": sha})
        size, page = int(query.get("PageSize", 10**6)), int(query.get("PageNumber", 1))
        latest = {"Id": sha if repository.says_commit else "", "ShortId": sha[:8]}
        data = {
            "Files": entries[(page - 1) * size : page * size],
            "LatestCommitter": latest,
            "TotalCount": len(entries),
        }
        self._answer(json.dumps({"Code": 200, "Success": True, "Data": data}).encode())

    def _ms_file(self, query: dict[str, str], kind: str, repo: str) -> None:
        repository = self.hub.repositories.get((kind, repo))
        found = repository.at(query["Revision"]) if repository else None
        if found is None or query["FilePath"] not in found[1]:
            self._answer(b'{"Code": 404, "Message": "no file"}', 404)
            return
        content = found[1][query["FilePath"]]
        if len(content) < LFS_FROM:
            self._file(content, query["FilePath"])
            return
        location = f"http://localhost:{self.hub.port}/lfs/{_sha256(content)}/{query['FilePath']}"
        self._answer(b"", 302, {"Location": location})

    # Both

    def _token(self) -> str | None:
        return (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None

    def _may_read(self, repository: Repository) -> bool:
        return self._token() == repository.token

    def _fail(self, fault: Fault) -> None:
        if fault.do == "status":
            self._answer(b"{}", fault.status, fault.headers)
        elif fault.do == "portal":
            self._answer(b"<html>Please log in</html>", 200, {"Content-Type": "text/html"})
        elif fault.do == "reset":
            # Without lingering, the connection is reset rather than ended.
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        else:
            place = self.path if fault.do == "loop" else "http://127.0.0.1:9/"
            self._answer(b"", 302, {"Location": place})

    def _answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _file(self, content: bytes, name: str) -> None:
        fault = self.hub.take(name, ("drop", "flip", "truncate", "stall", "ignore_range", "longer", "other_range"))
        do = fault.do if fault else ""
        if do == "flip":
            content = content[:-1] + bytes([content[-1] ^ 1])
        if do == "truncate":
            content = content[: len(content) // 2]
        if do == "longer":
            content += content
        start = 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if asked and do != "ignore_range":
            start = int(asked[1])
            if start >= len(content):
                self._answer(b"", 416, {"Content-Range": f"bytes */{len(content)}"})
                return
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        body = content[start:]
        if do == "other_range":
            body = body[::-1]
        if do in ("drop", "stall"):
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            if do == "stall":
                self.hub.stalled.set()
                self.hub.released.wait(60)
            self.close_connection = True
            return
        self.wfile.write(body)


def _last_change(repository: Repository, sha: str, name: str) -> str:
    """The commit that brought a file to what it is at `sha`."""
    history = list(repository.commits)
    at = history.index(sha)
    while at and repository.commits[history[at - 1]].get(name) == repository.commits[sha][name]:
        at -= 1
    return history[at]


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _git_blob(content: bytes) -> str:
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()
