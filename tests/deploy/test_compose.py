"""compose.yaml: what it names exists, its settings are settings, and nothing is open to the network.

No package carries the schema of compose files, so the keys that are used are held to a list here, and
`docker compose config` says the rest where there is docker compose.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from app.config import VARIABLES, Settings
from app.redis.address import RedisAddress

ROOT = Path(__file__).resolve().parents[2]
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
KEYS = {
    *("build", "cap_drop", "command", "depends_on", "entrypoint", "environment", "healthcheck", "image"),
    *("init", "network_mode", "ports", "pull_policy", "read_only", "restart", "security_opt"),
    *("stop_grace_period", "tmpfs", "user", "volumes"),
}
OURS = ("api", "worker", "migrate")


def seconds(text: str) -> int:
    """Read a duration as this file writes them."""
    found = re.fullmatch(r"(\d+)s", text)
    assert found, text
    return int(found.group(1))


def test_only_known_keys_are_used() -> None:
    """A misspelt key would be refused by docker compose only when somebody needs it."""
    assert {key for key in COMPOSE if not key.startswith("x-")} == {"name", "services", "volumes"}
    assert {key for service in SERVICES.values() for key in service} <= KEYS
    for service in SERVICES.values():
        assert set(service.get("healthcheck", {})) <= {"test", "interval", "timeout", "retries"}


@pytest.mark.parametrize("name", SERVICES)
def test_what_a_service_waits_for_can_come(name: str) -> None:
    """Who is to be healthy has a health check, who is to end is not started again; volumes are declared."""
    for other, about in SERVICES[name].get("depends_on", {}).items():
        if about["condition"] == "service_healthy":
            assert SERVICES[other]["healthcheck"]["test"]
        else:
            assert about["condition"] == "service_completed_successfully"
            assert "restart" not in SERVICES[other]
    for volume in SERVICES[name].get("volumes", []):
        assert volume.partition(":")[0] in COMPOSE["volumes"]


@pytest.mark.parametrize("name", ["api", "worker"])
def test_what_it_asks_is_there_before_it(name: str) -> None:
    """`up api worker` starts what they name, and no other service: each host of the settings is among it."""
    needed, new = set[str](), {name}
    while new:
        needed |= new
        new = {other for each in new for other in SERVICES[each].get("depends_on", {})} - needed
    hosts = {re.split(r"[/@:]", value.rpartition("@")[2].rpartition("//")[2])[0] for value in urls(name)}
    assert hosts
    assert hosts <= needed


def urls(name: str) -> list[str]:
    """Return the settings of a service that are addresses."""
    return [value for value in SERVICES[name]["environment"].values() if "://" in value]


@pytest.mark.parametrize(("name", "port"), [("api", Settings().api.port), ("worker", Settings().worker.port)])
def test_it_is_healthy_only_when_it_answers(name: str, port: int) -> None:
    """The image's own check takes a container that listens nowhere for one of the command line."""
    assert SERVICES[name]["healthcheck"]["test"][-1] == str(port)


def test_one_service_builds_the_image_of_all() -> None:
    """Compose labels each build with its service: three builds are three images under one name."""
    assert [name for name in OURS if "build" in SERVICES[name]] == ["migrate"]
    assert "migrate" in SERVICES["api"]["depends_on"].keys() & SERVICES["worker"]["depends_on"].keys()
    assert {SERVICES[name]["pull_policy"] for name in OURS} == {"never"}


@pytest.mark.parametrize("name", OURS)
def test_its_variables_are_settings(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is known to the application, which takes their values."""
    environment = SERVICES[name]["environment"]
    assert {each for each in environment if each not in VARIABLES} == set()
    for key, value in environment.items():
        monkeypatch.setenv(key, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
    settings = Settings()
    assert [host for host, _ in RedisAddress.of(settings.redis).servers] == ["redis"]
    assert settings.data.effective_database_url.endswith("@postgresql:5432/tailrun")
    assert settings.storage.s3_endpoint == "http://s3:7070"
    assert {"redis", "postgresql", "s3"} <= SERVICES.keys()


def test_nothing_listens_on_other_addresses() -> None:
    """Whoever reaches the API with a known token executes code."""
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert len(ports) == 2
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


@pytest.mark.parametrize("name", OURS)
def test_our_containers_are_locked_down(name: str) -> None:
    """As in a cluster: not root, nothing to write but temporary folders."""
    service = SERVICES[name]
    assert service["user"] == "10001:10001"
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]


def test_a_worker_may_drain() -> None:
    """Longer than the settings' drain and grace."""
    settings = Settings()
    assert (
        seconds(SERVICES["worker"]["stop_grace_period"])
        > settings.worker.drain_s + settings.tools.cancel_grace_s
    )


def test_images_have_versions_and_are_those_of_the_chart() -> None:
    """What one tries out on a machine is what one tries out in a cluster."""
    bundled = yaml.safe_load((ROOT / "helm/tailrun/values.yaml").read_text())["bundled"]
    for name, about in bundled.items():
        assert SERVICES[name]["image"] == about["image"]
    others = [service["image"] for service in SERVICES.values() if "build" not in service]
    assert [image for image in others if ":" not in image or image.endswith(":latest")] == []


@pytest.mark.deep
def test_docker_compose_takes_it() -> None:
    """Its own schema, where there is docker compose."""
    command = ["docker", "compose", "--file", str(ROOT / "compose.yaml"), "config", "--quiet"]
    asked = ["docker", "compose", "version"]
    if not shutil.which("docker") or subprocess.run(asked, capture_output=True, check=False).returncode:
        pytest.skip("NOT TESTED: there is no docker compose")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
