"""Programs on a PATH of their own that write down how they were called; `kubectl` keeps a little cluster.

For tests of scripts: `Recorder.calls` has every call in order with its stdin, so that a test can hold the
order of steps, and that no secret stood on a command line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_PROGRAM = """#!/bin/sh
# Questions about rights are half of all calls, and a shell starts twenty times as fast.
if [ "$1 $2" = "auth can-i" ] && ! [ -e '{folder}/rights' ]; then
    call='["kubectl", ["auth", "can-i", "%s", "%s", "%s", "%s"], ""]'
    printf "$call\\n" "$3" "$4" "$5" "$6" >>'{folder}/calls'
    exit
fi
exec '{python}' -IS '{folder}/program.py' "${{0##*/}}" "$@"
"""
_ANSWERS = """import json, os, pathlib, sys
here = pathlib.Path({folder!r})
name, args = sys.argv[1], sys.argv[2:]
reads = "-" in args or "/dev/stdin" in args
stdin = sys.stdin.read() if reads else ""
with (here / "calls").open("a") as calls:
    calls.write(json.dumps([name, args, stdin]) + "\\n")
scenario = json.loads((here / "scenario").read_text())
state_file = here / "state"
state = json.loads(state_file.read_text()) if state_file.exists() else {{}}
line = " ".join([name, *args])
for part, (code, text) in scenario["answers"].items():
    if part in line:
        print(text)
        sys.exit(code)

def keep():
    state_file.write_text(json.dumps(state))

secrets = state.setdefault("secrets", {{}})

if name == "kubectl":
    args = [a for i, a in enumerate(args) if a != "--namespace" and (i == 0 or args[i - 1] != "--namespace")]
    match args:
        case ["kustomize", *_]:
            print(scenario["manifests"])
        case ["get", "namespace", *_]:
            sys.exit(0 if state.get("namespaces") else 1)
        case ["get", "secret", which, "-o", what]:
            if which not in secrets:
                sys.exit(1)
            data, version = secrets[which]["data"], secrets[which]["version"]
            shown = data.get("API_TOKEN", "<no value>") if "base64decode" in what else " ".join(data)
            print(version if "resourceVersion" in what else shown)
        case ["get", "deployment" | "secret" | "scaledobject", *_]:
            sys.exit(0 if state.get("applied") else 1)
        case ["get", "networkpolicy", "agent-api-in-process"]:
            sys.exit(0 if state.get("in_process") else 1)
        case ["delete", "networkpolicy", "agent-api-in-process", *_]:
            state["in_process"] = False
            keep()
        case ["create", "-f", "-"]:
            made = json.loads(stdin)
            secrets[made["metadata"]["name"]] = {{"data": made["stringData"], "version": 1}}
            keep()
        case ["patch", "secret", which, *_]:
            before = secrets[which]
            data = before["data"] | json.loads(stdin)["stringData"]
            secrets[which] = {{"data": data, "version": before["version"] + (data != before["data"])}}
            keep()
        case ["apply", "-f", "-"]:
            if "kind: Namespace" in stdin:
                state["namespaces"] = True
            state["applied"] = True
            state["in_process"] = state.get("in_process", False) or "agent-api-in-process" in stdin
            keep()
            print("objects unchanged")
"""


@dataclass(frozen=True)
class Call:
    """One call of a program."""

    name: str
    args: list[str]
    stdin: str

    @property
    def line(self) -> str:
        return " ".join([self.name, *self.args])


class Recorder:
    """A folder of recording programs, and what they were asked."""

    def __init__(self, folder: Path, *names: str, manifests: str = "") -> None:
        self.folder = folder
        self._bin = folder / "bin"
        self._bin.mkdir(parents=True)
        for name in names:
            program = self._bin / name
            program.write_text(_PROGRAM.format(python=sys.executable, folder=folder))
            program.chmod(0o755)
        (folder / "program.py").write_text(_ANSWERS.format(folder=str(folder)))
        self._scenario: dict[str, Any] = {"answers": {}, "manifests": manifests}
        self._write()

    def answer(self, part: str, code: int = 0, text: str = "") -> None:
        """A call whose line holds `part` prints `text` and ends with `code`."""
        self._scenario["answers"][part] = (code, text)
        if "can-i" in part:
            (self.folder / "rights").touch()
        self._write()

    def _write(self) -> None:
        (self.folder / "scenario").write_text(json.dumps(self._scenario))

    def run(self, *argv: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run a script that finds these programs first."""
        path = os.pathsep.join([str(self._bin), os.environ["PATH"]])
        kept = {name: os.environ[name] for name in ("HOME", "TMPDIR") if name in os.environ}
        return subprocess.run(
            argv, env={**kept, "PATH": path, **env}, capture_output=True, text=True, timeout=120, check=False
        )

    @property
    def calls(self) -> list[Call]:
        file = self.folder / "calls"
        return [Call(*json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []

    def forget(self) -> None:
        """Begin a new list of calls; the cluster stays as it is."""
        (self.folder / "calls").unlink(missing_ok=True)

    def at(self, *parts: str) -> int:
        """Return the place of the first call whose line and stdin hold all `parts`."""
        for place, call in enumerate(self.calls):
            if all(part in call.line + call.stdin for part in parts):
                return place
        raise AssertionError(f"no call with {parts} among:\n" + "\n".join(call.line for call in self.calls))
