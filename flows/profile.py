"""What the servers of `nightowl up` keep their state in, and who may ask them: the embedded default, or a server's.

embedded: SQLite and files on this home; whoever can reach 127.0.0.1 may ask.
server: PostgreSQL and an S3 store; both servers ask for a password. Passwords and keys are made once, in files of the
home that only its owner can read, never in a database.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from flows.component import Component
from flows.passwords import access, passwords
from flows.postgres import USER, Address, address, postgres, require_databases
from tasks.errors import BadInput, WorldFailed
from tasks.registry import tracking_uri
from tasks.store import home

MLFLOW_USERS = """[mlflow]
default_permission = READ
database_uri = {database}
admin_username = {user}
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
auth_cache_ttl_seconds = 300
"""


@dataclass(frozen=True)
class Profile:
    """`prefect`, `mlflow`: environments of the servers; `options`: MLflow's; `access`: what whoever asks has set;
    `parts`: what runs for it."""

    name: str
    options: tuple[str, ...]
    prefect: Mapping[str, str] = field(default_factory=dict)
    mlflow: Mapping[str, str] = field(default_factory=dict)
    access: Mapping[str, str] = field(default_factory=dict)
    parts: tuple[Component, ...] = ()


@contextmanager
def profile(name: str, postgres_url: str | None) -> Iterator[Profile]:
    """What the servers need; in the server profile, PostgreSQL runs until the block ends, or is asked by its URL.

    Raises BadInput where the home belongs to the other profile, or what the server profile needs is not named.
    """
    if name == "embedded":
        if access():
            way_out = "Start it with --profile server, or set another NIGHTOWL_HOME."
            raise BadInput("--profile", name, f"is not this home's ({home()}): its registry is PostgreSQL", way_out)
        options = ("--backend-store-uri", tracking_uri(), "--artifacts-destination", str(home() / "mlflow/artifacts"))
        yield Profile(name, options)
        return
    artifacts = _artifacts()
    made = passwords()
    if postgres_url:
        at, password = address(postgres_url), os.environ.get("PGPASSWORD", "")
        require_databases(at, password)
        yield _server(at, password, made, artifacts)
        return
    with postgres(made["PGPASSWORD"]) as (at, part):
        require_databases(at, made["PGPASSWORD"])
        yield replace(_server(at, made["PGPASSWORD"], made, artifacts), parts=(part,))


def _server(at: Address, password: str, made: Mapping[str, str], artifacts: str) -> Profile:
    users = home() / "mlflow" / "users.ini"
    users.parent.mkdir(exist_ok=True)
    users.write_text(MLFLOW_USERS.format(database=at.sqlalchemy("mlflow_users"), user=USER))
    auth = f"{USER}:{made['PASSWORD']}"
    return Profile(
        name="server",
        options=(
            "--app-name", "basic-auth", "--backend-store-uri", at.sqlalchemy("mlflow"),
            "--artifacts-destination", artifacts,
        ),
        prefect={
            "PREFECT_SERVER_DATABASE_DRIVER": "postgresql+asyncpg",
            "PREFECT_SERVER_DATABASE_HOST": at.host,
            "PREFECT_SERVER_DATABASE_PORT": str(at.port),
            "PREFECT_SERVER_DATABASE_USER": at.user,
            "PREFECT_SERVER_DATABASE_NAME": "prefect",
            "PREFECT_SERVER_DATABASE_PASSWORD": password,
            "PREFECT_SERVER_API_AUTH_STRING": auth,
        },
        mlflow={
            "PGPASSWORD": password,
            "MLFLOW_AUTH_CONFIG_PATH": str(users),
            "MLFLOW_AUTH_ADMIN_PASSWORD": made["PASSWORD"],
            "MLFLOW_FLASK_SERVER_SECRET_KEY": made["MLFLOW_FLASK_SERVER_SECRET_KEY"],
        },
        access={
            "PREFECT_API_AUTH_STRING": auth,
            "MLFLOW_TRACKING_USERNAME": USER,
            "MLFLOW_TRACKING_PASSWORD": made["PASSWORD"],
            "NIGHTOWL_STORE": os.environ["NIGHTOWL_STORE"],
        },
    )  # fmt: skip


def _artifacts() -> str:
    """Where MLflow puts artifacts: beside the store, whose bucket is made where it is not there."""
    store = os.environ.get("NIGHTOWL_STORE") or access().get("NIGHTOWL_STORE", "")
    scheme, _, rest = store.partition("://")
    bucket, _, prefix = rest.strip("/").partition("/")
    if scheme != "s3" or not bucket:
        way_out = "Set it to s3://BUCKET/PREFIX, with AWS_ENDPOINT_URL where the store is not Amazon's."
        raise BadInput("NIGHTOWL_STORE", store or None, "names no S3 store, which --profile server needs", way_out)
    os.environ["NIGHTOWL_STORE"] = store
    import s3fs

    try:
        s3fs.S3FileSystem(default_fill_cache=False).makedirs(bucket, exist_ok=True)
    # botocore's errors have no class in common with s3fs's.
    except Exception as error:
        way_out = "Check that it runs, AWS_ENDPOINT_URL, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY."
        raise WorldFailed(store, f"the store does not answer ({error})", way_out) from error
    return f"s3://{bucket}/{prefix}-mlflow" if prefix else f"s3://{bucket}/mlflow"
