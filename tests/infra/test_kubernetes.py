"""infra/kubernetes against Kubernetes' own schemas, strictly; the job template as Prefect's worker renders it."""

from __future__ import annotations

import asyncio
import copy
import json
import shutil
import subprocess
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
import yaml

from flows.placement import _size
from tasks.recipe import Training
from tests.infra.programs import refusal, unknown_variables

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "infra" / "kubernetes"
KUSTOMIZATION = yaml.safe_load((MANIFESTS / "kustomization.yaml").read_text())
OBJECTS = [thing for name in KUSTOMIZATION["resources"] for thing in yaml.safe_load_all((MANIFESTS / name).read_text())]


def valid(thing: dict[str, Any]) -> None:
    kubernetes_validate.validate(thing, kubernetes_validate.latest_version(), strict=True)


def names() -> set[tuple[str, str]]:
    generated = {("ConfigMap", one["name"]) for one in KUSTOMIZATION["configMapGenerator"]}
    generated |= {("Secret", one["name"]) for one in KUSTOMIZATION["secretGenerator"]}
    return generated | {(thing["kind"], thing["metadata"]["name"]) for thing in OBJECTS}


@cache
def secrets() -> dict[str, str]:
    """What infra/secrets.sh makes."""
    made = subprocess.run(["sh", str(ROOT / "infra" / "secrets.sh")], capture_output=True, text=True, check=True).stdout
    return dict(line.split("=", 1) for line in made.splitlines())


def dangling(thing: dict[str, Any]) -> list[str]:
    """What a workload's pod names that is not there, and commands that its program refuses."""
    pod = thing["spec"]["template"]["spec"]
    uses = {("ServiceAccount", pod["serviceAccountName"])} if "serviceAccountName" in pod else set()
    for volume in pod.get("volumes", []):
        uses |= {("ConfigMap", volume["configMap"]["name"])} if "configMap" in volume else set()
        claim = volume.get("persistentVolumeClaim")
        uses |= {("PersistentVolumeClaim", claim["claimName"])} if claim else set()
    found = []
    for container in [*pod.get("initContainers", []), *pod["containers"]]:
        for source in container.get("envFrom", []):
            uses |= {("ConfigMap", source["configMapRef"]["name"])} if "configMapRef" in source else set()
            uses |= {("Secret", source["secretRef"]["name"])} if "secretRef" in source else set()
        keys = [one["valueFrom"]["secretKeyRef"] for one in container.get("env", []) if "valueFrom" in one]
        uses |= {("Secret", key["name"]) for key in keys}
        found += [f"{key['key']} is no secret that is made" for key in keys if key["key"] not in secrets()]
        mounted = {mount["name"] for mount in container.get("volumeMounts", [])}
        found += [f"{name} is no volume" for name in mounted - {volume["name"] for volume in pod.get("volumes", [])}]
        ports = {port["name"] for port in container.get("ports", [])}
        probes = [container[probe] for probe in ("startupProbe", "livenessProbe") if probe in container]
        found += [f"{p['httpGet']['port']} is no port" for p in probes if p["httpGet"]["port"] not in ports]
        said = refusal(container["command"]) if "command" in container else ""
        found += [said] if said else []
    return found + [f"{kind} {name} is not there" for kind, name in sorted(uses - names())]


def workloads() -> dict[str, dict[str, Any]]:
    return {thing["metadata"]["name"]: thing for thing in OBJECTS if thing["kind"] in ("Deployment", "Job")}


@pytest.mark.parametrize("thing", OBJECTS, ids=lambda thing: f"{thing['kind']}-{thing['metadata']['name']}")
def test_every_object_is_valid(thing: dict[str, Any]) -> None:
    valid(thing)
    with pytest.raises(kubernetes_validate.ValidationError):
        valid({**thing, "specc": {}})


def test_every_name_leads_somewhere() -> None:
    assert set(workloads()) == {"prefect", "mlflow", "deploy", "hook", "data", "gpu"}
    assert {name: dangling(thing) for name, thing in workloads().items() if dangling(thing)} == {}
    for thing in OBJECTS:
        if thing["kind"] == "Service" and thing["metadata"]["name"] != "rendezvous":
            pod = workloads()[thing["metadata"]["name"]]["spec"]["template"]
            assert thing["spec"]["selector"].items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        (["containers", 0, "envFrom", 0, "configMapRef", "name"], "setings", "ConfigMap setings is not there"),
        (["containers", 0, "volumeMounts", 0, "name"], "night", "night is no volume"),
        (["containers", 0, "livenessProbe", "httpGet", "port"], "htp", "htp is no port"),
        (["containers", 0, "command", 2], "strat", "strat"),
        (
            ["containers", 0, "env"],
            [{"valueFrom": {"secretKeyRef": {"name": "secrets", "key": "X"}}}],
            "X is no secret",
        ),
        (["volumes", 0, "persistentVolumeClaim", "claimName"], "night", "PersistentVolumeClaim night is not there"),
    ],
)
def test_a_broken_reference_is_refused(path: list[Any], value: Any, says: str) -> None:
    thing = copy.deepcopy(workloads()["data"])
    where: Any = thing["spec"]["template"]["spec"]
    for step in path[:-1]:
        where = where[step]
    where[path[-1]] = value
    assert says in " ".join(dangling(thing))


def test_every_setting_is_read_by_someone() -> None:
    settings = {line.split("=", 1)[0] for line in (MANIFESTS / "settings.env").read_text().splitlines()}
    # POSTGRES_PASSWORD is for the database of the compose file.
    assert unknown_variables([*settings, *secrets()]) == ["POSTGRES_PASSWORD"]
    assert settings & secrets().keys() == set()


def rendered(template: dict[str, Any], **values: Any) -> dict[str, Any]:
    from prefect.client.orchestration import PrefectClient
    from prefect.client.schemas.objects import FlowRun
    from prefect_kubernetes.worker import KubernetesWorkerJobConfiguration

    async def configure() -> KubernetesWorkerJobConfiguration:
        # The template names no block, so nothing is asked of this address; without a client a server would be started.
        async with PrefectClient("http://127.0.0.1:9/api") as client:
            return await KubernetesWorkerJobConfiguration.from_template_and_values(template, values, client=client)

    configuration = asyncio.run(configure())
    configuration.prepare_for_flow_run(FlowRun(id=uuid4(), name="a night", flow_id=uuid4()))
    job = configuration.job_manifest
    # prefect-kubernetes asks for both in the pod's spec, where Kubernetes ignores them.
    for misplaced in ("parallelism", "completions"):
        del job["spec"]["template"]["spec"][misplaced]
    return job


def test_the_gpu_pool_renders_to_a_valid_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    template = json.loads((MANIFESTS / "gpu-pool.json").read_text())
    job = rendered(template)
    valid(job)
    assert dangling(job) == []
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert container["command"] == ["python", "-m", "flows.node"]
    assert container["args"][:2] == ["prefect", "flow-run"]
    assert "{{" not in json.dumps(job)

    template["job_configuration"]["job_manifest"]["spec"]["template"]["spec"]["containers"][0]["imge"] = "x"
    with pytest.raises(kubernetes_validate.ValidationError, match="imge"):
        valid(rendered(template))


def test_a_training_over_several_nodes_is_an_indexed_job_whose_pods_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    training = Training(backend="transformers", nodes=3, processes=2, batch_size=6, rendezvous="rendezvous:29400")
    asked = _size(SimpleNamespace(training=training), "train-adapter")
    job = rendered(json.loads((MANIFESTS / "gpu-pool.json").read_text()), **asked)
    valid(job)
    spec = job["spec"]
    assert (spec["completionMode"], spec["parallelism"], spec["completions"]) == ("Indexed", 3, 3)
    # The stage is the first pod's; with it the Job has succeeded, and the others are ended.
    assert spec["successPolicy"] == {"rules": [{"succeededIndexes": "0"}]}
    pod = spec["template"]
    assert pod["spec"]["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 2
    (service,) = (thing for thing in OBJECTS if thing["metadata"]["name"] == "rendezvous")
    # Kubernetes itself sets the index as a label.
    labels = {**pod["metadata"]["labels"], "batch.kubernetes.io/job-completion-index": "0"}
    assert service["spec"]["selector"].items() <= labels.items()
    assert set(service["spec"]["selector"]) == {"nightowl/pool", "batch.kubernetes.io/job-completion-index"}
    assert f"rendezvous:{service['spec']['ports'][0]['port']}" == training.rendezvous
    for stage in ("evaluate", "prepare-data"):
        assert _size(SimpleNamespace(training=training), stage) is None


def kustomize(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
def test_kustomize_builds_valid_objects(tmp_path: Path) -> None:
    folder = tmp_path / "kubernetes"
    shutil.copytree(MANIFESTS, folder, ignore=shutil.ignore_patterns("secrets.env"))
    assert "secrets.env" in kustomize(folder).stderr
    made = subprocess.run(["sh", str(ROOT / "infra" / "secrets.sh")], capture_output=True, check=True).stdout
    (folder / "secrets.env").write_bytes(made)
    done = kustomize(folder)
    assert done.returncode == 0, done.stderr
    built = list(yaml.safe_load_all(done.stdout))
    for thing in built:
        valid(thing)
    assert {(thing["kind"], thing["metadata"]["name"]) for thing in built} == names()
    assert {thing["metadata"].get("namespace", "nightowl") for thing in built} == {"nightowl"}
    assert "image: nightowl\n" not in done.stdout
