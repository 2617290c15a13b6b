"""infra/compose.yaml and infra/docker/Dockerfile, read by the tools that know their rules; no container is started."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from compose_spec import PyCompose

from tests.infra.programs import refusal, unknown_variables

ROOT = Path(__file__).resolve().parents[2]
INFRA = ROOT / "infra"
DOCKERFILE = INFRA / "docker" / "Dockerfile"
# What the images of others read at their start.
OF_IMAGES = {"POSTGRES_USER", "POSTGRES_DB", "POSTGRES_PASSWORD", "MINIO_ROOT_USER", "MINIO_ROOT_PASSWORD"}


def compose() -> dict[str, Any]:
    # PyYAML resolves anchors and merge keys, which compose-spec does not know.
    return yaml.safe_load((INFRA / "compose.yaml").read_text())


def problems(stack: dict[str, Any]) -> list[str]:
    """What is wrong with a compose file: the schema first, then every name that leads nowhere."""
    try:
        PyCompose.from_json(json.dumps(stack)).validate()
    except ValueError as error:
        return [str(error)]
    return [found for name in stack["services"] for found in _of_service(stack, name)]


def _of_service(stack: dict[str, Any], name: str) -> list[str]:
    services = stack["services"]
    service = services[name]
    found = []
    for other, how in service.get("depends_on", {}).items():
        if other not in services:
            found.append(f"{name} waits for {other}, which is no service")
        elif how["condition"] == "service_healthy" and "healthcheck" not in services[other]:
            found.append(f"{name} waits for {other} to be healthy, which has no healthcheck")
    for volume in service.get("volumes", []):
        source = volume.split(":")[0]
        if source.startswith("."):
            found += [] if (INFRA / source).is_file() else [f"{name} mounts {source}, which is no file"]
        elif source not in stack["volumes"]:
            found.append(f"{name} mounts {source}, which is no volume")
    command = service.get("command", [])
    given = service.get("environment", {})
    if service["image"].startswith("nightowl:"):
        said = refusal(command)
        found += [f"{name}: {said}"] if said else []
        found += [f"{name} sets {variable}, which nothing reads" for variable in unknown_variables(given)]
        listens = re.search(r"--port[= ](\d+)", " ".join(command))
        for port in service.get("ports", []):
            address, _, inside = port.split(":")
            if address != "127.0.0.1" or not listens or listens[1] != inside:
                found.append(f"{name} publishes {port}, where its command does not listen")
    else:
        found += [f"{name} sets {variable}" for variable in given if variable not in OF_IMAGES]
    for value in given.values():
        called = re.match(r"https?://([a-z0-9]+):(\d+)", value or "")
        if called and called[1] not in services:
            found.append(f"{name} calls {called[1]}, which is no service")
    return found


def test_the_stack_holds_together() -> None:
    assert problems(compose()) == []


@pytest.mark.parametrize(
    ("service", "broken", "says"),
    [
        ("data", {"prots": ["127.0.0.1:1:1"]}, "prots"),
        ("data", {"depends_on": {"prefct": {"condition": "service_healthy"}}}, "prefct, which is no service"),
        ("data", {"depends_on": {"deploy": {"condition": "service_healthy"}}}, "has no healthcheck"),
        ("data", {"volumes": ["night:/var/lib/nightowl"]}, "night, which is no volume"),
        ("data", {"volumes": ["./docker/gone.ini:/gone.ini"]}, "which is no file"),
        ("data", {"command": ["prefect", "worker", "start", "--pol", "data"]}, "--pol"),
        ("deploy", {"command": ["nightowl", "deploi"]}, "deploi"),
        ("deploy", {"command": ["nightowl", "deploy", "--pool", "x"]}, "--pool"),
        ("mlflow", {"command": ["mlflow", "server", "--prot=5000"]}, "--prot"),
        ("mlflow", {"ports": ["127.0.0.1:5000:5001"]}, "does not listen"),
        ("mlflow", {"ports": ["0.0.0.0:5000:5000"]}, "does not listen"),
        ("data", {"environment": {"PREFECT_API_ULR": "http://prefect:4200/api"}}, "PREFECT_API_ULR"),
        ("data", {"environment": {"NIGHTOWL_STOER": "s3://x"}}, "NIGHTOWL_STOER"),
        ("data", {"environment": {"MLFLOW_TRACKING_URL": "http://mlflow:5000"}}, "MLFLOW_TRACKING_URL"),
        ("data", {"environment": {"MLFLOW_TRACKING_URI": "http://mlfow:5000"}}, "mlfow, which is no service"),
    ],
)
def test_a_broken_stack_is_refused(service: str, broken: dict[str, Any], says: str) -> None:
    stack = compose()
    stack["services"][service] |= broken
    assert says in " ".join(problems(stack))


def test_every_secret_that_is_asked_for_is_made() -> None:
    made = subprocess.run(["sh", str(INFRA / "secrets.sh")], capture_output=True, text=True, check=True).stdout
    asked = set(re.findall(r"\$\{(\w+):\?", (INFRA / "compose.yaml").read_text()))
    values = dict(line.split("=", 1) for line in made.splitlines())
    assert set(values) == asked
    assert all(values.values())
    again = subprocess.run(["sh", str(INFRA / "secrets.sh")], capture_output=True, text=True, check=True).stdout
    assert again != made


def hadolint(dockerfile: Path) -> subprocess.CompletedProcess[str]:
    command = [str(Path(sys.executable).parent / "hadolint"), "--no-color", str(dockerfile)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def missing_sources(dockerfile: str) -> list[str]:
    """Sources of COPY that are not there, or that .dockerignore, which names all that may come, leaves out."""
    allowed = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [
        source for line in re.findall(r"^COPY (.+)$", dockerfile, re.MULTILINE) for source in shlex.split(line)[:-1]
    ]
    return [source for source in copied if source not in allowed or not (ROOT / source).exists()]


def test_the_dockerfile_is_sound() -> None:
    done = hadolint(DOCKERFILE)
    assert done.returncode == 0, done.stdout
    text = DOCKERFILE.read_text()
    assert missing_sources(text) == []
    targets = {service["build"]["target"] for service in compose()["services"].values() if "build" in service}
    assert targets == set(re.findall(r"^FROM \S+ AS (\w+)$", text, re.MULTILINE))


def test_a_broken_dockerfile_is_refused(tmp_path: Path) -> None:
    broken = tmp_path / "Dockerfile"
    broken.write_text(DOCKERFILE.read_text().replace("slim-bookworm AS cpu", "slim-bookworm AS cpu\nRUN cd /opt", 1))
    done = hadolint(broken)
    assert done.returncode != 0
    assert "DL3003" in done.stdout
    assert missing_sources("COPY taks taks\nCOPY tests tests\n") == ["taks", "tests"]
