"""`s3://`: objects of a bucket, on Amazon's S3 or whatever AWS_ENDPOINT_URL names, through s3fs.

A bucket has no commits: the digest of the listing (names, ETags, sizes) stands for one. Objects that an
earlier snapshot has are taken from it, so a night transfers only what came or changed since; what was
deleted in the bucket is not in the snapshot either. Credentials are found as every AWS tool finds them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock

from tasks.errors import NightowlError, WorldFailed
from tasks.sources.hub import Trouble, download, glob_pattern, retry_after, with_retries
from tasks.sources.pin import Listing, Moved, Pin, RemoteFile, Unreachable
from tasks.sources.records import FORMATS, PACKED, form, is_data_file
from tasks.sources.rows import DATA, has_header
from tasks.sources.uri import SourceUri
from tasks.store import digest, link, write_whole

OBJECTS = "objects.json"
PATIENCE = 60  # seconds without a byte before a transfer is given up
_PIECE = 2**20
_PLAIN_MD5 = re.compile(r"[0-9a-f]{32}")
_CREDENTIALS = ("InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "AuthFailure")


def resolve(uri: SourceUri) -> Pin:
    """Raises BadInput for a bucket or a prefix that is not there, Unreachable where the endpoint is not."""
    has_header(uri)
    bucket = Bucket(uri)
    listing = with_retries(bucket, lambda: bucket.listing(None))
    return Pin(revision=listing.commit, requested=None, listing=listing)


def write(
    uri: SourceUri,
    pin: Pin,
    folder: Path,
    data: Path,
    earlier: Mapping[str, Path],
    kept_as: Callable[[str], str],
    sifted: bool,
) -> str | None:
    """Write the objects at a pin into `data`, and their listing into the snapshot's folder; its watermark, as JSON.

    `earlier`: sound files of an earlier snapshot by `name` in it, and its own listing under OBJECTS; `kept_as`: the
    name there of what an object held; `sifted`: room must be left for all rows to be written once more.
    """
    bucket = Bucket(uri)
    # What has come since it was pinned is not asked for: a bucket that is written to all the time can be read.
    listing = pin.listing or with_retries(bucket, lambda: bucket.listing(None))
    if listing.commit != pin.revision:
        raise bucket.moved("its listing is another")
    known = orjson.loads(earlier[OBJECTS].read_bytes()) if OBJECTS in earlier else {}
    held = {
        file: earlier[name]
        for file in listing.files
        if known.get(file.name) == [file.etag, file.size] and (name := f"{DATA}/{kept_as(file.name)}") in earlier
    }
    if not (folder / OBJECTS).exists():
        shutil.rmtree(data, ignore_errors=True)
    missing = [file for file in listing.files if file not in held and not (data / file.name).exists()]
    # Not in the snapshot's folder, which is another one as soon as the bucket has one more object.
    stage = folder.with_name(f"bucket-{digest(uri.text)}")
    with FileLock(f"{stage}.lock"):
        beside = sum(file.size for file in listing.files) if sifted else 0
        download(bucket, uri, pin.revision, missing, stage, stage / DATA, beside)
        for file in missing:
            link(stage / DATA / file.place, data / file.name)
        for file, path in held.items():
            link(path, data / kept_as(file.name))
        shutil.rmtree(stage)
    objects = {file.name: [file.etag, file.size] for file in listing.files}
    write_whole(folder / OBJECTS, orjson.dumps(objects, option=orjson.OPT_INDENT_2).decode())
    newest = max(listing.files, key=lambda file: (file.modified or "", file.name))
    return orjson.dumps([newest.modified, newest.name]).decode()


class Bucket:
    """The data objects that a URI means, as a hub: `s3://bucket/object`, `.../folder`, `.../prefix` or a glob."""

    def __init__(self, uri: SourceUri) -> None:
        import fsspec

        self.uri = uri
        self.bucket, _, self.prefix = uri.path.partition("/")
        anonymous = uri.params.get("anonymous", "false")
        if anonymous not in ("true", "false"):
            raise uri.bad(f"has anonymous={anonymous}", "Write anonymous=true or leave it out.")
        self.endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
        config: dict[str, Any] = {"connect_timeout": 10, "read_timeout": PATIENCE, "retries": {"total_max_attempts": 1}}
        if self.endpoint:
            # Servers other than Amazon's rarely have a host name for each bucket.
            config["s3"] = {"addressing_style": "path"}
        self.files: Any = fsspec.filesystem(
            "s3", anon=anonymous == "true", config_kwargs=config, skip_instance_cache=True
        )

    def listing(self, revision: str | None) -> Listing:
        """The data objects; their digest is the commit."""
        glob = re.search(r"[*?[]", self.prefix)
        fixed = self.prefix[: glob.start()] if glob else self.prefix
        objects = self._list(fixed)
        folder = fixed.rpartition("/")[0] if glob or not self._has_folder(objects, fixed) else fixed.rstrip("/")
        start = f"{folder}/" if folder else ""
        if glob:
            pattern = glob_pattern(self.prefix)
            objects = [found for found in objects if pattern.fullmatch(found["Key"])]
        elif any(found["Key"] == fixed for found in objects):
            objects = [found for found in objects if found["Key"] == fixed]
        elif start and folder == fixed.rstrip("/"):
            objects = [found for found in objects if found["Key"].startswith(start)]
        files = [_file(found, start) for found in objects if not found["Key"].endswith("/")]
        chosen = self._data(files)
        commit = digest({file.name: [file.etag, file.size] for file in chosen})
        return Listing(commit=commit, files=tuple(chosen), card={})

    def get(self, commit: str, file: RemoteFile, target: Path) -> None:
        from fsspec.asyn import sync

        answer = sync(self.files.loop, self._get, file, target)
        if target.stat().st_size != file.size:
            raise _Damaged(f"{file.name}: {target.stat().st_size} of {file.size} bytes came")
        # With a key of one's own, or in several parts, an ETag is no digest of the content.
        hashed = answer.get("ServerSideEncryption") in (None, "AES256") and "SSECustomerAlgorithm" not in answer
        if hashed and _PLAIN_MD5.fullmatch(file.etag or "") and _md5(target) != file.etag:
            target.unlink()
            raise _Damaged(f"{file.name}: its content does not have the listed digest")

    async def _get(self, file: RemoteFile, target: Path) -> dict[str, Any]:
        client = await self._client()
        here = target.stat().st_size if target.exists() else 0
        if here >= file.size > 0:
            here = 0
        asked = {"Range": f"bytes={here}-"} if here else {}
        answer = await client.get_object(Bucket=self.bucket, Key=file.key, IfMatch=file.etag, **asked)
        # A server that does not know ranges sends the whole object.
        whole = answer["ResponseMetadata"]["HTTPStatusCode"] != 206
        try:
            with open(target, "wb" if whole or not here else "ab") as content:
                while piece := await answer["Body"].read(_PIECE):
                    content.write(piece)
        finally:
            answer["Body"].close()
        return dict(answer)

    def explain(self, error: Exception) -> Trouble | None:
        import aiohttp
        from botocore import exceptions

        if isinstance(error, _Damaged):
            way_out = "Run again; what came whole is kept. If it stays so, something on the way changes it."
            return Trouble(self._failed(f"sent something else than it lists ({error})", way_out), again=True)
        if isinstance(error, exceptions.ClientError):
            return self._answered(error)
        if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
            return Trouble(self._failed(f"cannot be asked ({error})", _KEYS), again=False)
        if isinstance(error, exceptions.ProfileNotFound | exceptions.CredentialRetrievalError):
            return Trouble(self._failed(f"cannot be asked ({error})", "Correct AWS_PROFILE or ~/.aws."), again=False)
        if isinstance(error, exceptions.ParamValidationError):
            return Trouble(self.uri.bad(f"is refused ({error})", "Write s3://bucket/prefix."), again=False)
        if isinstance(error, ValueError) and "endpoint" in str(error):
            return Trouble(self._failed(str(error), "Correct AWS_ENDPOINT_URL."), again=False)
        if isinstance(error, exceptions.EndpointConnectionError | exceptions.ConnectTimeoutError):
            place = f"{self.uri.field}: {self.uri.text}"
            way_out = "Check the network and AWS_ENDPOINT_URL; what was fetched before can be used offline."
            where = self.endpoint or "Amazon S3"
            return Trouble(Unreachable(place, f"{where} cannot be reached ({error})", way_out), again=True)
        if isinstance(error, exceptions.HTTPClientError | exceptions.IncompleteReadError | aiohttp.ClientError):
            problem = f"broke off the answer ({type(error).__name__}: {error})"
            return Trouble(self._failed(problem, "Run again later; what was fetched is kept."), again=True)
        if isinstance(error, TimeoutError):
            return Trouble(self._failed("stopped sending", "Run again later; what was fetched is kept."), again=True)
        if isinstance(error, exceptions.BotoCoreError):
            return Trouble(self._failed(f"failed ({error})", "Run again later."), again=False)
        return None

    def _answered(self, error: Any) -> Trouble:
        code = str(error.response.get("Error", {}).get("Code", ""))
        answer = error.response.get("ResponseMetadata", {})
        status = answer.get("HTTPStatusCode", 0)
        if code == "NoSuchBucket":
            way_out = "Check the name, and AWS_ENDPOINT_URL where it is not on Amazon."
            return Trouble(self.uri.bad(f"names a bucket that is not there ({self.bucket})", way_out), again=False)
        if code in ("NoSuchKey", "PreconditionFailed") or status in (404, 412):
            return Trouble(self.moved(code or str(status)), again=False)
        if code in _CREDENTIALS:
            return Trouble(self._failed(f"refuses the credentials ({code})", _KEYS), again=False)
        if code in ("PermanentRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"):
            way_out = "Set AWS_REGION to the bucket's region."
            return Trouble(self._failed(f"is in another region ({code})", way_out), again=False)
        if status in (401, 403):
            way_out = f"Ask for s3:ListBucket and s3:GetObject on {self.bucket}, or use other credentials. {_KEYS}"
            return Trouble(self._failed(f"may not be read ({code or status})", way_out), again=False)
        wait = retry_after(answer.get("HTTPHeaders", {}).get("retry-after"))
        slow = status == 429 or code in ("SlowDown", "Throttling", "RequestLimitExceeded")
        problem = f"is asked too often ({code or status})" if slow else f"answered {status} ({code})"
        return Trouble(self._failed(problem, "Run again later."), again=slow or status >= 500, wait=wait)

    def _list(self, prefix: str) -> list[dict[str, Any]]:
        from fsspec.asyn import sync

        found: list[dict[str, Any]] = sync(self.files.loop, self._pages, prefix)
        return found

    async def _pages(self, prefix: str) -> list[dict[str, Any]]:
        client = await self._client()
        found: list[dict[str, Any]] = []
        more: dict[str, str] = {}
        while True:
            page = await client.list_objects_v2(Bucket=self.bucket, Prefix=prefix, **more)
            if "Name" not in page and "KeyCount" not in page:
                raise _Damaged("an answer that is no listing, such as a proxy's or a login page")
            found += page.get("Contents", [])
            if not page.get("IsTruncated"):
                return found
            more = {"ContinuationToken": page["NextContinuationToken"]}

    async def _client(self) -> Any:
        await self.files.set_session()
        return await self.files.get_s3(self.bucket)

    def _has_folder(self, objects: list[dict[str, Any]], prefix: str) -> bool:
        start = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        return any(found["Key"].startswith(start) for found in objects)

    def _data(self, files: list[RemoteFile]) -> list[RemoteFile]:
        """The data files among those found; as Hive and Spark have it, a name that begins with `_` or `.` is none."""
        if not files:
            raise self.uri.bad("has no objects", f"Look at what the bucket has: aws s3 ls s3://{self.bucket}/")
        if any("_delta_log" in Path(file.name).parts for file in files):
            problem = "is a Delta table, whose files alone do not say which rows are current"
            raise self.uri.bad(problem, "Export it to Parquet, or read it through a database.")
        shown = [file for file in files if not any(part[0] in "._" for part in Path(file.name).parts)]
        chosen = [file for file in shown if is_data_file(file.name) and file.size]
        if not chosen:
            names = ", ".join(file.name for file in files[:3])
            endings = f"{', '.join(FORMATS)}, each also with {' or '.join(PACKED)}"
            raise self.uri.bad(f"has no data files ({names}, ...)", f"Data files end in {endings}.")
        forms = sorted({form(file.name) for file in chosen})
        if len(forms) > 1:
            problem = f"has files of several formats ({', '.join(forms)})"
            way_out = f"They may hold the same rows: choose with a glob, such as s3://{self.bucket}/**/*{forms[-1]}."
            raise self.uri.bad(problem, way_out)
        return sorted(chosen, key=lambda file: file.name)

    def moved(self, how: str) -> Moved:
        """The error that an object has been rewritten or deleted since the bucket was listed."""
        place = f"{self.uri.field}: {self.uri.text}"
        return Moved(place, f"changed while it was read ({how})", "Run again when fewer objects are rewritten.")

    def _failed(self, problem: str, way_out: str) -> NightowlError:
        return WorldFailed(f"{self.uri.field}: {self.uri.text}", f"the bucket or its server {problem}", way_out)


_KEYS = (
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (and AWS_SESSION_TOKEN) or AWS_PROFILE; a public bucket takes "
    "?anonymous=true."
)


class _Damaged(Exception):
    """A transfer that did not bring what was listed."""


def _file(found: dict[str, Any], start: str) -> RemoteFile:
    return RemoteFile(
        name=found["Key"].removeprefix(start),
        key=found["Key"],
        size=found["Size"],
        etag=found["ETag"].strip('"'),
        modified=found["LastModified"].isoformat(),
    )


def _md5(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
