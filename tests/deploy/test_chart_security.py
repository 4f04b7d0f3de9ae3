"""What nobody may do: pods are restricted, rights are the fewest, networks closed, images known."""

from __future__ import annotations

import ipaddress
import json
import re
from typing import Any

import pytest
import yaml
from chart import CHART, SCENARIOS, TOOLS, Object, changed, containers, scenario

from app.config import Settings
from app.core.address_ranges import BLOCKED_4, BLOCKED_6
from app.k8s import spec
from app.k8s.executor import NEEDED
from app.k8s.profile import image_pattern

VOLUMES = {
    "configMap",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
"""What `restricted` allows."""
ON_KUBERNETES = [name for name in SCENARIOS if name != "local-tools"]


@pytest.mark.parametrize("name", SCENARIOS)
def test_pods_are_restricted_and_more(name: str) -> None:
    """Pod Security `restricted`, and besides: only volumes can be written, and all has bounds."""
    seen = 0
    for of, pod in scenario(name).pods():
        security = pod["spec"]["securityContext"]
        assert security["runAsNonRoot"] is True, of
        assert security["runAsUser"] > 0, of
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, of
        assert not {"hostNetwork", "hostPID", "hostIPC", "hostUsers"} & pod["spec"].keys(), of
        assert pod["spec"]["enableServiceLinks"] is False, of
        for volume in pod["spec"].get("volumes", []):
            assert set(volume) - {"name"} <= VOLUMES, of
        for container in containers(pod):
            seen += 1
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, of
            assert own["readOnlyRootFilesystem"] is True, of
            assert own["runAsNonRoot"] is True, of
            assert own["capabilities"] == {"drop": ["ALL"]}, of
            assert not {"privileged", "procMount", "hostPort"} & own.keys(), of
            assert container["resources"]["limits"]["memory"], of
            assert container["resources"]["requests"]["memory"], of
    assert seen >= 4


@pytest.mark.parametrize("name", SCENARIOS)
def test_both_namespaces_enforce_restricted(name: str) -> None:
    """The tools' one always; the release's where the chart makes it."""
    for namespace in scenario(name).all("Namespace"):
        for mode in ("enforce", "audit", "warn"):
            assert namespace["metadata"]["labels"][f"pod-security.kubernetes.io/{mode}"] == "restricted"
    assert len(scenario("bundled").all("Namespace")) == 2


# -- rights ----------------------------------------------------------------------------------


def rights(made_of: str) -> set[tuple[str, str, str]]:
    [role] = scenario(made_of).all("Role")
    assert role["metadata"]["namespace"] == TOOLS
    return {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_a_worker_may_do_what_it_does_and_nothing_else(name: str) -> None:
    """Verb by verb; secrets it can write and not read, and it cannot exec."""
    expected = {
        (group, f"{resource}/{sub}" if sub else resource, verb)
        for group, resource, sub, verbs in NEEDED
        for verb in verbs
    }
    assert ("", "secrets", "get") not in expected
    assert not {resource for _, resource, _ in expected} & {"pods/exec", "pods/attach", "configmaps"}
    assert rights(name) == expected


@pytest.mark.parametrize("name", SCENARIOS)
def test_nobody_else_has_rights_or_a_token(name: str) -> None:
    """One role, for one account, in one namespace; and only who uses the token gets one."""
    made = scenario(name)
    assert made.all("ClusterRole") == made.all("ClusterRoleBinding") == []
    for binding in made.all("RoleBinding"):
        assert [each["name"] for each in binding["subjects"]] == ["agent-worker"]
    for account in made.all("ServiceAccount"):
        assert account["automountServiceAccountToken"] is False
    with_token = {of for of, pod in made.pods() if pod["spec"]["automountServiceAccountToken"] is not False}
    assert with_token == ({"agent-worker"} if name in ON_KUBERNETES else set())


# -- networks --------------------------------------------------------------------------------


def policies(name: str, namespace: str) -> dict[str, Object]:
    found = scenario(name).all("NetworkPolicy")
    return {
        each["metadata"]["name"]: each["spec"] for each in found if each["metadata"]["namespace"] == namespace
    }


def selects(policy: Object, labels: dict[str, str]) -> bool:
    return policy["podSelector"].get("matchLabels", {}).items() <= labels.items()


@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_every_pod_has_a_policy_that_closes_both_ways(name: str) -> None:
    """One for each component."""
    pods = list(scenario(name).pods())
    assert pods
    for of, pod in pods:
        found = [
            each for each in policies(name, "agents").values() if selects(each, pod["metadata"]["labels"])
        ]
        assert len(found) == 1, of
        assert set(found[0]["policyTypes"]) == {"Ingress", "Egress"}, of


def tool_labels(network: str) -> dict[str, str]:
    """The labels of a tool's pod, as app/k8s/spec.py makes them."""
    return {**spec.MANAGED, spec.NETWORK: network}


@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_tools_are_closed_but_for_names_and_files(name: str) -> None:
    """The default closes everything for everybody; nothing ever opens the way in."""
    found = policies(name, TOOLS)
    assert found["default-deny"] == {"podSelector": {}, "policyTypes": ["Ingress", "Egress"]}
    assert [each for each in found.values() if each.get("ingress")] == []
    plain = {each for each, policy in found.items() if selects(policy, tool_labels("none"))}
    assert plain == {"default-deny", "tool-files"}
    open_ = {each for each, policy in found.items() if selects(policy, tool_labels("internet"))}
    assert open_ == {"default-deny", "tool-files", "tool-internet"}
    assert {each for each, policy in found.items() if selects(policy, {})} == {"default-deny"}


def test_the_worker_reaches_models_where_the_values_say() -> None:
    """On their ports alone, and the API not at all."""
    where = [{"ipBlock": {"cidr": "10.9.0.0/16"}}]
    objects = changed("production", networkPolicy={"modelPorts": [11434], "models": where}).objects
    found = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "NetworkPolicy"}
    assert allowed(found["agent-worker"], "10.9.1.1", 11434)
    assert not allowed(found["agent-worker"], "10.8.1.1", 11434)
    assert not allowed(found["agent-api"], "10.9.1.1", 11434)


NEAR = (  # Azure's metadata address is a public one
    *("10.1.2.3", "172.16.0.1", "172.31.255.254", "192.168.1.1", "100.64.0.1", "127.0.0.1", "0.0.0.0"),
    *("169.254.169.254", "168.63.129.16", "224.0.0.1", "::1", "fd00::1", "fd00:ec2::254", "fe80::1"),
    *("64:ff9b::a9fe:a9fe", "2002:a9fe:a9fe::1"),
)


def allowed(policy: Object, address: str, port: int) -> bool:
    """Whether some rule of the policy lets a packet out to an address that is no pod."""
    ip = ipaddress.ip_address(address)
    for rule in policy["egress"]:
        ports = [each["port"] for each in rule.get("ports", [])]
        if ports and port not in ports:
            continue
        for block in [peer["ipBlock"] for peer in rule.get("to", []) if "ipBlock" in peer]:
            inside = [ipaddress.ip_network(n) for n in (block["cidr"], *block.get("except", []))]
            cidr, *excepted = [ip.version == network.version and ip in network for network in inside]
            if cidr and not any(excepted):
                return True
    return False


def test_the_chart_closes_what_webhooks_do_not_go_to() -> None:
    """One list, app/core/address_ranges.py."""
    network = yaml.safe_load((CHART / "values.yaml").read_text())["tools"]["network"]
    assert network["blockedRanges"] == [str(each) for each in BLOCKED_4]
    assert network["blockedRanges6"] == [str(each) for each in BLOCKED_6]


@pytest.mark.parametrize("address", NEAR)
def test_what_is_near_is_not_the_internet(address: str) -> None:
    """Private, link-local and metadata addresses stay closed, also those that only translate to them."""
    for name in ON_KUBERNETES:
        found = policies(name, TOOLS)
        for policy in ("tool-internet", "tool-files"):
            assert not allowed(found[policy], address, 443), (name, policy)


def test_the_internet_is_open_where_the_label_says_so() -> None:
    """The check above can fail; and the store's ranges close the rest."""
    minimal, production = policies("minimal", TOOLS), policies("production", TOOLS)  # [any], and ranges
    for address in ("93.184.216.34", "2606:2800::1"):
        assert allowed(minimal["tool-internet"], address, 80)
        assert allowed(minimal["tool-files"], address, 443)
        assert not allowed(minimal["tool-files"], address, 80)
        assert not allowed(production["tool-files"], address, 443)
    assert allowed(production["tool-files"], "203.0.113.9", 443)


def test_a_store_without_ranges_has_to_be_said_open() -> None:
    """`[any]`, or ranges; nothing opens by having been left out."""
    network = {"network": {"s3Ranges": []}}
    with pytest.raises(Exception, match="s3Ranges is not set"):
        changed("minimal", tools=network)
    assert changed("minimal", tools=network, networkPolicy={"enabled": False})


@pytest.mark.parametrize("name", ["production", "local-tools"])
def test_an_api_that_may_supervise_a_worker_may_do_what_that_one_may(name: str) -> None:
    """WORKER_FALLBACK_S: its role, its ways out, its time to drain; off, nothing of it."""
    for seconds, falls_back in ((0, False), ("0", False), (30, True), ("0.5", True)):
        made = changed(name, config={"WORKER_FALLBACK_S": seconds}, networkPolicy={"enabled": True})
        api, worker = (
            made.one("Deployment", f"agent-{each}")["spec"]["template"]["spec"] for each in ("api", "worker")
        )
        on_kubernetes = worker["automountServiceAccountToken"]
        assert api["automountServiceAccountToken"] is (falls_back and on_kubernetes)
        assert (api["terminationGracePeriodSeconds"] >= worker["terminationGracePeriodSeconds"]) is falls_back
        subjects = [each["name"] for found in made.all("RoleBinding") for each in found["subjects"]]
        assert ("agent-api" in subjects) is (falls_back and on_kubernetes)
        ways = [made.one("NetworkPolicy", f"agent-{each}")["spec"]["egress"] for each in ("api", "worker")]
        assert (ways[0] == ways[1]) is falls_back


PEERS = {"volume": ("api", 8081), "bundled": ("s3", 7070), "minimal": None, "production": None}


@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_tools_reach_one_peer_of_ours_and_none_where_a_store_carries_their_files(name: str) -> None:
    """Never the API's own port, on neither side; its port for files only where it carries them."""
    rules = [
        (peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"], port["port"])
        for rule in policies(name, TOOLS)["tool-files"]["egress"]
        for peer in rule["to"]
        if "podSelector" in peer
        for port in rule["ports"]
    ]
    assert rules == ([] if PEERS[name] is None else [PEERS[name]])
    tools = {"matchLabels": {"kubernetes.io/metadata.name": TOOLS}}
    taken = [
        [port["port"] for port in rule["ports"]]
        for rule in policies(name, "agents")["agent-api"]["ingress"]
        if any(peer.get("namespaceSelector") == tools for peer in rule.get("from", []))
    ]
    by_api = PEERS[name] == ("api", 8081)
    assert taken == ([[8081]] if by_api else [])
    config = scenario(name).one("ConfigMap", "tailrun-config")["data"]
    assert config.get("STAGING_PORT") == ("8081" if by_api else None)
    assert config.get("TOOL_SYNC_URL") == ("http://agent-api-staging.agents.svc:8081" if by_api else None)
    assert ("Service agents/agent-api-staging" in scenario(name).names()) is by_api


# -- images and amounts ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image", "ok"),
    [
        ("registry.example/team/tailrun-toolbox@sha256:" + "fedcba9876543210" * 4, True),
        ("registry.example/team/tailrun-toolbox@sha256:" + "00" * 32, True),
        ("registry.example/team/python:3.13", True),
        ("registry.example/tools/browser:1", True),
        ("registry.example/team/tailrun-toolbox:latest", False),
        ("registry.example/team/python:3.14", False),
        ("registry.example/team/python:3.13-evil", False),
        ("registryXexample/tools/browser:1", False),
        ("evil.example/registry.example/tools/x", False),
        ("alpine", False),
    ],
)
def test_images_are_allowed_by_name(image: str, ok: bool) -> None:
    """The application's in any version, those of profiles, and those that match; compared whole."""
    found = scenario("production").all("ValidatingAdmissionPolicy")
    assert found
    for policy in found:
        [images] = policy["spec"]["variables"]
        assert bool(re.search(json.loads(images["expression"]), image)) is ok


PATTERNS = [
    "toolbox:*",
    "python*",
    "registry.example/team/*",
    "registry.example/a/*/x:1",
    "box:1.?",
    "r:5000/t@*",
]
"""With the repository `toolbox` for our own."""
NAMES = {
    **dict.fromkeys(
        ("toolbox:1", "toolbox:latest", "toolbox:1@sha256:" + "0f" * 32, "python", "python3:3"), True
    ),
    **dict.fromkeys(("registry.example/team/x", "registry.example/team/a/b:1", "box:1.2"), True),
    **dict.fromkeys(("registry.example/a/b/x:1", "r:5000/t@sha256:" + "0f" * 32), True),
    **dict.fromkeys(("toolbox:5000/evil", "toolbox:5000/evil:1", "toolbox:5000/toolbox:1", "toolbox"), False),
    **dict.fromkeys(
        ("python.evil/x", "python:5000/x", "pythons/x:1", "evil/python:3", "evil/toolbox:1"), False
    ),
    **dict.fromkeys(("registry.example/team", "registry.example/team/", "registry.example/teams/x"), False),
    **dict.fromkeys(
        ("registry.example/a/b/c/x:1", "registry.example/a/b/x:1-evil", "box:1.22", "box:1x2"), False
    ),
    **dict.fromkeys(("registryXexample/team/x", "registry.example:5000/team/x", "r:5000/t/evil@x"), False),
    **dict.fromkeys(
        ("toolbox:1\n", "evil\ntoolbox:1", "toolbox:1 x", " toolbox:1", "", "toolbox:1/../x"), False
    ),
    **dict.fromkeys(("registry.example/team/x\ny", "registry.example/team/x y", "toolbox:1\u00e4"), False),
}


def test_a_pattern_ends_at_a_component_for_worker_and_cluster_alike() -> None:
    """What follows a name is a tag or a digest, never the port of a registry and another name."""
    made = changed(
        "bundled", tools={"image": {"repository": "toolbox", "tag": "1"}, "imagesAllowed": PATTERNS}
    )
    by_worker = [image_pattern(each) for each in PATTERNS]
    for policy in made.all("ValidatingAdmissionPolicy"):
        [images] = policy["spec"]["variables"]
        by_cluster = re.compile(json.loads(images["expression"]).removesuffix("$") + r"\Z")  # RE2's $
        found = {each: bool(by_cluster.search(each)) for each in NAMES}
        assert found == NAMES
    assert {each: any(one.fullmatch(each) for one in by_worker) for each in NAMES} == NAMES


def test_everything_can_be_allowed() -> None:
    found = changed("bundled", tools={"imagesAllowed": ["*"]}).all("ValidatingAdmissionPolicy")
    assert found
    for policy in found:
        [images] = policy["spec"]["variables"]
        for image in ("a", "a/b:1", "registry.example:5000/a/b@sha256:" + "0f" * 32):
            assert re.search(json.loads(images["expression"]), image)
            assert image_pattern("*").fullmatch(image)


@pytest.mark.parametrize("name", ON_KUBERNETES)
def test_the_image_policy_denies_in_the_tools_namespace_only(name: str) -> None:
    """Jobs and pods, all kinds of containers; an error means no."""
    made = scenario(name)
    seen: set[str] = set()
    for policy in made.all("ValidatingAdmissionPolicy"):
        about: Any = policy["spec"]
        assert about["failurePolicy"] == "Fail"
        constraints = about["matchConstraints"]
        assert constraints["namespaceSelector"] == {"matchLabels": {"kubernetes.io/metadata.name": TOOLS}}
        seen |= {each for rule in constraints["resourceRules"] for each in rule["resources"]}
        binding = made.one("ValidatingAdmissionPolicyBinding", policy["metadata"]["name"])["spec"]
        assert binding["validationActions"] == ["Deny"]
    assert seen == {"jobs", "pods", "pods/ephemeralcontainers"}


def quantity(text: str) -> float:
    """Read a quantity of Kubernetes."""
    number, unit = re.fullmatch(r"([\d.]+)(m|[KMGT]i?)?", text).groups()  # type: ignore[union-attr]
    factors = {None: 1, "m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    return float(number) * factors[unit]


def test_a_tool_with_the_application_s_bounds_fits() -> None:
    """The most that a step may ask for is within the LimitRange; a worker full of defaults fits the quota."""
    settings, made = Settings(), scenario("minimal")
    most = made.one("LimitRange", "tools")["spec"]["limits"][0]["max"]
    assert quantity(settings.kubernetes.cpu_max) <= quantity(most["cpu"])
    assert quantity(settings.kubernetes.memory_max) <= quantity(most["memory"])
    assert quantity(settings.kubernetes.disk) <= quantity(most["ephemeral-storage"])
    hard = made.one("ResourceQuota", "tools")["spec"]["hard"]
    slots = settings.worker.concurrency
    assert slots * (quantity(settings.kubernetes.cpu) + 0.5) <= quantity(hard["limits.cpu"])
    assert slots * (quantity(settings.kubernetes.memory) + 256 * 2**20) <= quantity(hard["limits.memory"])
    assert slots * 2 * quantity(settings.kubernetes.disk) <= quantity(hard["limits.ephemeral-storage"])
    assert slots <= int(hard["pods"])


def test_nothing_of_the_tools_is_made_where_they_are_local() -> None:
    """No namespace, no rights, no policies."""
    made = scenario("local-tools")
    assert [each for each in made.names() if TOOLS in each or "Policy" in each or "Role" in each] == []
    assert changed("minimal", tools={"namespace": {"create": False}}).all("Namespace") == []
