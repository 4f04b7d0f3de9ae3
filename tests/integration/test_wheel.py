"""The wheel that people install: built, put into an empty environment beside a package `app` of theirs, used.

Only what the wheel asks for by name can be imported there, so that a dependency on the service shows.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.api_server import Api, serving, settings_for
from support.servers import RedisServer

ROOT = Path(__file__).resolve().parents[2]
HEAVY = {"sqlalchemy", "fastapi", "boto3", "redis", "pydantic", "kubernetes", "alembic", "starlette"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-deps", "--no-index"]
    command += ["--no-build-isolation", "--quiet", "--wheel-dir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    [built] = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the wheel and what it needs, all the way down, and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    for name in sorted(
        needed(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"])
    ):
        for file in importlib.metadata.distribution(name).files or ():
            first = file.parts[0]
            if first != ".." and not (folder / first).exists():
                (folder / first).symlink_to(file.locate().parents[len(file.parts) - 1] / first)
    return folder


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("api")
    url = f"sqlite:///{folder / 'tailrun.db'}"
    with serving(settings_for(folder, shared_redis.url, url)) as api:
        yield api


def needed(requirements: list[str]) -> set[str]:
    """Return the distributions that these requirements bring, without extras."""
    found = set[str]()
    waiting = list(requirements)
    while waiting:
        requirement = waiting.pop()
        name = re.split(r"[\s\[<>=!~;(]", requirement, maxsplit=1)[0].lower()
        if "extra ==" in requirement or name in found:
            continue
        try:
            waiting += importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:  # of another platform, or an older Python
            continue
        found.add(name)
    return found


def python(site: Path, folder: Path, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run Python in somebody's project: a folder with an `app` of its own."""
    (folder / "app").mkdir(exist_ok=True)
    (folder / "app" / "__init__.py").write_text("raise SystemExit('this is the app of a user')\n")
    clean = {"PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(site)} | env
    # -S: nothing of this environment's site-packages
    return subprocess.run(
        [sys.executable, "-S", *argv], cwd=folder, env=clean, capture_output=True, text=True, check=False
    )


def test_the_wheel_holds_one_package(wheel: Path) -> None:
    """No top-level `app` lands in anybody's site-packages."""
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.partition("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"tailrun"}


def test_the_client_and_the_library_are_there_and_light(site: Path, tmp_path: Path) -> None:
    script = "import sys; from tailrun import Client, OutputCapture; print(*sys.modules)"
    done = python(site, tmp_path, "-c", script)
    assert done.returncode == 0, done.stderr
    assert set(done.stdout.split()) & HEAVY == set()


def test_the_command_talks_to_a_server(site: Path, tmp_path: Path, api: Api) -> None:
    """`run`, `ls` and `show` against a remote API, from a folder with an `app` of the user's."""
    token = api.user("ann").headers["authorization"].removeprefix("Bearer ")
    where = {"TAILRUN_URL": api.url, "TAILRUN_TOKEN": token}
    made = python(site, tmp_path, "-m", "tailrun", "run", "--no-follow", "--", "true", **where)
    assert made.returncode == 0, made.stderr
    listed = python(site, tmp_path, "-m", "tailrun", "ls", "--json", **where)
    assert '"argv"' in listed.stdout, listed.stderr
    helped = python(site, tmp_path, "-m", "tailrun", "--help")
    assert "schedule" in helped.stdout
    assert "migrate" not in helped.stdout
