"""The Job of a tool: what is in it, and what must not be."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from app.config import KubernetesSettings, Settings
from app.core.models import ResourceRequest
from app.execution.executor import Source, ToolRun
from app.k8s import spec
from app.k8s.profile import Profiles
from app.k8s.spec import JobSettings
from app.storage.local_workspace import LocalWorkspaces
from app.storage.workspace import UNLIMITED

FILES = LocalWorkspaces(Path("nowhere"), UNLIMITED).open("u", "r")
TERMS = JobSettings(
    "tools", 5, 300, KubernetesSettings(image="box:1", user_namespaces=True, image_pull_secret="pull")
)
TOOL = ToolRun(
    "run-1",
    2,
    "user's own step",
    ("bash", "-c", "echo $HOME $$ $(date)"),
    FILES,
    {"TOKEN": "a-secret-value"},
    timeout_s=60,
    tool="shell",
)


def profiles(**more: Any) -> Profiles:
    return Profiles(Settings(tool_image="box:1", **more).kubernetes)


def made(tool: ToolRun = TOOL, wants: ResourceRequest | None = None, **more: Any) -> dict[str, Any]:
    return spec.job(tool, profiles(**more).of(tool.tool, wants or ResourceRequest()), TERMS)


def pod(**more: Any) -> dict[str, Any]:
    return made(**more)["spec"]["template"]["spec"]


def containers(**more: Any) -> list[dict[str, Any]]:
    found = pod(**more)
    return [*found["initContainers"], *found["containers"]]


def test_a_pod_is_restricted() -> None:
    """What the Pod Security standard `restricted` asks for, and more."""
    found = pod()
    assert found["securityContext"]["runAsNonRoot"] is True
    assert found["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert (found["automountServiceAccountToken"], found["enableServiceLinks"]) == (False, False)
    assert (found["restartPolicy"], found["hostUsers"]) == ("Never", False)
    assert "hostNetwork" not in found
    for container in containers():
        context = container["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        for name in ("cpu", "memory", "ephemeral-storage"):
            assert container["resources"]["limits"][name]
            assert container["resources"]["requests"][name]
    assert all(volume.keys() & {"emptyDir", "secret"} for volume in found["volumes"])


def test_only_the_side_car_sees_the_addresses_and_only_the_tool_its_variables() -> None:
    sync, tool = containers()
    assert "/run/tailrun" in [mount["mountPath"] for mount in sync["volumeMounts"]]
    assert "/run/tailrun" not in [mount["mountPath"] for mount in tool["volumeMounts"]]
    assert next(m for m in tool["volumeMounts"] if m["mountPath"] == "/tailrun")["readOnly"] is True
    assert tool["envFrom"] == [{"secretRef": {"name": spec.env_secret(spec.job_name(TOOL))}}]
    assert "envFrom" not in sync
    assert "a-secret-value" not in json.dumps(made())


def test_names_and_labels_hold_nothing_that_a_user_wrote() -> None:
    about = made()["metadata"]
    assert about["name"].startswith("tool-")
    assert len(about["name"]) == len("tool-") + 16
    assert "step" not in json.dumps([about["labels"], about["name"]])
    assert about["annotations"]["tailrun/run-id"] == "run-1"


def test_a_name_is_the_same_for_every_attempt_and_new_for_every_fresh_start() -> None:
    assert spec.job_name(replace(TOOL, attempt=3, cursor="1:5")) == spec.job_name(TOOL)
    others = (replace(TOOL, step_run=2), replace(TOOL, step_id="s2"), replace(TOOL, run_id="run-2"))
    assert len({spec.job_name(other) for other in (TOOL, *others)}) == 4


def test_the_hash_is_of_what_was_asked_for() -> None:
    """So a worker of the next release still knows its Job."""
    assert spec.spec_hash(replace(TOOL, attempt=9)) == spec.spec_hash(TOOL)
    assert spec.spec_hash(replace(TOOL, argv=("true",))) != spec.spec_hash(TOOL)


def test_the_job_ends_by_itself_when_everybody_is_gone() -> None:
    job = made()["spec"]
    assert job["activeDeadlineSeconds"] == 60 + 600 + 5 + 30 + 1
    assert (job["backoffLimit"], job["podReplacementPolicy"]) == (0, "Failed")
    assert job["ttlSecondsAfterFinished"] == 3600
    assert job["podFailurePolicy"]["rules"][0]["action"] == "FailJob"
    longest = made(replace(TOOL, timeout_s=None))["spec"]
    assert longest["activeDeadlineSeconds"] == 3600 + 600 + 5 + 30 + 1


def test_a_pod_is_given_up_soon_after_its_node() -> None:
    """Its step starts again elsewhere, where by default the cluster would wait for five minutes."""
    tolerated = made()["spec"]["template"]["spec"]["tolerations"]
    assert {each["key"].rpartition("/")[2] for each in tolerated} == {"not-ready", "unreachable"}
    assert {(each["effect"], each["tolerationSeconds"]) for each in tolerated} == {("NoExecute", 60)}


def test_our_image_is_wrapped_and_another_one_is_gated() -> None:
    """Its dollars are escaped, or Kubernetes would expand them."""
    sync, tool = containers()
    assert tool["command"][:6] == ["python", "-I", "-m", "toolbox", "exec", "--"]
    assert tool["command"][-1] == "echo $$HOME $$$$ $$(date)"
    assert "startupProbe" not in sync
    sync, tool = containers(wants=ResourceRequest(image="other:1"), tool_images_allowed="other:*")
    assert (tool["image"], tool["command"][0], sync["image"]) == ("other:1", "bash", "box:1")
    assert sync["startupProbe"]["exec"]["command"][-1] == "ready"


def test_a_source_is_a_file_beside_the_runs_files() -> None:
    tool = replace(TOOL, argv=("python", "-u"), source=Source("main.py", "print(1)", ("a b",)))
    [container] = made(tool)["spec"]["template"]["spec"]["containers"]
    assert container["command"][-4:] == ["python", "-u", "/tailrun/source/main.py", "a b"]
    assert spec.source_files(tool) == {"main.py": b"print(1)"}


def test_a_tool_has_its_own_profile_and_a_step_its_wishes() -> None:
    more = {"tool_profiles": '{"shell": {"cpu": "250m", "network": "internet", "runtime_class": "gvisor"}}'}
    [_, tool] = containers(**more, wants=ResourceRequest(memory="64Mi"))
    assert tool["resources"]["limits"] == {"cpu": "250m", "memory": "64Mi", "ephemeral-storage": "2Gi"}
    assert pod(**more)["runtimeClassName"] == "gvisor"
    assert made(**more)["spec"]["template"]["metadata"]["labels"]["tailrun/network"] == "internet"


@pytest.mark.parametrize(
    "text", ["nonsense", "[1]", '{"shell": {"cpu": "lots"}}', '{"shell": {"colour": "red"}}']
)
def test_a_profile_that_makes_no_sense_is_named_at_the_start(text: str) -> None:
    with pytest.raises(ValueError, match="TOOL_PROFILES"):
        profiles(tool_profiles=text)


@pytest.mark.parametrize(
    ("limit", "asked", "requested"), [("1", "100m", "100m"), ("50m", "100m", "50m"), ("2", "0.5", "0.5")]
)
def test_less_cpu_is_asked_for_than_may_be_used_and_never_more(
    limit: str, asked: str, requested: str
) -> None:
    terms, profile = (
        replace(TERMS, kubernetes=TERMS.kubernetes.model_copy(update={"cpu_request": asked})),
        profiles(tool_cpu=limit).of("shell", ResourceRequest()),
    )
    [tool] = spec.job(TOOL, profile, terms)["spec"]["template"]["spec"]["containers"]
    resources = tool["resources"]
    assert (resources["limits"]["cpu"], resources["requests"]["cpu"]) == (limit, requested)
    assert resources["requests"]["memory"] == resources["limits"]["memory"]
