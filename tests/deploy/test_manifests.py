"""k8s/ and the chart's own files follow from the chart, and kubectl makes of them what was meant."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from chart import CHART, ROOT, Object, containers, helm
from inline_snapshot import snapshot

from tailrun import VERSION

KUSTOMIZATIONS = ("base", "overlays/dev", "overlays/prod")


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
    for path in [*(ROOT / "k8s/base").iterdir(), *(ROOT / "k8s/overlays/prod").iterdir()]:
        assert "kind: Secret\n" not in path.read_text()


# -- what kubectl makes ----------------------------------------------------------------------


@cache
def built(name: str) -> list[Object]:
    """Return the objects of a kustomization, as kubectl builds them."""
    if shutil.which("kubectl") is None:
        pytest.skip("NOT TESTED: kustomizations are built by kubectl, which is not on PATH")
    done = subprocess.run(
        ["kubectl", "kustomize", f"k8s/{name}"], cwd=ROOT, capture_output=True, text=True, check=False
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


def settings(file: Path) -> dict[str, str]:
    lines = [line for line in file.read_text().splitlines() if line and not line.startswith("#")]
    return {name: value for name, _, value in (line.partition("=") for line in lines)}
