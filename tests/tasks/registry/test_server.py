"""The same registry on a team's MLflow: over HTTP with basic-auth, PostgreSQL behind it and artifacts on S3."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from loopback_mlflow import serve_mlflow
from rush import Rush

from tasks import registry
from tasks.errors import Refused, WorldFailed
from tasks.prune import prune
from tasks.register import promote, rollback
from tasks.registry import Decision, Version


@pytest.fixture
def server(postgres: Any, moto: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Such a server; MLFLOW_TRACKING_URI and the credentials of a user lead to it."""
    import boto3

    keys = {"AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", "AWS_DEFAULT_REGION": "us-east-1"}
    client = boto3.client(
        "s3",
        endpoint_url=moto,
        region_name="us-east-1",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    )
    client.create_bucket(Bucket="mlflow")
    (tmp_path / "auth.ini").write_text(
        f"[mlflow]\ndefault_permission = READ\ndatabase_uri = sqlite:///{tmp_path}/auth.db\nadmin_username = admin\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 300\n"  # a password is hashed once, not at each of some hundred requests
    )
    options = ["--backend-store-uri", postgres.new_database(), "--artifacts-destination", "s3://mlflow"]
    environment = {
        **keys,
        "MLFLOW_S3_ENDPOINT_URL": moto,
        "MLFLOW_AUTH_CONFIG_PATH": str(tmp_path / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": "a long enough secret",
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "another secret",
    }
    with serve_mlflow([*options, "--app-name", "basic-auth"], environment, tmp_path / "server.log") as url:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", url)
        monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "admin")
        monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "a long enough secret")
        yield url
    stored = client.list_objects_v2(Bucket="mlflow").get("Contents", [])
    assert [entry["Key"] for entry in stored if entry["Key"].endswith("adapter_model.safetensors")]
    for entry in stored:
        client.delete_object(Bucket="mlflow", Key=entry["Key"])
    client.delete_bucket(Bucket="mlflow")


def test_a_server_is_used_as_the_embedded_database_is(
    server: str,
    world: Any,
    make: Callable[..., Any],
    enter: Callable[[Any], Version],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first, second = enter(world), enter(make(seed=1))
    assert enter(world) == first
    assert promote(first).moved
    # Whoever was judged against an older champion is judged again.
    with pytest.raises(Refused, match=r"champion is version 1 now\. Evaluate it again"):
        promote(second)
    assert promote(enter(make(seed=1, champion=world.adapter.address))).moved
    assert rollback(first.model, who="ada", why="worse at night").to == 1
    champion = registry.champion(world.recipe)
    assert champion is not None
    assert champion.version == 1
    assert [c.aliases for c in registry.candidates(world.recipe)] == [("previous",), ("champion",)]
    assert [move.moved for move in registry.moves(registry.client(), first.model)] == [True, False, True, True]
    assert {night.outcome for night in registry.nights(world.recipe.name)} == {"kept"}
    assert registry.read_record(first).adapter == world.adapter
    registry.download_adapter(first, tmp_path / "got")
    assert (tmp_path / "got" / "adapter_model.safetensors").is_file()

    # Another home on the same server knows of it all.
    monkeypatch.setenv("NIGHTOWL_HOME", str(tmp_path / "second-home"))
    found = registry.containing_source(registry.pinned(world.snapshots[0].uri, world.snapshots[0].revision))
    assert [entry.version for entry in found.versions] == [2, 1]
    assert registry.champion(world.recipe) == champion

    # What the policy does not keep goes, from the server and from S3.
    third = enter(make(seed=2, champion=world.adapter.address))
    later = time.time() + 100 * 86_400
    monkeypatch.setattr("tasks.prune.now", lambda: later)
    policy = world.recipe.registry.model_copy(update={"keep_versions": 1})
    mlflow = registry.client()
    mlflow.delete_registered_model_alias(first.model, "challenger")
    mlflow.set_registered_model_alias(first.model, "candidate", "2")
    few = world.recipe.model_copy(update={"registry": policy})
    assert [r.name for r in prune(few, world.store, for_real=True).removals if r.what == "version"] == []
    fourth = enter(make(seed=3, champion=world.adapter.address))
    mlflow.delete_registered_model_alias(first.model, "challenger")
    removed = [r.name for r in prune(few, world.store, for_real=True).removals if r.what == "version"]
    assert removed == [f"{first.model} {third.version}"]
    assert registry.get(first.model, third.version) is None
    assert registry.read_record(fourth).adapter.address == fourth.adapter
    assert registry.moves(mlflow, first.model)[-1].kind == "prune"

    # And two homes cannot both win: they share no lock file, only the server.
    rush = Rush()
    rush.register(mlflow)
    registry.move(mlflow, rush.model, "promote", 1, lambda found, previous: Decision(1, "first"), "start", "")
    rush(
        [tmp_path / "nightowl-home", tmp_path / "second-home"],
        server,
        workers=8,
        attempts=5,
        doomed=("between", "after"),
    )

    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "guessed")
    with pytest.raises(WorldFailed, match="MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"):
        registry.champion(world.recipe)
