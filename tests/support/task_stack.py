"""The whole system with task types for tests: the shipped ones, and programs that misbehave on purpose."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path
from typing import Any

import yaml
from websockets.sync.client import ClientConnection, connect

from app.plan.task_types import SHIPPED
from support.live_run import PATIENT
from support.stack import TOKEN, Stack

EXAMPLE = Path(__file__).parents[2] / "examples" / "agent-cli"

SILENT = "import time; time.sleep(600)"
DEAF = """
    import os, signal, subprocess, sys, time
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if len(sys.argv) < 3:
        subprocess.Popen([sys.executable, "-c", open("/proc/self/cmdline").read().split("\\0")[2], "x", "x"])
    print("deaf", flush=True)
    time.sleep(600)
"""
TELLS = """
    import base64, os
    secret = os.environ["MODEL_KEY"]
    print(os.environ["DB_CONN"])
    print(secret, base64.b64encode(secret.encode()).decode())
    print(os.environ["PROJECT_PATH_UPLOADS"], os.environ["REGION"], os.environ["PROJECT_ID"])
    print("workspace", os.path.samefile(os.environ["TAILRUN_WORKSPACE"], os.getcwd()))
"""
GUARDED = """
    import os, time
    print("guard", os.getppid(), flush=True)
    time.sleep(600)
"""
ENDLESS = """
    import time
    for n in range(10_000):
        print("line", n, flush=True)
        time.sleep(0.05)
"""
COUNTS = """
    import time
    for n in range(30):
        print("line", n, flush=True)
        time.sleep(0.02)
"""


def _script(source: str, **more: Any) -> dict[str, Any]:
    return {"program": ["python", "-c", textwrap.dedent(source)], "args": [], **more}


MISBEHAVING: dict[str, Any] = {
    "silent": _script(SILENT, params={"mark": {"position": 1}}),
    "deaf": _script(DEAF, params={"mark": {"position": 1}}),
    "tells": _script(TELLS),
    "guarded": _script(GUARDED),
    "endless": _script(ENDLESS, timeout_s=2),
    "counts": _script(COUNTS),
    "quick": _script("import sys; print('no permission'); sys.exit(3)"),
    "mute": _script(""),
    "missing": {"program": ["no-such-program"]},
}


def write_types(folder: Path) -> Path:
    """Write a tasks.yaml and return its path."""
    types = yaml.safe_load(SHIPPED.read_text())["types"]
    for task in types.values():
        task["cwd"] = str(EXAMPLE)
    path = folder / "tasks.yaml"
    path.write_text(yaml.safe_dump({"types": types | MISBEHAVING}, sort_keys=False))
    return path


def post(stack: Stack, kind: str, command: str | None = None, **params: Any) -> str:
    """Make a task and return its id."""
    body: dict[str, Any] = {"project": params.pop("project", "default"), "type": kind, "params": params}
    answer = stack.http.post("/tasks", json=body | ({"command": command} if command else {}))
    assert answer.status_code == 201, answer.text
    assert answer.json()["status"] == "queued"
    return answer.json()["task_id"]


def operate(stack: Stack, signature: str, **request: Any) -> str:
    """Make an operation and return its id."""
    body = {"app_signature": signature, "operation_request_json": json.dumps(request)}
    answer = stack.http.post("/api/v1/operations", json=body)
    assert answer.status_code == 201, answer.text
    assert answer.json()["logs"] == []
    return answer.json()["operation_id"]


def watching(stack: Stack, task_id: str, query: str = "") -> ClientConnection:
    """Open a watcher's WebSocket."""
    url = f"{stack.url.replace('http', 'ws', 1)}/tasks/{task_id}/watch{query}"
    return connect(url, additional_headers={"Authorization": f"Bearer {TOKEN}"}, **PATIENT)


def watched(stack: Stack, task_id: str) -> list[str]:
    """Watch a task to its end and return every line."""
    with watching(stack, task_id) as socket:
        lines = [str(line) for line in socket]
        assert socket.close_code == 1000
    return lines
