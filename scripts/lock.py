"""Make the requirements files from pyproject.toml, or check that they belong to it.

uv resolves once for every platform and Python from 3.11 on; pip installs the result and refuses
whatever has another hash. The first line of each file holds a digest of the tables it was made
from, so that `--check` needs neither uv nor a network. No file names a package registry: which
one is asked is the business of the machine that installs.

requirements.txt           what runs
requirements-embedded.txt  the embedded server alone, which has no build for some machines
requirements-fast.txt      what makes it faster, and has no build for some machines either
requirements-dev.txt       what runs, and what tests and checks it
requirements-deep.txt      what the long tests need besides, alone: what it depends on is of no use there
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ALONE = "requirements-deep.txt"
HEADER = "# Made by `make lock` from pyproject.toml; do not edit. Input: "


def inputs(project: dict[str, Any]) -> dict[str, list[str]]:
    """Return the requirements that each lock file answers, by file name, in locking order."""
    extras: dict[str, list[str]] = project["project"]["optional-dependencies"]
    runtime: list[str] = [*project["project"]["dependencies"], *extras["server"], *extras["agent-cli"]]
    embedded, fast = extras["embedded"], extras["fast"]
    groups: dict[str, list[str]] = project["dependency-groups"]
    return {
        "requirements.txt": runtime,
        "requirements-embedded.txt": embedded,
        "requirements-fast.txt": fast,
        "requirements-dev.txt": [*runtime, *embedded, *fast, *groups["dev"]],
        ALONE: groups["deep"],
    }


def header(requirements: list[str], python: str) -> str:
    """Return the first line of the file that locks `requirements`."""
    canonical = json.dumps([python, sorted(requirements)])
    return HEADER + hashlib.sha256(canonical.encode()).hexdigest()[:16]


def resolve(requirements: list[str], python: str, constraints: Path | None, path: Path) -> str:
    """Let uv pin `requirements`, with hashes, for every platform; what `path` pins stays where it can."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-config"]
    command += ["--universal", "--python-version", python, "--generate-hashes", "--only-binary", ":all:"]
    command += ["--no-annotate", "--no-header", "--no-emit-index-url", "--no-emit-find-links"]
    command += ["--output-file", str(path)]
    if path.name == ALONE:
        command += ["--no-deps"]
    if constraints is not None:
        command += ["--constraints", str(constraints)]
    done = subprocess.run(
        command,
        input="\n".join(requirements),
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    if done.returncode != 0:
        sys.exit(f"uv could not resolve the dependencies:\n{done.stderr}")
    return path.read_text(encoding="utf-8")


def main() -> int:
    """Write the lock files; with --check only say whether they are in step."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--check", action="store_true", help="only check, without a network")
    checking: bool = parser.parse_args().check
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    python = project["project"]["requires-python"].removeprefix(">=")
    stale: list[str] = []
    for name, requirements in inputs(project).items():
        path, first = ROOT / name, header(requirements, python)
        if checking:
            lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
            stale += [] if lines[:1] == [first] else [name]
            continue
        constraints = None if name in {"requirements.txt", ALONE} else ROOT / "requirements.txt"
        path.write_text(f"{first}\n{resolve(requirements, python, constraints, path)}", encoding="utf-8")
        print(
            f"{name}: {sum('==' in line for line in path.read_text(encoding='utf-8').splitlines())} packages"
        )
    if stale:
        print(f"Out of step with pyproject.toml: {', '.join(stale)}. Run make lock.", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
