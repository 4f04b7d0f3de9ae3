"""The image `toolbox`: built over a stand-in for its base, then run as a pod would run it, as PID 1."""

from __future__ import annotations

import json
import os
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import psutil
import pytest
from image_builder import ImageBuilder, size_mb
from support.s3_server import S3Server
from support.wrapped_program import Outcome, decode

from app.config import Settings
from app.storage.factory import open_staging, open_workspaces

pytestmark = [pytest.mark.deep, pytest.mark.timeout(1200)]

USER = 10001
PROGRAMS = ("python", "python3", "bash", "git", "curl", "jq", "node")
COMPILERS = ("gcc", "cc", "g++", "make", "ld")
WRAPPER = ("python", "-I", "-m", "toolbox")

# A pod's container: a PID namespace and a root that can't be written, with volumes in it.
_ENTER = """
set -eu
root=$1; shift
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
while [ "$1" != -- ]; do mount --bind "$2" "$root$1"; shift 2; done
shift
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
exec chroot --userspec=10001:10001 "$root" env -i "$@"
"""


@dataclass
class Pod:
    """The image's root, and the volumes of one pod."""

    builder: ImageBuilder
    name: str
    root: Path
    volumes: dict[str, Path]

    @cached_property
    def config(self) -> dict[str, Any]:
        return self.builder.config(self.name)

    def start(self, *argv: str, env: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
        mounts = [word for place, folder in self.volumes.items() for word in (place, str(folder))]
        pairs = [*self.config["Env"], *(f"{key}={value}" for key, value in (env or {}).items())]
        command = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", _ENTER, "enter"]
        return subprocess.Popen(
            [*command, str(self.root), *mounts, "--", *pairs, *argv], stdout=subprocess.PIPE, cwd="/"
        )

    def run(self, *argv: str, **env: str) -> Outcome:
        process = self.start(*WRAPPER, "exec", "--", *argv, env=env)
        raw, _ = process.communicate(timeout=120)
        return Outcome(process.returncode, decode(raw))


@pytest.fixture(scope="module")
def built(image_builder: ImageBuilder) -> Iterator[tuple[ImageBuilder, str, Path]]:
    name = image_builder.build("toolbox", VERSION="9.8.7", REVISION="abcdef0")
    with image_builder.mounted(name) as root:
        yield image_builder, name, root


@pytest.fixture
def pod(built: tuple[ImageBuilder, str, Path], tmp_path: Path) -> Pod:
    volumes = {place: tmp_path / place.replace("/", "_") for place in ("/workspace", "/tailrun", "/tmp")}
    for folder in volumes.values():
        folder.mkdir()
        os.chown(folder, USER, USER)
    return Pod(*built, volumes)


def test_what_is_in_it(pod: Pod) -> None:
    """The programs that tools call, no compiler, nothing of the builder, a user by number."""
    found = pod.run("bash", "-c", f"for p in {' '.join(PROGRAMS)}; do command -v $p || echo no $p; done")
    assert "no " not in found.out
    assert (
        "/" not in pod.run("bash", "-c", f"for p in {' '.join(COMPILERS)}; do command -v $p; done; true").out
    )
    assert pod.config["User"] == "10001:10001"
    assert pod.config["WorkingDir"] in {"", "/"}
    assert pod.config["Labels"]["org.opencontainers.image.version"] == "9.8.7"
    assert not pod.config.get("Entrypoint")
    assert list((pod.root / "var/lib/apt/lists").glob("*Packages*")) == []
    print(f"\nthe image toolbox: {size_mb(pod.root):.0f} MB over the stand-in, which is in it")


def test_the_programs_work(pod: Pod) -> None:
    """As nobody special, with a root that can't be written."""
    script = (
        "set -e; id -u; python3 -c 'print(6*7)'; node -e 'console.log(6*7)'; echo '{\"a\":42}' | jq .a; "
        "git init -q . && git -c user.name=x -c user.email=x@example.com commit -q --allow-empty -m x; "
        "git log --format=%s; echo x > file; ! echo x > /etc/x"
    )
    done = pod.run("bash", "-c", script)
    assert (done.code, done.out.splitlines()) == (0, ["10001", "42", "42", "42", "x"])
    assert "Read-only file system" in done.err


def test_the_workspace_shadows_no_module(pod: Pod) -> None:
    """A tool's own `select.py` or PYTHONPATH is the tool's business, not the wrapper's."""
    for name in ("select", "toolbox", "codecs", "sitecustomize"):
        (pod.volumes["/workspace"] / f"{name}.py").write_text("raise SystemExit('shadowed')")
    done = pod.run("sh", "-c", "echo $PYTHONPATH", PYTHONPATH="/workspace", PYTHONHOME="/workspace")
    assert (done.code, done.out) == (0, "/workspace\n")


def test_pid_1_buries_and_ends_everybody(pod: Pod) -> None:
    """Also what left the group; a SIGTERM from outside reaches the program."""
    done = pod.run("bash", "-c", "setsid sleep 600 & sleep 600 & echo $$ $PPID; exit 3")
    assert (done.code, done.out.split()[1]) == (3, "1")
    process = pod.start(
        *WRAPPER,
        "exec",
        "--",
        "bash",
        "-c",
        "trap 'echo bye; exit 4' TERM; echo up; while :; do sleep 0.05; done",
    )
    assert process.stdout
    process.stdout.readline()
    psutil.Process(process.pid).children()[0].send_signal(signal.SIGTERM)
    raw, _ = process.communicate(timeout=60)
    assert (process.returncode, Outcome(4, decode(raw)).out) == (4, "bye\n")


async def test_files_go_through_it(pod: Pod, tmp_path: Path) -> None:
    """`sync` of the image over S3, a tool between, and back."""
    with S3Server() as s3:
        settings = Settings(data_dir=tmp_path / "data", **s3.settings("pods"))
        workspaces = open_workspaces(settings)
        staging, workspace = open_staging(settings, workspaces), workspaces.open("ann", "run-1")
        await workspace.write("in.txt", b"hello")
        offer = await staging.offer(
            "tool-1", workspace, {"main.sh": b"tr a-z A-Z < in.txt > out.txt"}, lifetime_s=600
        )
        secret = tmp_path / "secret"
        secret.mkdir()
        (secret / "sync.json").write_text(json.dumps(offer.sync_json()))
        (secret / "sync.json").chmod(0o444)
        secret.chmod(0o755)
        sync = Pod(pod.builder, pod.name, pod.root, {**pod.volumes, "/run/tailrun": secret}).start(
            *WRAPPER, "sync"
        )
        done = pod.run("bash", "/tailrun/source/main.sh", TOOLBOX_WAIT="/tailrun/ready")
        assert (done.code, done.news) == (0, [("synced", "")])
        probe = pod.start(*WRAPPER, "ready")
        probe.communicate(timeout=60)
        assert probe.returncode == 0
        psutil.Process(sync.pid).children()[0].send_signal(signal.SIGTERM)
        said = sync.communicate(timeout=60)[0].decode()
        assert sync.returncode == 0, said
        collected = await staging.collect("tool-1", workspace)
        assert [(file.path, file.size) for file in collected.changed] == [("out.txt", 5)]
        assert b"".join([piece async for piece in workspace.read("out.txt")]) == b"HELLO"
        await staging.drop("tool-1")
        await workspaces.close()


def test_how_soon_it_starts(pod: Pod) -> None:
    """From exec to the program's first frame: the wrapper's own share of a tool's start."""
    with_us, without = [], []
    for times, command in ((with_us, [*WRAPPER, "exec", "--", "echo", "x"]), (without, ["echo", "x"])) * 15:
        began = time.perf_counter()
        process = pod.start(*command)
        assert process.stdout
        process.stdout.readline()
        times.append(time.perf_counter() - began)
        process.communicate(timeout=60)
    own = (statistics.median(with_us) - statistics.median(without)) * 1000
    print(f"\nthe wrapper's share of a start: {own:.0f} ms (median of 15)")
    assert own < 5000
