"""What the chart makes: valid objects under the promised names, that change when they should."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import kubernetes_validate
import pytest
import yaml
from chart import CHART, SCENARIOS, Object, changed, containers, helm, render, scenario, values_of
from inline_snapshot import snapshot

from app.config import VARIABLES, Settings
from app.main import create_app

KUBERNETES = ("1.30", "1.33", "1.37")
OF_OPERATORS = {"ScaledObject", "TriggerAuthentication", "ServiceMonitor", "PodMonitor", "PrometheusRule"}
"""Kinds that Kubernetes itself does not know."""
OWN_VARIABLES = {"TAILRUN_URL", "TAILRUN_TOKEN"}
"""Of the command line, not of app/config.py."""


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_passes_lint(name: str) -> None:
    """Helm has nothing to say, not even a warning."""
    report = helm.lint(CHART, values_of(name), strict=True, namespace="agents")
    assert [each for each in report["messages"] if "icon" not in each["error"]] == []


@pytest.mark.parametrize("version", KUBERNETES)
@pytest.mark.parametrize("name", SCENARIOS)
def test_objects_are_valid(name: str, version: str) -> None:
    """Every field exists in that Kubernetes, and has the right type."""
    objects = [each for each in scenario(name).objects if each["kind"] not in OF_OPERATORS]
    assert len(objects) > 10
    for each in objects:
        kubernetes_validate.validate(each, version, strict=True)


def test_names_stand_fast() -> None:
    """Documents, alerts and scripts name these; the release's name is not in them."""
    made = scenario("minimal").names()
    assert render(values_of("minimal"), name="other").names() == made
    assert made == snapshot(
        [
            "ConfigMap agents/tailrun-config",
            "Deployment agents/agent-api",
            "Deployment agents/agent-worker",
            "Job agents/agent-migrate",
            "Job agents/agent-test",
            "LimitRange agents-tools/tools",
            "Namespace /agents-tools",
            "NetworkPolicy agents-tools/default-deny",
            "NetworkPolicy agents-tools/tool-files",
            "NetworkPolicy agents-tools/tool-internet",
            "NetworkPolicy agents/agent-api",
            "NetworkPolicy agents/agent-migrate",
            "NetworkPolicy agents/agent-test",
            "NetworkPolicy agents/agent-worker",
            "PodDisruptionBudget agents/agent-api",
            "PodDisruptionBudget agents/agent-worker",
            "PriorityClass /tailrun-agents",
            "ResourceQuota agents-tools/tools",
            "Role agents-tools/agent-worker",
            "RoleBinding agents-tools/agent-worker",
            "Secret agents/agent-api-token",
            "Secret agents/tailrun-secrets",
            "Service agents/agent-api",
            "Service agents/agent-worker",
            "ServiceAccount agents/agent-api",
            "ServiceAccount agents/agent-worker",
            "ValidatingAdmissionPolicy /tailrun-agents-tool-images-jobs",
            "ValidatingAdmissionPolicy /tailrun-agents-tool-images-pods",
            "ValidatingAdmissionPolicyBinding /tailrun-agents-tool-images-jobs",
            "ValidatingAdmissionPolicyBinding /tailrun-agents-tool-images-pods",
        ]
    )


def test_all_objects_are_in_the_two_namespaces() -> None:
    """Whatever the release's namespace is called."""
    made = render(values_of("bundled"), namespace="elsewhere")
    cluster_wide = {
        "Namespace",
        "PriorityClass",
        "ValidatingAdmissionPolicy",
        "ValidatingAdmissionPolicyBinding",
    }
    for each in made.objects:
        if each["kind"] in cluster_wide:
            assert each["kind"] == "Namespace" or "elsewhere" in each["metadata"]["name"]
        else:
            assert each["metadata"]["namespace"] in {"elsewhere", "agents-tools"}
    assert "agents." not in yaml.safe_dump(made.objects)


# -- what has to be said, and what may not ---------------------------------------------------


@pytest.mark.parametrize(
    ("without", "said"),
    [
        ({"image": {"repository": ""}}, "docker build --target app"),
        ({"tools": {"image": {"repository": ""}}}, "docker build --target toolbox"),
        ({"apiToken": {"value": ""}}, "openssl rand -hex 32"),
        ({"ingress": {"enabled": True}}, "ingress.host is required"),
    ],
)
def test_what_is_missing_is_explained(without: dict[str, Any], said: str) -> None:
    """The error says what to type."""
    with pytest.raises(helm.HelmError, match=re.escape(said)):
        changed("minimal", **without)


@pytest.mark.parametrize(
    "wrong",
    [
        {"replicas": 3},
        {"api": {"replica": 3}},
        {"api": {"replicas": "3"}},
        {"config": {"WORKER_CONCURENCY": 3}},
        {"config": {"API_TOKEN": "x"}},
        {"config": {"PORT": 80}},
        {"secrets": {"values": {"WORKER_CONCURRENCY": "3"}}},
        {"secrets": {"references": {"DATABASE_URL": {"name": "x"}}}},
        {"worker": {"autoscaling": {"type": "vpa"}}},
        {"image": {"digest": "latest"}},
    ],
    ids=str,
)
def test_a_wrong_value_is_refused(wrong: dict[str, Any]) -> None:
    """Misspelt keys and settings too; the schema knows them all."""
    with helm.Chart.load(CHART) as chart:
        chart.validate_schema(values_of("minimal"))
        with pytest.raises(helm.HelmError):
            chart.validate_schema(wrong)


# -- settings --------------------------------------------------------------------------------


def variables(made_of: str) -> Iterator[tuple[str, str]]:
    """Yield pod and name of every variable that is set."""
    made = scenario(made_of)
    settings = made.one("ConfigMap", "tailrun-config")["data"]
    for secret in made.all("Secret"):
        if secret["metadata"]["name"] == "tailrun-secrets":
            settings = {**settings, **secret["stringData"]}
    for name, pod in made.pods():
        if name.startswith("agent-"):
            yield from ((name, each["name"]) for c in containers(pod) for each in c.get("env", []))
            yield from ((name, each) for each in settings)


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_variable_is_a_setting(name: str) -> None:
    """Nothing is set that nothing reads."""
    known = VARIABLES.keys() | OWN_VARIABLES
    found = list(variables(name))
    assert len(found) > 10
    assert {each for each in found if each[1] not in known and not each[1].startswith("BUNDLED_")} == set()


@pytest.mark.parametrize("name", SCENARIOS)
def test_settings_are_taken_by_the_application(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ConfigMap's values are of the right types, also those with fractions, lines and braces."""
    for key, value in scenario(name).one("ConfigMap", "tailrun-config")["data"].items():
        assert isinstance(value, str)
        monkeypatch.setenv(key, value)
    settings = Settings()
    assert settings.tools.executor == ("local" if name == "local-tools" else "kubernetes")
    if name == "production":
        assert settings.worker.drain_s == 120.5
        assert settings.log.mask_patterns == "sk-[a-z0-9]+\nghp_\\w+"
        assert '"memory":"1Gi"' in settings.kubernetes.profiles
        assert settings.kubernetes.namespace == "agents-tools"
        assert settings.kubernetes.images_allowed == "registry.example/tools/*"


def test_each_way_to_a_secret() -> None:
    """Whole Secrets, single keys, values; the token goes to the API only."""
    api, worker = (scenario("production").container(f"agent-{each}") for each in ("api", "worker"))
    for each in (api, worker):
        assert {"secretRef": {"name": "tailrun-s3-keys"}} in each["envFrom"]
        [database] = [env for env in each["env"] if env["name"] == "DATABASE_URL"]
        assert database["valueFrom"]["secretKeyRef"] == {"name": "tailrun-db-app", "key": "uri"}
    [token] = [env for env in api["env"] if env["name"] == "API_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "tailrun-token", "key": "token"}
    assert [env for env in worker["env"] if env["name"] == "API_TOKEN"] == [
        {"name": "API_TOKEN", "value": ""}
    ]
    assert "tailrun-token" not in str(worker)
    assert "ci-token" not in str(scenario("minimal").one("Secret", "tailrun-secrets"))


def checksums(made: Any) -> dict[str, str]:
    template = made.one("Deployment", "agent-worker")["spec"]["template"]
    return {k: v for k, v in template["metadata"]["annotations"].items() if k.startswith("checksum/")}


@pytest.mark.parametrize(
    "change",
    [
        {"config": {"LOG_LEVEL": "debug"}},
        {"secrets": {"values": {"REDIS_URL": "redis://elsewhere"}}},
        {"apiToken": {"value": "another-token"}},
    ],
    ids=str,
)
def test_pods_restart_when_what_they_read_changes(change: dict[str, Any]) -> None:
    """A changed setting or secret changes the pods; nothing else does."""
    before = checksums(scenario("minimal"))
    assert checksums(changed("minimal", **change)) != before
    assert checksums(changed("minimal", worker={"replicas": 9})) == before


# -- life of the pods ------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_worker_has_longer_to_end_than_its_drain(name: str) -> None:
    """Whoever is killed in the drain leaves runs for redelivery."""
    made = scenario(name)
    config = made.one("ConfigMap", "tailrun-config")["data"]
    worker = made.one("Deployment", "agent-worker")["spec"]["template"]["spec"]
    assert (
        worker["terminationGracePeriodSeconds"]
        >= float(config["DRAIN_S"]) + float(config["CANCEL_GRACE_S"]) + 20
    )
    api = made.one("Deployment", "agent-api")["spec"]["template"]["spec"]
    assert (
        api["terminationGracePeriodSeconds"]
        > 5 + api["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    )


@pytest.mark.parametrize(("component", "port"), [("api", 8080), ("worker", 9090)])
def test_probes_ask_what_answers(component: str, port: int) -> None:
    """Alive and ready are two questions; a start may take two minutes."""
    container = scenario("minimal").container(f"agent-{component}")
    [opened] = container["ports"]
    assert opened["containerPort"] == port
    for probe, path in (("startup", "healthz"), ("liveness", "healthz"), ("readiness", "readyz")):
        assert container[f"{probe}Probe"]["httpGet"] == {"path": f"/{path}", "port": opened["name"]}
        assert container[f"{probe}Probe"]["timeoutSeconds"] > 2, "readyz itself waits for 2 s"


def test_only_who_scales_says_how_many() -> None:
    """With an autoscaler an upgrade would else set the number back."""
    assert scenario("minimal").one("Deployment", "agent-worker")["spec"]["replicas"] == 1
    assert scenario("minimal").one("Deployment", "agent-api")["spec"]["replicas"] == 2
    for name in ("agent-api", "agent-worker"):
        assert "replicas" not in scenario("production").one("Deployment", name)["spec"]


def test_keda_asks_for_what_the_queue_answers() -> None:
    """One number, of the load of one worker's slots, with a token of its own."""
    made = scenario("production")
    [trigger] = made.one("ScaledObject", "agent-worker")["spec"]["triggers"]
    metadata = trigger["metadata"]
    assert metadata["url"] == "http://agent-api.agents.svc/v1/queue"
    answer = create_app(Settings()).openapi()["components"]["schemas"]["QueueView"]["properties"]
    assert answer[metadata["valueLocation"]]["type"] == "integer"
    assert metadata["targetValue"] == "20"
    [token] = made.one("TriggerAuthentication", "agent-worker")["spec"]["secretTargetRef"]
    assert token == {"parameter": "token", "name": "tailrun-keda", "key": "token"}
    fallback = made.one("ScaledObject", "agent-worker")["spec"]["fallback"]
    assert fallback["behavior"] == "currentReplicasIfHigher", "busy workers stay while the API is away"


def test_what_scales_by_prometheus_names_metrics_that_exist() -> None:
    """docs/metrics.md has them."""
    text = (CHART.parents[1] / "docs/metrics.md").read_text()
    worker = scenario("local-tools").one("HorizontalPodAutoscaler", "agent-worker")
    api = scenario("production").one("HorizontalPodAutoscaler", "agent-api")
    for metric in worker["spec"]["metrics"] + by_streams(api):
        assert metric[metric["type"].lower()]["metric"]["name"] in text
    rules = scenario("production").one("PrometheusRule", "tailrun")["spec"]
    used = set(re.findall(r"tailrun_[a-z_]+", yaml.safe_dump(rules)))
    assert used
    assert {each for each in used if re.sub("_(bucket|count|sum)$", "", each) not in text} == set()


def test_pods_leave_a_lost_node_soon_and_keep_other_tolerations() -> None:
    """A run on it is taken over in seconds anyway; this is about who takes it."""
    gpu = {"key": "gpu", "operator": "Exists"}
    made = changed("minimal", worker={"tolerations": [gpu]})
    worker = made.one("Deployment", "agent-worker")["spec"]["template"]["spec"]["tolerations"]
    api = made.one("Deployment", "agent-api")["spec"]["template"]["spec"]["tolerations"]
    assert worker == [gpu, *api]
    assert {(each["key"], each["tolerationSeconds"]) for each in api} == {
        ("node.kubernetes.io/not-ready", 30),
        ("node.kubernetes.io/unreachable", 30),
    }
    left = changed("minimal", nodeLossSeconds=0).one("Deployment", "agent-api")
    assert "tolerations" not in left["spec"]["template"]["spec"]


def by_streams(api: Object) -> list[Object]:
    return [metric for metric in api["spec"]["metrics"] if metric["type"] != "Resource"]


def test_the_api_scales_by_streams_only_if_asked() -> None:
    """Without a metrics adapter the HPA would complain all the time."""
    made = changed("minimal", api={"autoscaling": {"type": "hpa"}})
    assert by_streams(made.one("HorizontalPodAutoscaler", "agent-api")) == []
    [asked] = by_streams(scenario("production").one("HorizontalPodAutoscaler", "agent-api"))
    assert asked["pods"]["target"] == {"type": "AverageValue", "averageValue": "1500"}


def test_the_database_is_migrated_before_anything_new_runs() -> None:
    """In an init container of both, and in a hook before an upgrade."""
    made = scenario("minimal")
    job = made.one("Job", "agent-migrate")
    [container] = job["spec"]["template"]["spec"]["containers"]
    assert container["args"] == ["migrate"]
    for name in ("agent-api", "agent-worker"):
        [init] = made.one("Deployment", name)["spec"]["template"]["spec"]["initContainers"]
        assert init == container
    assert job["metadata"]["annotations"]["helm.sh/hook"] == "pre-upgrade"


def test_the_ingress_lets_streams_through_and_keeps_metrics_in() -> None:
    """No buffering, long time-outs, every public route and none that needs no token."""
    ingress = scenario("production").one("Ingress", "agent-api")
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-buffering"] == "off"
    assert annotations["nginx.ingress.kubernetes.io/proxy-read-timeout"] == "7200"
    [rule] = ingress["spec"]["rules"]
    paths = [each["path"] for each in rule["http"]["paths"]]
    routes = list(create_app(Settings()).openapi()["paths"])
    out = {route for route in routes if not any(route == p or route.startswith(f"{p}/") for p in paths)}
    assert out == {"/metrics", "/readyz"}


def test_notes_say_what_to_do_next() -> None:
    """Test it, use it, find out what is wrong; and what is dangerous about this installation."""
    assert "helm -n agents test tailrun" in scenario("minimal").notes
    assert "tailrun config" in scenario("minimal").notes
    assert "everybody who may submit runs executes code there" in scenario("local-tools").notes
    assert "for trying out" in scenario("bundled").notes
    assert "no run finds its files" in changed("minimal", config={"S3_BUCKET": ""}).notes
    assert "NOTE:" not in scenario("production").notes


def test_what_is_extra_gets_where_it_belongs() -> None:
    """Variables, volumes, annotations, objects."""
    made = scenario("production")
    worker: Object = made.container("agent-worker")
    assert {"name": "REDIS_CA_FILE", "value": "/etc/company-ca/ca.pem"} in worker["env"]
    assert {"name": "ca", "mountPath": "/etc/company-ca", "readOnly": True} in worker["volumeMounts"]
    made.one("ConfigMap", "tailrun-extra")
    assert made.one("Deployment", "agent-api")["spec"]["template"]["metadata"]["annotations"][
        "example.com/team"
    ]
    shared = changed("minimal", data={"existingClaim": "files"})
    for name in ("agent-api", "agent-worker"):
        volumes = shared.one("Deployment", name)["spec"]["template"]["spec"]["volumes"]
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "files"}} in volumes
