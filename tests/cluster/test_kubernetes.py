"""The Kubernetes manifests: against KubeRay's schemas, resolved by kubectl and by ourselves."""

from __future__ import annotations

import functools
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from . import kustomize

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = ROOT / "cluster" / "kubernetes"
SCHEMAS = ROOT.parent / "shared" / "schemas" / "kuberay"
OVERLAYS = ["common", "base", "job", "overlays/object-storage"]


def objects(overlay: str) -> dict[str, dict[str, Any]]:
    return {each["kind"]: each for each in kustomize.resolve(MANIFESTS / overlay)}


def ray_pods(overlay: str) -> list[dict[str, Any]]:
    return [pod for each in kustomize.resolve(MANIFESTS / overlay) for pod in kustomize.pods(each)]


def closed(schema: Any) -> Any:
    """A schema that allows no key it does not name, as Kubernetes' strict validation does."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    names = schema.get("properties")
    inner = {key: closed(value) for key, value in schema.items() if key != "properties"}
    if names is not None:
        inner["properties"] = {name: closed(value) for name, value in names.items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            inner.setdefault("additionalProperties", False)
    return inner


@functools.cache
def validator(kind: str) -> Draft202012Validator:
    file = SCHEMAS / f"{kind.lower()}s.v1.schema.json"
    if not file.exists():
        pytest.skip("KubeRay's schemas are not here")
    schema = closed(json.loads(file.read_text()))
    schema["properties"]["metadata"] = {"type": "object"}  # Kubernetes' own, which these schemas leave open
    return Draft202012Validator(schema)


def errors(kind: str, value: dict[str, Any]) -> list[str]:
    found = validator(kind).iter_errors(value)
    return [f"{'/'.join(map(str, error.absolute_path))}: {error.message}" for error in found]


@pytest.mark.parametrize(("overlay", "kind"), [("base", "RayCluster"), ("job", "RayJob"), (OVERLAYS[3], "RayJob")])
def test_kuberay_accepts_them(overlay: str, kind: str) -> None:
    assert errors(kind, objects(overlay)[kind]) == []


def test_a_misspelt_key_or_a_wrong_type_would_be_seen() -> None:
    cluster = objects("base")["RayCluster"]
    cluster["spec"]["authOptions"]["modes"] = "token"
    cluster["spec"]["workerGroupSpecs"][0]["maxReplicas"] = "8"
    cluster["spec"]["headGroupSpec"]["template"]["spec"]["containers"][0]["livenessProb"] = {}
    text = "\n".join(errors("RayCluster", cluster))
    assert "'modes' was unexpected" in text
    assert "'8' is not of type 'integer'" in text
    assert "'livenessProb' was unexpected" in text


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_kubectl_resolves_them_alike(overlay: str) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        ["kubectl", "kustomize", str(MANIFESTS / overlay)], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    theirs = {(each["kind"], each["metadata"]["name"]): each for each in yaml.safe_load_all(done.stdout)}
    ours = {(each["kind"], each["metadata"]["name"]): each for each in kustomize.resolve(MANIFESTS / overlay)}
    assert ours == theirs


def test_every_file_belongs_to_a_kustomization() -> None:
    named = set()
    for overlay in OVERLAYS:
        plan = yaml.safe_load((MANIFESTS / overlay / "kustomization.yaml").read_text())
        named |= {(MANIFESTS / overlay / name).resolve() for name in plan["resources"]}
        named |= {(MANIFESTS / overlay / patch["path"]).resolve() for patch in plan.get("patches", [])}
    files = {file.resolve() for file in MANIFESTS.rglob("*.yaml") if file.name != "kustomization.yaml"}
    assert files <= named


def test_own_resolution_refuses_what_does_not_apply(tmp_path: Path) -> None:
    (tmp_path / "pod.yaml").write_text("kind: Pod\nmetadata: {name: a}\nspec: {containers: [{image: x}]}\n")
    (tmp_path / "patch.yaml").write_text("- {op: test, path: /spec/containers/0/image, value: y}\n")
    plan = {"resources": ["pod.yaml"], "patches": [{"path": "patch.yaml", "target": {"kind": "Pod", "name": "a"}}]}
    for change, message in (
        ({}, "'x' is there, not 'y'"),
        ({"resources": ["gone.yaml"]}, "does not exist"),
        ({"patches": [{"path": "patch.yaml", "target": {"kind": "Pod", "name": "b"}}]}, "0 times"),
        ({"components": []}, "not known here"),
    ):
        (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump({**plan, **change}))
        with pytest.raises(ValueError, match=message):
            kustomize.resolve(tmp_path)


def test_job_and_cluster_are_the_same_ray_cluster() -> None:
    assert objects("job")["RayJob"]["spec"]["rayClusterSpec"] == objects("base")["RayCluster"]["spec"]


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_no_pod_has_rights_it_does_not_need(overlay: str) -> None:
    assert len(ray_pods(overlay)) >= 2
    for pod in ray_pods(overlay):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in kustomize.containers(pod):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert set(container["resources"]) == {"requests", "limits"}
            assert {"cpu", "memory"} <= set(container["resources"]["limits"])
            assert container["image"] == "REPLACE_REGISTRY/cdn-tune:0.1.0"


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_ray_pods_are_probed_and_mount_what_is_there(overlay: str) -> None:
    pods = [pod for pod in ray_pods(overlay) if pod["containers"][0]["name"].startswith("ray-")]
    assert [pod["containers"][0]["name"] for pod in pods] == ["ray-head", "ray-worker"]
    for pod in pods:
        (container,) = pod["containers"]
        assert {"livenessProbe", "readinessProbe"} <= set(container)
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
        environment = {entry["name"]: entry["value"] for entry in container["env"]}
        assert environment["CDN_TUNE_CACHE"] == mounted["cache"]
        claims = [volume["persistentVolumeClaim"]["claimName"] for volume in pod["volumes"] if "emptyDir" not in volume]
        existing = objects(overlay).get("PersistentVolumeClaim")
        assert claims == ([existing["metadata"]["name"]] if existing else [])


def test_small_files_are_fetched_before_ray_starts(tmp_path: Path) -> None:
    """The init container's own program, given a folder in place of the bucket."""
    spec = objects(OVERLAYS[3])["RayJob"]["spec"]
    cluster = spec["rayClusterSpec"]
    pods = [cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]]
    assert pods[0]["initContainers"] == pods[1]["initContainers"]
    (fetch,) = pods[0]["initContainers"]
    python, option, program, source, target = fetch["command"]
    assert (python, option) == ("python", "-c")
    assert source.startswith("s3://")
    assert f"data.root={target.rstrip('/')} " in spec["entrypoint"]
    (tmp_path / "bucket").mkdir()
    (tmp_path / "bucket" / "charades_sta_train.txt").write_text("moments")
    command = [sys.executable, "-c", program, f"file://{tmp_path}/bucket", f"{tmp_path}/cache/data/"]
    subprocess.run(command, check=True, timeout=60)
    assert (tmp_path / "cache" / "data" / "charades_sta_train.txt").read_text() == "moments"


@pytest.mark.parametrize("path", ["/api/local_raylet_healthz", "/api/gcs_healthz"])
def test_probes_ask_addresses_that_need_no_token(path: str) -> None:
    """Probes carry no token: in Ray's sources these addresses are served, and exempt from authentication."""
    import ray.dashboard

    sources = [file.read_text() for file in Path(ray.dashboard.__path__[0]).rglob("*.py")]
    assert any(f'@routes.get("{path}")' in text for text in sources)
    exempt = [text for text in sources if "get_token_auth_middleware" in text and f'"{path}"' in text]
    assert exempt


@pytest.mark.parametrize("overlay", OVERLAYS[1:])
def test_authentication_is_on_and_workers_come_from_none(overlay: str) -> None:
    made = objects(overlay)
    spec = made["RayCluster"]["spec"] if "RayCluster" in made else made["RayJob"]["spec"]["rayClusterSpec"]
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["enableInTreeAutoscaling"] is True
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"]
        limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
        assert limits["nvidia.com/gpu"] == 1
    from importlib.metadata import version

    assert spec["rayVersion"] == version("ray")


def test_the_job_runs_a_search_that_the_command_line_accepts() -> None:
    """Its options exist, its space is shipped, and its paths are on the volume."""
    import shlex

    from typer.main import get_command

    from cdn_tune.cli.app import app
    from cdn_tune.config import load_space

    group: Any = get_command(app)
    for overlay, root in (("job", "/runs/"), (OVERLAYS[3], "s3://REPLACE_BUCKET/")):
        words = shlex.split(objects(overlay)["RayJob"]["spec"]["entrypoint"])
        assert words[:2] == ["cdn-tune", "search"]
        context = group.make_context("cdn-tune", words[1:])
        search = group.commands["search"]
        start = search.commands["start"]
        parsed = start.make_context("search", words[2:], parent=context).params
        assert str(parsed["address"]) == "auto"
        assert words[words.index("--run") + 1].startswith(root)
        load_space(parsed["space"], {})
