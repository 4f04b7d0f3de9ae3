"""k8s/ and the chart's own files follow from the chart, and kubectl makes of them what was meant."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from chart import CHART, ROOT, Object, containers, helm
from inline_snapshot import snapshot

from tailrun import VERSION

sys.path.append(str(ROOT / "scripts"))
import manifests

KUSTOMIZATIONS = ("base", "overlays/dev", "overlays/prod")
COMPONENTS = ("worker-keda", "worker-hpa", "api-hpa")


def test_made_files_are_in_step() -> None:
    """`make manifests` has nothing to write: schema, README, alerts, k8s/."""
    done = subprocess.run(
        [sys.executable, "scripts/manifests.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_every_value_is_described() -> None:
    """Each row of the README's table says what the value is for."""
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \| (.*) \|$", (CHART / "README.md").read_text(), re.MULTILINE)
    assert len(rows) > 100
    assert [name for name, _, meaning in rows if len(meaning) < 6] == []


def test_the_chart_s_versions_are_the_project_s() -> None:
    """The default tag of the images is the release that the chart came with."""
    with helm.Chart.load(CHART) as chart:
        assert chart.metadata["appVersion"] == chart.metadata["version"] == VERSION


def test_files_of_the_base_are_named_for_what_is_in_them() -> None:
    """Names that documents and people rely on."""
    assert sorted(path.name for path in (ROOT / "k8s/base").iterdir()) == snapshot(
        [
            "accounts.yaml",
            "api-deployment.yaml",
            "config.env",
            "image-policy.yaml",
            "kustomization.yaml",
            "limit-range.yaml",
            "namespaces.yaml",
            "network-policies-tools.yaml",
            "network-policies.yaml",
            "pod-disruption-budgets.yaml",
            "priority-class.yaml",
            "resource-quota.yaml",
            "services.yaml",
            "worker-deployment.yaml",
            "worker-role.yaml",
        ]
    )


def test_the_base_holds_no_secret() -> None:
    """They come from an overlay, or are made beforehand."""
    for path in [*(ROOT / "k8s/base").iterdir(), *(ROOT / "k8s/overlays/prod").rglob("*.*")]:
        assert "kind: Secret\n" not in path.read_text()


# -- what kubectl makes ----------------------------------------------------------------------


@cache
def built(name: str) -> list[Object]:
    """Return the objects of a kustomization, as kubectl builds them."""
    return build(ROOT / "k8s" / name)


def build(folder: Path) -> list[Object]:
    if shutil.which("kubectl") is None:
        pytest.skip("NOT TESTED: kustomizations are built by kubectl, which is not on PATH")
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "deprecated" not in done.stderr
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def one(name: str, kind: str, prefix: str) -> Object:
    [found] = [e for e in built(name) if e["kind"] == kind and e["metadata"]["name"].startswith(prefix)]
    return found


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_a_kustomization_builds_valid_objects(name: str) -> None:
    """Valid to Kubernetes, with nothing of Helm's in them."""
    assert len(built(name)) > 25
    for each in built(name):
        kubernetes_validate.validate(each, "1.36", strict=True)
        assert "helm.sh/hook" not in each["metadata"].get("annotations", {})


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_everything_that_is_referred_to_is_there(name: str) -> None:
    """ConfigMaps and Secrets by the names that kustomize gave them; the credentials may be made by hand."""
    there = {(e["kind"], e["metadata"]["name"]) for e in built(name)}
    by_hand = {("Secret", "tailrun-credentials"), ("Secret", "tailrun-api-token")}
    for each in built(name):
        if each["kind"] not in {"Deployment", "StatefulSet"}:
            continue
        for container in containers(each["spec"]["template"]):
            sources = container.get("envFrom", [])
            wanted = {("ConfigMap", e["configMapRef"]["name"]) for e in sources if "configMapRef" in e}
            wanted |= {("Secret", e["secretRef"]["name"]) for e in sources if "secretRef" in e}
            keys = [e["valueFrom"]["secretKeyRef"] for e in container.get("env", []) if "valueFrom" in e]
            wanted |= {("Secret", e["name"]) for e in keys}
            assert wanted - there - by_hand == set()


def test_settings_change_the_name_of_their_map() -> None:
    """So pods restart when a setting changes, and each overlay has its own."""
    names = {one(name, "ConfigMap", "tailrun-config")["metadata"]["name"] for name in KUSTOMIZATIONS}
    assert len(names) == 3
    assert all(re.fullmatch(r"tailrun-config-\w{10}", each) for each in names)


def test_dev_brings_its_servers() -> None:
    """Redis, PostgreSQL and S3 in the cluster, reachable through the policies."""
    sets = {each["metadata"]["name"] for each in built("overlays/dev") if each["kind"] == "StatefulSet"}
    assert sets == {"tailrun-redis", "tailrun-postgresql", "tailrun-s3"}
    api = one("overlays/dev", "Deployment", "agent-api")["spec"]
    assert api["replicas"] == 1
    env = {each["name"]: each.get("value") for each in api["template"]["spec"]["containers"][0]["env"]}
    assert str(env["DATABASE_URL"]).endswith("@tailrun-postgresql:5432/tailrun")
    egress = one("overlays/dev", "NetworkPolicy", "agent-worker")["spec"]["egress"]
    assert {port["port"] for rule in egress for port in rule.get("ports", [])} >= {5432, 6379, 7070}


def test_prod_names_its_images_everywhere() -> None:
    """The application's in the pods, the tools' in the settings and in the policy."""
    for name in ("agent-api", "agent-worker"):
        pod = one("overlays/prod", "Deployment", name)["spec"]["template"]
        assert {each["image"] for each in containers(pod)} == {"registry.example/team/tailrun:0.1.0"}
    image = one("overlays/prod", "ConfigMap", "tailrun-config")["data"]["TOOL_IMAGE"]
    for policy in [e for e in built("overlays/prod") if e["kind"] == "ValidatingAdmissionPolicy"]:
        [images] = policy["spec"]["variables"]
        assert re.search(json.loads(images["expression"]), image)
    assert one("overlays/prod", "Ingress", "agent-api")["spec"]["rules"][0]["host"] == "tailrun.example.com"


def test_the_files_are_readable() -> None:
    """No anchors, no long lines of JSON."""
    for path in Path(ROOT / "k8s").rglob("*.yaml"):
        assert not re.search(r": [&*]id\d", path.read_text()), path


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_the_chart_and_the_overlay_run_with_the_same_settings(name: str) -> None:
    """`deploy.sh --overlay` with and without `--helm`; only images are named in two places."""
    folder = ROOT / "k8s/overlays" / name
    [generated] = yaml.safe_load((folder / "kustomization.yaml").read_text())["configMapGenerator"]
    assert generated["envs"] == ["config.env"]
    assert {each.partition("=")[0] for each in generated.get("literals", ())} <= {"TOOL_IMAGE"}
    overlay = settings(ROOT / "k8s/base/config.env") | settings(folder / "config.env")
    values = yaml.safe_load((folder / "values.yaml").read_text())
    set_by_deploy = {
        "apiToken": {"existingSecret": {"name": "t"}},
        "secrets": {"existing": ["s"]},
        "image": {"repository": "tailrun"},
        "tools": {"image": {"repository": "tailrun-toolbox"}, **values.get("tools", {})},
    }
    values |= set_by_deploy
    with helm.Chart.load(CHART) as chart:
        rendered = chart.render(values, name="tailrun", namespace="agents")
    [config] = [yaml.safe_load(text) for path, text in rendered.items() if path.endswith("/config.yaml")]
    images = {"TOOL_IMAGE"}
    assert {k: v for k, v in config["data"].items() if k not in images} == {
        k: v for k, v in overlay.items() if k not in images
    }


@pytest.mark.parametrize("name", ["dev", "prod"])
def test_the_chart_and_the_overlay_make_the_same_objects(name: str) -> None:
    """Whatever the overlay's values change: who may do what, what is reached, how long a pod may take."""
    values = [
        manifests._load(ROOT / path) for path in ("k8s/values.yaml", f"k8s/overlays/{name}/values.yaml")
    ]
    by_hand = {"tool-files"} if name == "prod" else set[str]()  # its store's ranges
    there = {manifests.identity(each): each for each in map(plain, built(f"overlays/{name}"))}
    for made in chart_objects(manifests._merge(*values)):
        kind, _, called = identity = manifests.identity(made)
        if kind not in {"Secret", "ConfigMap", "ValidatingAdmissionPolicy"} and called not in by_hand:
            assert there.get(identity) == plain(made), identity


@pytest.mark.parametrize("name", COMPONENTS)
def test_the_chart_and_the_component_scale_alike(name: str, tmp_path: Path) -> None:
    """On top of the base a component makes just what the chart makes of its values."""
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    top = tmp_path / "k8s/top"
    top.mkdir()
    (top / "kustomization.yaml").write_text(f"resources: [../base]\ncomponents: [../components/{name}]\n")
    values = [
        manifests._load(ROOT / path) for path in ("k8s/values.yaml", f"k8s/components/{name}/values.yaml")
    ]
    made = [each for each in chart_objects(manifests._merge(*values)) if each["kind"] != "ConfigMap"]
    found = [each for each in build(top) if each["kind"] != "ConfigMap"]
    assert {manifests.identity(each): plain(each) for each in found} == {
        manifests.identity(each): plain(each) for each in made
    }


@pytest.mark.parametrize("workers", ["worker-keda", "worker-hpa"])
def test_prod_scales_by_choice(workers: str, tmp_path: Path) -> None:
    """The lines of its kustomization as they stand, without their marks; the token by its real name."""
    shutil.copytree(ROOT / "k8s", tmp_path / "k8s")
    folder = tmp_path / "k8s/overlays/prod"
    file = folder / "kustomization.yaml"
    text = file.read_text()
    for name in (workers, "api-hpa"):
        assert text.count(f"  # - ../../components/{name}\n") == 1
        text = text.replace(f"  # - ../../components/{name}\n", f"  - ../../components/{name}\n")
    file.write_text(
        text + "secretGenerator:\n- {name: tailrun-api-token, namespace: agents, literals: [a=b]}\n"
    )
    objects = build(folder)
    scalers = {(e["kind"], e["metadata"]["name"]) for e in objects if "scaleTargetRef" in e.get("spec", {})}
    kind = "ScaledObject" if workers == "worker-keda" else "HorizontalPodAutoscaler"
    assert scalers == {(kind, "agent-worker"), ("HorizontalPodAutoscaler", "agent-api")}
    assert ["replicas" in e["spec"] for e in objects if e["kind"] == "Deployment"] == [False, False]
    [secret] = [e["metadata"]["name"] for e in objects if e["kind"] == "Secret"]
    for each in objects:
        if each["kind"] == "TriggerAuthentication":
            assert each["spec"]["secretTargetRef"][0]["name"] == secret != "tailrun-api-token"


def test_dev_goes_on_without_workers() -> None:
    """WORKER_FALLBACK_S is set, and with it the API has all that its worker needs."""
    assert settings(ROOT / "k8s/overlays/dev/config.env")["WORKER_FALLBACK_S"] == "15"
    api = one("overlays/dev", "Deployment", "agent-api")["spec"]["template"]["spec"]
    worker = one("overlays/dev", "Deployment", "agent-worker")["spec"]["template"]["spec"]
    assert api["automountServiceAccountToken"] is True
    assert api["terminationGracePeriodSeconds"] >= worker["terminationGracePeriodSeconds"]
    [container] = api["containers"]
    assert not {e["name"] for e in container["env"]} & {"LLM_KEY", "LLM_PROXY", "PROJECTS_TOKEN"}
    bound = one("overlays/dev", "RoleBinding", "agent-worker")["subjects"]
    assert {each["name"] for each in bound} == {"agent-api", "agent-worker"}
    for name in ("overlays/prod", "base"):
        assert (
            one(name, "Deployment", "agent-api")["spec"]["template"]["spec"]["automountServiceAccountToken"]
            is False
        )
        assert [e["name"] for e in one(name, "RoleBinding", "agent-worker")["subjects"]] == ["agent-worker"]


def chart_objects(values: Object) -> Iterator[Object]:
    return (each for objects in manifests.render(values).values() for each in objects)


def plain(made: Object) -> Object:
    """Without what differs by design: hashes in names, the registry of the images, the order of variables."""
    text = re.sub(
        r"\b(tailrun-(?:config|api-token|redis|postgresql|s3))-[a-z0-9]{10}\b", r"\1", json.dumps(made)
    )
    found = json.loads(text.replace("registry.example/team/tailrun", "tailrun"))
    pod = found.get("spec", {}).get("template", {}).get("spec", {})
    for each in pod.get("containers", []):
        each.get("env", []).sort(key=lambda variable: variable["name"])
    return found


def settings(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}
