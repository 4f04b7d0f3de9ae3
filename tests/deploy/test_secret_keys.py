"""Which secrets reach which component, by name: nobody has what only another needs."""

from __future__ import annotations

import subprocess
from functools import cache

import pytest
import yaml
from chart import ROOT, SCENARIOS, Object, changed, containers, scenario

from app.config import VARIABLES

SHARED = {"DATABASE_URL", "REDIS_URL", "REDIS_SENTINEL_USERNAME", "REDIS_SENTINEL_PASSWORD"}
STORE = {"S3_ACCESS_KEY", "S3_SECRET_KEY"}
BUNDLED = {"BUNDLED_REDIS_PASSWORD", "BUNDLED_POSTGRESQL_PASSWORD"}
MODELS = {"LLM_KEY", "LLM_PROXY"}
UPSTASH = {"UPSTASH_REDIS_REST_URL", "UPSTASH_REDIS_REST_TOKEN"}
ALLOWED = {
    "api": SHARED | STORE | BUNDLED | UPSTASH | {"API_TOKEN", "PROJECTS_KEY", "WEBHOOK_SECRET"},
    "worker": SHARED | STORE | BUNDLED | MODELS | {"PROJECTS_KEY", "PROJECTS_TOKEN", "WEBHOOK_SECRET"},
    "migrate": {"DATABASE_URL", "BUNDLED_POSTGRESQL_PASSWORD"},
    "test": {"TAILRUN_TOKEN"},
    "redis": {"VALKEYCLI_AUTH", "PASSWORD"},
    "postgresql": {"POSTGRES_PASSWORD"},
    "s3": {"ROOT_SECRET_ACCESS_KEY"},
    "bucket": set[str](),
}
"""WEBHOOK_SECRET tells the API that there are webhooks; PROJECTS_KEY seals there, and opens in workers."""
EVERYTHING = {
    *(name for name, about in VARIABLES.items() if "SecretStr" in str(about.annotation)),
    *("S3_ACCESS_KEY", "REDIS_SENTINEL_USERNAME", "UPSTASH_REDIS_REST_URL"),
}
"""What may stand in a Secret that comes in whole."""


def secrets_of(container: Object) -> set[str]:
    """Return the variables that get a value from a Secret: `env` goes before `envFrom`, empty is none."""
    whole = any("secretRef" in each for each in container.get("envFrom", []))
    found = set(EVERYTHING) if whole else set[str]()
    for each in container.get("env", []):
        from_secret = "secretKeyRef" in each.get("valueFrom", {}) or "$(BUNDLED" in each.get("value", "")
        (found.add if from_secret else found.discard)(each["name"])
    return found


@cache
def kustomized(name: str) -> list[Object]:
    done = subprocess.run(
        ["kubectl", "kustomize", str(ROOT / "k8s/overlays" / name)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    return [each for each in yaml.safe_load_all(done.stdout) if each]


def pods() -> dict[str, list[Object]]:
    made = {name: scenario(name).objects for name in SCENARIOS}
    every: dict[str, object] = {
        "references": {name: {"name": "theirs", "key": "k"} for name in EVERYTHING - {"API_TOKEN"}},
        "existing": ["theirs"],
    }
    made["every way at once"] = changed("production", secrets=every).objects
    made |= {name: kustomized(name) for name in ("dev", "prod")}
    return {
        name: [
            each["spec"]["template"]
            for each in objects
            if each["kind"] in {"Deployment", "StatefulSet", "Job"}
        ]
        for name, objects in made.items()
    }


@pytest.mark.parametrize("name", [*SCENARIOS, "every way at once", "dev", "prod"])
def test_a_component_gets_the_secrets_on_its_list_and_no_other(name: str) -> None:
    seen: set[str] = set()
    for pod in pods()[name]:
        for container in containers(pod):
            seen.add(container["name"])
            found = secrets_of(container)
            extra = found - ALLOWED[container["name"]]
            assert extra == set(), f"{container['name']} gets {extra}"
    assert {"api", "worker", "migrate"} <= seen


def test_an_api_that_may_supervise_a_worker_gets_that_one_s_secrets_too() -> None:
    every = {"references": {name: {"name": "theirs", "key": "k"} for name in EVERYTHING - {"API_TOKEN"}}}
    made = changed("production", secrets=every, config={"WORKER_FALLBACK_S": 30})
    found = secrets_of(made.container("agent-api"))
    assert MODELS | {"PROJECTS_TOKEN"} <= found <= ALLOWED["api"] | ALLOWED["worker"]
    assert "API_TOKEN" not in secrets_of(made.container("agent-worker"))


@pytest.mark.parametrize("name", [*SCENARIOS, "dev", "prod"])
def test_what_is_needed_is_there(name: str) -> None:
    for pod in pods()[name]:
        for container in containers(pod):
            needed = {"api": {"API_TOKEN", "DATABASE_URL"}, "worker": {"DATABASE_URL", "REDIS_URL"}}
            needed["migrate"] = {"DATABASE_URL"}
            assert needed.get(container["name"], set()) <= secrets_of(container)


def test_no_secret_that_workers_get_whole_holds_the_token() -> None:
    """As far as we make them; what people put into theirs is set to nothing."""
    seen = set[str]()
    for name in (*SCENARIOS, "dev", "prod"):
        objects = scenario(name).objects if name in SCENARIOS else kustomized(name)
        [worker] = [
            e for e in objects if e["kind"] == "Deployment" and e["metadata"]["name"] == "agent-worker"
        ]
        whole = {
            source["secretRef"]["name"]
            for container in containers(worker["spec"]["template"])
            for source in container.get("envFrom", [])
            if "secretRef" in source
        }
        for each in objects:
            if each["kind"] == "Secret" and each["metadata"]["name"] in whole:
                seen.add(name)
                assert "API_TOKEN" not in {*each.get("data", {}), *each.get("stringData", {})}
    assert seen, "none of them gives workers a Secret of ours whole"
