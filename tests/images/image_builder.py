"""Builds the Dockerfile's targets with buildah where no registry is reachable, and enters what was built.

The base is a stand-in: a small Debian with its own Python, made by debootstrap once a session, where
the Dockerfile would take python:3.13.9-slim-trixie. Only root can do it, on Linux, with the packages of
`make test-deep`. Everything lies below one folder, which `close` removes.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
BASE = "localhost/stand-in-base:1"
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
PYTHON = "python3,python3-venv,ca-certificates"

_ENTER = """
set -eu
root=$1 data=$2 tmp=$3; shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --bind "$data" "$root/data"
mount --bind "$tmp" "$root/tmp"
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
exec chroot --userspec=10001:10001 "$root" env -i "$@"
"""


def codename() -> str:
    """Return this Debian's name: the release that its mirror surely has."""
    lines = Path("/etc/os-release").read_text().splitlines()
    return next(line.partition("=")[2] for line in lines if line.startswith("VERSION_CODENAME="))


class ImageBuilder:
    """One storage of images below `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._env = {**os.environ, "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf")}
        self._env.pop("STORAGE_DRIVER", None)
        (folder / "storage.conf").write_text(
            f'[storage]\ndriver = "overlay"\ngraphroot = "{folder}/images"\nrunroot = "{folder}/run"\n'
        )
        (folder / "pip.conf").write_text(self._pip_conf())

    @staticmethod
    def _pip_conf() -> str:
        """Return how pip gets at its index on this machine, for pip inside of a build."""
        lines = ["[global]", f"cert = {CERTIFICATES}"]
        for name in ("index-url", "extra-index-url"):
            said = subprocess.run(
                ["pip", "config", "get", f"global.{name}"], capture_output=True, text=True, check=False
            ).stdout.split()
            lines += [f"{name} = {' '.join(url for url in said if not url.startswith('file:'))}"] * bool(said)
        return "\n".join(lines) + "\n"

    def buildah(self, *argv: str) -> str:
        """Run buildah and return its output; what it says when it fails is the error."""
        done = subprocess.run(
            ["buildah", *argv], env=self._env, cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"buildah {argv[0]}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def make_base(self) -> None:
        """Make the stand-in base, with this machine's certificates, so that pip trusts what it trusts."""
        root = self._folder / "base"
        command = ["debootstrap", "--variant=minbase", f"--include={PYTHON}", codename(), str(root)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr
        if CERTIFICATES.exists():
            shutil.copyfile(CERTIFICATES, root / CERTIFICATES.relative_to("/"))
        shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
        (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
        container = self.buildah("from", "scratch")
        self.buildah("add", "--quiet", container, str(root), "/")
        self.buildah("commit", "--quiet", "--rm", container, BASE)
        shutil.rmtree(root)

    def build(self, target: str, **arguments: str) -> str:
        """Build a target of the Dockerfile over the stand-in; return the image's name."""
        name = f"localhost/{target}:test"
        flags = [f"--build-arg={key}={value}" for key, value in {"BASE": BASE, **arguments}.items()]
        secret = f"--secret=id=pip.conf,src={self._folder}/pip.conf"
        self.buildah(
            *("bud", "--quiet", "--isolation=chroot", "--format=docker", "--layers", secret),
            *(*flags, "--target", target, "--tag", name, "."),
        )
        return name

    def config(self, image: str) -> dict[str, Any]:
        """Return the configuration that an image carries: user, environment, health check, labels."""
        inspected: dict[str, Any] = json.loads(self.buildah("inspect", "--type=image", image))
        return inspected["Docker"]["config"]

    @contextmanager
    def mounted(self, image: str) -> Iterator[Path]:
        """Mount a container of the image for as long as the context lasts; yield its root."""
        container = self.buildah("from", image)
        try:
            yield Path(self.buildah("mount", container))
        finally:
            self.buildah("rm", container)

    def close(self) -> None:
        """Remove all images."""
        self.buildah("rmi", "--all", "--force")
        shutil.rmtree(self._folder / "images", ignore_errors=True)


def size_mb(root: Path) -> float:
    """Return the bytes of all files below a root, in MB of 1 000 000, each file of many names once."""
    sizes = {
        (info.st_dev, info.st_ino): info.st_size
        for folder, _, files in os.walk(root)
        for info in (os.lstat(Path(folder, name)) for name in files)
    }
    return sum(sizes.values()) / 1_000_000


def enter(root: Path, argv: list[str], env: Mapping[str, str], *, data: Path, tmp: Path) -> list[str]:
    """Return the command that runs `argv` in a root as a cluster would: read-only, as user 10001.

    `data` and `tmp` are folders of this machine that stand for the writable volumes; they must
    belong to user 10001.
    """
    pairs = [f"{name}={value}" for name, value in env.items()]
    folders = [str(root), str(data), str(tmp)]
    return ["unshare", "--mount", "sh", "-c", _ENTER, "enter", *folders, *pairs, *argv]
