"""`deploy.sh` against recording programs: what it asks the cluster, in which order, what it never shows."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.recording_programs import Recorder

from app.config import VARIABLES

SCRIPT = str(Path(__file__).resolve().parents[2] / "deploy.sh")
MANIFESTS = """apiVersion: v1
kind: Namespace
metadata:
  name: agents
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: tailrun-config-abc123
  namespace: agents
data:
  TOOL_IMAGE: registry.example/team/tailrun-toolbox:0.1.0
---
apiVersion: v1
kind: Secret
metadata:
  name: tailrun-credentials-abc
  namespace: agents
---
kind: Policy
metadata:
  name: images
  expression: '"^(registry\\\\.example/team/tailrun-toolbox:[A-Za-z0-9_.:@-]*)$"'
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: agent-api
  namespace: agents
spec:
  image: registry.example/team/tailrun:0.1.0
  envFrom:
  - configMapRef:
      name: tailrun-config-abc123
---
apiVersion: apps/v1
kind: Deployment
metadata:
  name: agent-worker
  namespace: agents
spec:
  image: registry.example/team/tailrun:0.1.0
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: agent-worker
"""
SECRETS = {
    "API_TOKEN": "secret-token-1",
    "DATABASE_URL": "postgresql://tailrun:secret-password-2@db/tailrun",
    "REDIS_URL": "rediss://:secret-password-3@redis:6379/0",
    "S3_ACCESS_KEY": "secret-access-4",
    "S3_SECRET_KEY": 'secret-"key"-\\5',
}
PROD = ("--overlay", "prod", "--image", "r.example:5000/a/tailrun:2")


@pytest.fixture
def fakes(tmp_path: Path) -> Recorder:
    recorder = Recorder(tmp_path, "kubectl", "helm", "docker", "buildah", "kind", "ctr", manifests=MANIFESTS)
    recorder.answer("docker version", 1)  # a client without its daemon
    return recorder


def changes(fakes: Recorder) -> list[str]:
    """Return the calls that change something in the cluster."""
    verbs = ("create", "apply", "patch", "delete", "scale", "annotate", "rollback", "upgrade", "uninstall")
    return [
        call.line
        for call in fakes.calls
        if any(f" {verb} " in f"{call.line} " for verb in verbs)
        and "--dry-run" not in call.line
        and "can-i" not in call.line
    ]


def test_the_order_of_an_installation(fakes: Recorder) -> None:
    """Looks come before changes, the server's own check before the first object, the API before workers."""
    done = fakes.run(SCRIPT, *PROD, **SECRETS)
    assert done.returncode == 0, done.stderr
    order = [
        fakes.at("get --raw /version"),
        fakes.at("auth can-i create deployments.apps"),
        fakes.at("kustomize"),
        fakes.at("apply -f -", "kind: Namespace"),
        fakes.at("create -f -", "tailrun-credentials"),
        fakes.at("create -f -", "tailrun-api-token"),
        fakes.at("apply --dry-run=server"),
        fakes.at("apply -f -", "name: agent-api"),
        fakes.at("rollout status deployment/agent-api"),
        fakes.at("apply -f -", "kind: Deployment", "name: agent-worker\n  namespace"),
        fakes.at("rollout status deployment/agent-worker"),
    ]
    assert order == sorted(order)
    first = fakes.calls[order[7]].stdin
    assert "kind: ServiceAccount" in first
    assert first.count("kind: Deployment") == 1
    assert "./verify.sh --namespace agents" in done.stdout


def test_a_tailrun_is_not_taken_for_a_cluster(fakes: Recorder) -> None:
    """Without a kubeconfig kubectl asks localhost:8080, where `make up` serves."""
    fakes.answer("get --raw /version", 1, "Error from server (NotFound): the server could not find it")
    fakes.answer("get --raw /openapi.json", 0, '{"openapi":"3.1.0","info":{"title":"Tailrun","version":"0"}}')
    for argv in ([SCRIPT, *PROD], [SCRIPT, "--dry-run"], [SCRIPT, "--uninstall"]):
        done = fakes.run(*argv, **SECRETS)
        assert done.returncode == 1
        assert "which is a Tailrun" in done.stderr
        assert "KUBECONFIG" in done.stderr
    assert changes(fakes) == []


def test_a_cluster_that_is_away_is_told_without_the_log_of_kubectl(fakes: Recorder) -> None:
    klog = 'E1120 18:00:00.123456   77 memcache.go:265] "Unhandled Error" err="couldn\'t get"'
    fakes.answer("get --raw /version", 1, f"{klog}\nThe connection was refused")
    done = fakes.run(SCRIPT, *PROD, **SECRETS)
    assert done.returncode == 1
    assert done.stderr == "deploy.sh: the cluster does not answer: The connection was refused\n"


@pytest.mark.parametrize("helm", [[], ["--helm"]])
def test_a_server_of_the_overlay_that_does_not_come_up_is_no_success(
    fakes: Recorder, helm: list[str]
) -> None:
    """The API is ready without the store of files, and every run would fail."""
    fakes.answer("get statefulsets", 0, "statefulset/tailrun-redis\nstatefulset/tailrun-s3")
    fakes.answer("rollout status statefulset/tailrun-s3", 1, "Waiting for 1 pods to be ready...")
    done = fakes.run(SCRIPT, "--overlay", "dev", "--image", "r.example/a/tailrun:2", *helm)
    assert done.returncode == 1
    assert "tailrun-s3 is not ready" in done.stderr
    assert "verify.sh" not in done.stdout


@pytest.mark.parametrize("helm", [[], ["--helm"]])
def test_no_secret_stands_on_a_command_line_or_is_printed(fakes: Recorder, helm: list[str]) -> None:
    done = fakes.run(SCRIPT, *PROD, *helm, **SECRETS)
    assert done.returncode == 0, done.stderr
    shown = "\n".join(call.line for call in fakes.calls) + done.stdout + done.stderr
    assert "secret-" not in shown
    made = fakes.calls[fakes.at("create -f -", "tailrun-credentials")].stdin
    assert 'secret-\\"key\\"-\\\\5' in made
    assert all(name in made for name in SECRETS if name != "API_TOKEN")
    assert "API_TOKEN" not in made, "workers get this Secret whole"
    assert "secret-token-1" in fakes.calls[fakes.at("create -f -", "tailrun-api-token")].stdin


def test_secrets_from_a_file(fakes: Recorder, tmp_path: Path) -> None:
    """Values keep their equals signs; what the environment has does not count then."""
    file = tmp_path / "secrets.env"
    file.write_text("# ours\n" + "".join(f"{n}={v}=\n" for n, v in SECRETS.items() if n != "API_TOKEN"))
    done = fakes.run(SCRIPT, *PROD, "--secrets", str(file), API_TOKEN="secret-elsewhere")
    assert done.returncode == 0, done.stderr
    made = fakes.calls[fakes.at("create -f -", "tailrun-credentials")].stdin
    assert "secret-password-2@db/tailrun=" in made
    assert "secret-elsewhere" not in "".join(call.stdin for call in fakes.calls)
    assert re.search(r'"API_TOKEN":"[0-9a-f]{64}"', fakes.calls[fakes.at("create", "api-token")].stdin)


def test_a_token_among_the_credentials_is_kept(fakes: Recorder) -> None:
    """Releases before had it there: clients go on with it, and a rollback to them finds it."""
    before = {"data": {"API_TOKEN": "secret-before", "REDIS_URL": "redis://x"}, "version": 1}
    (fakes.folder / "state").write_text(json.dumps({"secrets": {"tailrun-credentials": before}}))
    given = {name: value for name, value in SECRETS.items() if name != "API_TOKEN"}
    done = fakes.run(SCRIPT, *PROD, **given)
    assert done.returncode == 0, done.stderr
    assert '"API_TOKEN":"secret-before"' in fakes.calls[fakes.at("create", "api-token")].stdin
    assert "API_TOKEN" not in fakes.calls[fakes.at("patch secret tailrun-credentials")].stdin


def test_every_secret_setting_can_be_given() -> None:
    """What is a secret to the settings goes into the Secret."""
    text = Path(SCRIPT).read_text(encoding="utf-8")
    names = text.partition("\nNAMES='")[2].partition("'")[0].split()
    secret = [name for name, field in VARIABLES.items() if "SecretStr" in str(field.annotation)]
    assert len(secret) > 5
    assert set(secret) <= {*names, "API_TOKEN"}
    assert "API_TOKEN" not in names


def test_the_same_again_changes_nothing(fakes: Recorder) -> None:
    """The token that was made up stays, and nothing is restarted; a new password restarts both."""
    given = {name: value for name, value in SECRETS.items() if name != "API_TOKEN"}
    assert fakes.run(SCRIPT, *PROD, **given).returncode == 0
    first = [call.stdin for call in fakes.calls if " apply " in call.line]
    fakes.forget()
    done = fakes.run(SCRIPT, *PROD, **given)
    assert done.returncode == 0, done.stderr
    assert [call.stdin for call in fakes.calls if " apply " in call.line] == first
    assert not [call for call in fakes.calls if "restart" in call.line or "create -f -" in call.line]
    assert "API_TOKEN" not in fakes.calls[fakes.at("patch secret")].stdin
    fakes.forget()
    assert fakes.run(SCRIPT, *PROD, REDIS_URL="redis://:new@redis/0").returncode == 0
    assert fakes.at("rollout restart deployment/agent-api") < fakes.at(
        "rollout restart deployment/agent-worker"
    )


def test_names_of_ours_are_put_in(fakes: Recorder) -> None:
    """Image, tool image, its place in the policy, namespace; changed settings get another name."""
    assert fakes.run(SCRIPT, *PROD, "--namespace", "team-a", **SECRETS).returncode == 0
    applied = "".join(call.stdin for call in fakes.calls if "apply -f -" in call.line)
    assert "image: r.example:5000/a/tailrun:2\n" in applied
    assert "TOOL_IMAGE: r.example:5000/a/tailrun-toolbox:2\n" in applied
    assert "expression: '\"^(r\\\\.example:5000/a/tailrun-toolbox:[A-Za-z0-9_.:@-]*)$\"'" in applied
    assert "registry.example" not in applied
    assert "agents" not in applied
    assert applied.count("tailrun-config-abc123-") == applied.count("tailrun-config-") == 2


HOSTILE = {
    "agents": ("agents", "registry/agents/tailrun:1", "registry/agents/tailrun-toolbox:1"),
    "a path like the namespace": ("team-a", "registry/agents/tailrun:1", "agents/tailrun-toolbox:1"),
    "a namespace within the name": (
        "agents-b",
        "agents/agents/tailrun:agents",
        "agents/tailrun-toolbox:agents",
    ),
    "names of our own": ("tailrun", "tailrun-agents/tailrun:1", "tailrun-agents/x:1"),
    "what sed takes apart": (
        "a-tools",
        "r.example:5000/a.b/tailrun@sha256:0f",
        "r.example:5000/a.b/box:1.0-x_y",
    ),
    "nothing given": ("name", "", ""),
}


@pytest.mark.parametrize("overlay", ["dev", "prod"])
@pytest.mark.parametrize(("namespace", "image", "tools"), HOSTILE.values(), ids=HOSTILE.keys())
def test_a_namespace_is_replaced_where_one_stands_and_nowhere_else(
    tmp_path: Path, overlay: str, namespace: str, image: str, tools: str
) -> None:
    """The real overlay, compared object by object, whatever the namespace and the images are called."""
    before = kustomized(overlay)
    fakes = Recorder(tmp_path, "kubectl", manifests=before)
    overlays = ("--overlay", overlay, "--namespace", namespace)
    images = ("--image", image, "--tool-image", tools) if image else ()
    done = fakes.run(SCRIPT, *overlays, *images, **SECRETS)
    if overlay == "prod" and not image:
        assert (done.returncode, "--image" in done.stderr) == (1, True)
        return
    assert done.returncode == 0, done.stderr
    applied = "".join(call.stdin for call in fakes.calls if "apply -f -" in call.line)
    made = {identity(each): each for each in yaml.safe_load_all(applied) if each}
    old = [each for each in yaml.safe_load_all(before) if each]
    assert len(made) == len(old)
    seen: set[str] = set()
    for each in old:
        wanted = renamed(each, (namespace, image, tools), seen)
        found = made[identity(wanted)]
        for policy in (wanted, found):
            for variable in policy["spec"].pop("variables", []) if "Policy" in policy["kind"] else ():
                variable.clear()
        assert found == wanted
    assert {"namespace", "kubernetes.io/metadata.name", "policyName", "priorityClassName"} <= seen


def kustomized(overlay: str) -> str:
    if shutil.which("kubectl") is None:
        pytest.skip("NOT TESTED: there is no kubectl for this machine")
    done = subprocess.run(
        ["kubectl", "kustomize", str(Path(SCRIPT).parent / "k8s/overlays" / overlay)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return done.stdout


def identity(made: dict[str, Any]) -> tuple[str, str, str]:
    return made["kind"], made["metadata"].get("namespace", ""), made["metadata"]["name"]


def renamed(value: Any, names: tuple[str, str, str], seen: set[str], key: str = "") -> Any:
    """Return what a value of the overlay becomes: known places by rule, everything else as it is."""
    namespace, image, tools = names
    if isinstance(value, dict):
        value = {name: renamed(one, names, seen, str(name)) for name, one in value.items()}
    elif isinstance(value, list):
        value = [renamed(one, names, seen, key) for one in value]
    elif not isinstance(value, str):
        pass
    elif image and key == "image" and re.fullmatch(r"(.*/)?tailrun:.*", value):
        value = image
    elif image and key == "TOOL_IMAGE":
        value = tools
    elif image and key == "name" and value.startswith("tailrun-config-"):
        value = f"{value}-{cksum(tools)}"
    elif re.fullmatch(r"agents(-tools)?|tailrun-agents(-tool-images-(jobs|pods))?", value):
        seen.add(key)
        value = value.replace("agents", namespace, 1)
    elif key in {"TOOL_SYNC_URL", "S3_ENDPOINT"}:
        value = value.replace(".agents.", f".{namespace}.")
    return value


def cksum(text: str) -> str:
    done = subprocess.run(["cksum"], input=text, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout.split()[0]


@pytest.mark.parametrize(
    "args",
    [
        *(("--namespace", each) for each in ("a b", "A", "a/b", "-a", "a-", "a$(id)", "a" * 46, "a\nb")),
        *(("--image", each) for each in ("a b", "a;id", "a'b", '"', "a\nb", "$(id)", "a,b=c", "-x", "a{b}")),
    ],
)
def test_names_that_are_none_are_refused_before_anything_happens(
    fakes: Recorder, args: tuple[str, ...]
) -> None:
    done = fakes.run(SCRIPT, *args)
    assert done.returncode == 2, done.stderr
    assert fakes.calls == []


@pytest.mark.parametrize("helm", [[], ["--helm"]])
def test_an_image_without_a_tag_is_the_latest(fakes: Recorder, helm: list[str]) -> None:
    """As every container engine reads it; a port in its registry's name is no tag."""
    named = ("--overlay", "prod", "--image", "r.example:5000/a/tailrun", *helm)
    assert fakes.run(SCRIPT, *named, **SECRETS).returncode == 0
    said = "".join(call.line + call.stdin for call in fakes.calls)
    if helm:
        assert "image.repository=r.example:5000/a/tailrun " in said
        assert said.count("tag=latest") >= 2
    else:
        assert "image: r.example:5000/a/tailrun:latest\n" in said
        assert "TOOL_IMAGE: r.example:5000/a/tailrun-toolbox:latest\n" in said


def test_an_image_by_digest_needs_its_tool_image_named(fakes: Recorder) -> None:
    done = fakes.run(SCRIPT, "--overlay", "prod", "--image", "r.example/tailrun@sha256:ab", **SECRETS)
    assert done.returncode == 2
    assert "give --tool-image" in done.stderr


def test_a_missing_right_is_named_before_anything_changes(fakes: Recorder) -> None:
    fakes.answer("can-i create rolebindings", 1)
    done = fakes.run(SCRIPT, **SECRETS)
    assert done.returncode == 1
    assert "create rolebindings.rbac.authorization.k8s.io in agents-tools" in done.stderr
    assert changes(fakes) == []


@pytest.mark.parametrize(
    ("args", "env", "said"),
    [
        (("--overlay", "prod"), {}, "DATABASE_URL REDIS_URL S3_ACCESS_KEY S3_SECRET_KEY"),
        (PROD, SECRETS | {"DATABASE_URL": "sqlite:///x.db"}, "postgresql://"),
        (PROD, SECRETS | {"REDIS_URL": "localhost:6379"}, "REDIS_URL"),
        (("--overlay", "prod"), SECRETS, "which image"),
    ],
)
def test_settings_are_checked_before_anything_changes(
    fakes: Recorder, args: tuple[str, ...], env: dict[str, str], said: str
) -> None:
    done = fakes.run(SCRIPT, *args, **env)
    assert done.returncode == 1
    assert said in done.stderr
    assert "secret-" not in done.stderr
    assert changes(fakes) == []


def test_a_cluster_that_does_not_answer(fakes: Recorder) -> None:
    fakes.answer("get --raw /version", 1, "connection refused")
    done = fakes.run(SCRIPT)
    assert (done.returncode, "connection refused" in done.stderr) == (1, True)
    assert {" get --raw /" in call.line for call in fakes.calls} == {True}


def test_a_roll_out_that_hangs_is_diagnosed(fakes: Recorder) -> None:
    """Pods, events and the last lines of what is not ready; the workers are not touched."""
    fakes.answer("rollout status deployment/agent-api", 1, "timed out waiting")
    fakes.answer(
        "get pods --no-headers", 0, "agent-api-1 0/1 Init:Error 3 1m\nagent-worker-1 1/1 Running 0 1m"
    )
    fakes.answer("get events", 0, "BackOff restarting failed container")
    fakes.answer("logs agent-api-1", 0, "the database does not answer")
    done = fakes.run(SCRIPT)
    assert done.returncode == 1
    for said in ("timed out", "BackOff", "the database does not answer", "agent-api is not ready"):
        assert said in done.stderr
    assert not [call for call in fakes.calls if "name: agent-worker\n  namespace" in call.stdin]


def test_objects_that_the_server_refuses(fakes: Recorder) -> None:
    fakes.answer("apply --dry-run=server", 1, "spec.replicas: Invalid value")
    done = fakes.run(SCRIPT)
    assert done.returncode == 1
    assert "Invalid value" in done.stderr
    assert not [call for call in fakes.calls if "kind: Deployment" in call.stdin]


@pytest.mark.parametrize("helm", [[], ["--helm"]])
def test_a_dry_run_changes_nothing(fakes: Recorder, helm: list[str]) -> None:
    done = fakes.run(SCRIPT, "--dry-run", *helm)
    assert done.returncode == 0, done.stderr
    assert changes(fakes) == []
    assert "Nothing was changed" in done.stderr


def test_helm(fakes: Recorder) -> None:
    """The release is checked by the server first; the chart reads our Secret."""
    done = fakes.run(SCRIPT, *PROD, "--helm", "--namespace", "team-a", **SECRETS)
    assert done.returncode == 0, done.stderr
    upgrades = [call.line for call in fakes.calls if "helm upgrade" in call.line]
    assert ["--dry-run=server" in line for line in upgrades] == [True, False]
    for part in (
        "--set image.repository=r.example:5000/a/tailrun",
        "--set-string image.tag=2",
        "--set tools.namespace.name=team-a-tools",
        "--set apiToken.existingSecret.name=tailrun-api-token",
        "k8s/overlays/prod/values.yaml",
    ):
        assert part in upgrades[1]
    assert fakes.at("create namespace team-a") < fakes.at("helm upgrade")


@pytest.mark.parametrize(
    ("load", "loader"), [("kind", "kind load image-archive"), ("containerd", "images import")]
)
def test_build_and_load(fakes: Recorder, load: str, loader: str) -> None:
    """Without docker's daemon buildah builds both images."""
    done = fakes.run(SCRIPT, "--build", "--load", load)
    assert done.returncode == 0, done.stderr
    built = [call.line for call in fakes.calls if "buildah bud" in call.line]
    assert ["--target app" in line for line in built] == [True, False]
    assert "--target toolbox" in built[1]
    assert len([call for call in fakes.calls if loader in call.line]) == 2


def test_build_and_push(fakes: Recorder) -> None:
    done = fakes.run(SCRIPT, "--build", "--push", "r.example/team", "--overlay", "prod", **SECRETS)
    assert done.returncode == 0, done.stderr
    pushed = [call.args[-1] for call in fakes.calls if call.line.startswith("buildah push")]
    assert [name.rpartition(":")[0] for name in pushed] == [
        "r.example/team/tailrun",
        "r.example/team/tailrun-toolbox",
    ]
    assert max(fakes.at(f"push {name}") for name in pushed) < fakes.at("kustomize")


def history(*statuses: str) -> str:
    """Return what `helm history` prints."""
    rows = [
        f"{n}\tSat Nov 21 04:45:31 2026\t{status:<10}\ttailrun-0.1.0\t0.1.0"
        for n, status in enumerate(statuses, 1)
    ]
    return "\n".join(["REVISION\tUPDATED\tSTATUS    \tCHART\tAPP VERSION", *rows])


def test_rollback(fakes: Recorder) -> None:
    assert fakes.run(SCRIPT, "--rollback").returncode == 0
    assert fakes.at("rollout undo deployment/agent-worker deployment/agent-api") < fakes.at("rollout status")


@pytest.mark.parametrize(
    ("statuses", "revision"),
    [
        (("superseded", "deployed"), 1),
        (("superseded", "superseded", "failed"), 2),
        (("superseded", "failed", "failed"), 1),
        (("superseded", "failed", "deployed"), 1),
    ],
)
def test_helm_goes_back_to_what_came_up(fakes: Recorder, statuses: tuple[str, ...], revision: int) -> None:
    """By itself it would take the revision before, though that one had failed."""
    fakes.answer("helm history", 0, history(*statuses))
    assert fakes.run(SCRIPT, "--rollback", "--helm").returncode == 0
    fakes.at(f"helm rollback tailrun {revision} --namespace agents")


def test_there_is_nothing_before_the_first_release(fakes: Recorder) -> None:
    fakes.answer("helm history", 0, history("deployed"))
    done = fakes.run(SCRIPT, "--rollback", "--helm")
    assert done.returncode == 1
    assert "no release before" in done.stderr


def test_in_process_and_back(fakes: Recorder) -> None:
    """The API works before the workers stop, and they work before it ceases."""
    fakes.answer("{.spec.replicas}", 0, "3")
    fakes.answer("tailrun/replicas}", 0, "3")
    fakes.answer("get scaledobject", 0)
    fakes.answer("get replicasets", 0, "agent-api-in-between")
    assert fakes.run(SCRIPT, "--in-process").returncode == 0
    order = [
        fakes.at("annotate deployment agent-worker", "tailrun/replicas=3"),
        fakes.at("patch deployment agent-api", '["api","--with-worker"]'),
        fakes.at("rollout status deployment/agent-api"),
        fakes.at("paused-replicas=0"),
        fakes.at("scale deployment agent-worker --replicas=0"),
    ]
    assert order == sorted(order)
    fakes.forget()
    assert fakes.run(SCRIPT, "--out-of-process").returncode == 0
    order = [
        fakes.at("scale deployment agent-worker --replicas=3"),
        fakes.at("rollout status deployment/agent-worker"),
        fakes.at("patch deployment agent-api", '["api"]', "agent-api"),
        fakes.at("delete networkpolicy agent-api-in-process"),
        fakes.at("delete replicaset agent-api-in-between"),  # or a rollback would lead there
    ]
    assert order == sorted(order)


def test_an_api_that_falls_back_by_itself_is_left_as_it_is(fakes: Recorder) -> None:
    """It starts a worker of its own where none is alive, so stopping them is all there is to do."""
    fakes.answer("{.spec.replicas}", 0, "3")
    fakes.answer("tailrun/replicas}", 0, "3")
    fakes.answer("tailrun/worker-fallback}", 0, "15")
    fakes.answer("get scaledobject", 0)
    assert fakes.run(SCRIPT, "--in-process").returncode == 0
    order = [
        fakes.at("annotate deployment agent-worker", "tailrun/replicas=3"),
        fakes.at("paused-replicas=0"),
        fakes.at("scale deployment agent-worker --replicas=0"),
    ]
    assert order == sorted(order)
    assert fakes.run(SCRIPT, "--out-of-process").returncode == 0
    fakes.at("scale deployment agent-worker --replicas=3")
    lines = [call.line for call in fakes.calls]
    assert not [line for line in lines if " patch deployment" in line or " apply " in line]


@pytest.mark.parametrize("args", [PROD, ("--rollback",), ("--rollback", "--helm")], ids=" ".join)
def test_what_would_leave_no_worker_at_all_is_refused(fakes: Recorder, args: tuple[str, ...]) -> None:
    """An upgrade sets the API back to serving alone, and a deployment of zero workers stays at zero."""
    fakes.answer("{.spec.replicas}", 0, "3")
    fakes.answer("helm history", 0, history("superseded", "deployed"))
    assert fakes.run(SCRIPT, "--in-process").returncode == 0
    fakes.forget()
    done = fakes.run(SCRIPT, *args, **SECRETS)
    assert done.returncode == 1
    assert "--out-of-process first" in done.stderr
    assert changes(fakes) == []
    assert fakes.run(SCRIPT, "--out-of-process").returncode == 0
    assert fakes.run(SCRIPT, *args, **SECRETS).returncode == 0


@pytest.mark.parametrize(("version", "told"), [("v3.18.0", False), ("v4.2.4", True)])
def test_helm_takes_fields_back_that_kubectl_has_patched(fakes: Recorder, version: str, told: bool) -> None:
    """Helm 4 refuses to touch them unless told; Helm 3 knows no such words."""
    fakes.answer("helm version", 0, version)
    fakes.answer("helm history", 0, history("superseded", "deployed"))
    for args in (PROD, ("--rollback",)):
        assert fakes.run(SCRIPT, *args, "--helm", **SECRETS).returncode == 0
    changing = [call.line for call in fakes.calls if "upgrade" in call.line or "rollback" in call.line]
    assert ["--server-side=true --force-conflicts" in line for line in changing] == [told] * 3


def test_uninstall_keeps_data_unless_told(fakes: Recorder) -> None:
    done = fakes.run(SCRIPT, "--uninstall")
    assert done.returncode == 0, done.stderr
    deleted = fakes.calls[fakes.at("delete --ignore-not-found -f -")].stdin
    assert "kind: Deployment" in deleted
    assert "kind: Namespace" not in deleted
    assert "kind: Secret" not in deleted
    assert not [call for call in fakes.calls if "persistentvolumeclaims" in call.line]
    fakes.forget()
    assert fakes.run(SCRIPT, "--uninstall", "--purge-data").returncode == 0
    assert fakes.at("delete persistentvolumeclaims") < fakes.at("delete namespace agents-tools agents")


@pytest.mark.parametrize(
    "args",
    [
        ["--nothing"],
        ["--overlay", "test"],
        ["--image"],
        ["--purge-data"],
        ["--load", "x"],
        ["--namespace", "A b"],
    ],
)
def test_wrong_usage_is_said(fakes: Recorder, args: list[str]) -> None:
    assert fakes.run(SCRIPT, *args).returncode == 2
    assert fakes.calls == []
