"""Tailrun as deploy.sh puts it into a real cluster, used through a port-forward that comes back by itself.

Needs KUBECONFIG, and TAILRUN_IMAGE and TAILRUN_TOOLBOX_IMAGE as the nodes know them; the images of the dev
overlay (Valkey, PostgreSQL, Versity's gateway) are pulled, or there. Each place is a namespace of its own.
TAILRUN_IMAGE_BEFORE and TAILRUN_TOOLBOX_IMAGE_BEFORE name the release before, for the test of an upgrade.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.servers import free_port
from support.stack import wait_for

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("KUBECONFIG", "TAILRUN_IMAGE", "TAILRUN_TOOLBOX_IMAGE")
WAIT_S = 300


def need(*more: str) -> None:
    missing = [name for name in NEEDED + more if not os.environ.get(name)]
    if missing:
        pytest.skip(f"no cluster to deploy to: set {', '.join(missing)} (see tests/cluster/deployed.py)")


class Deployed:
    """One namespace, from `deploy` to `purge`."""

    def __init__(self, *args: str, overlay_token: bool = True) -> None:
        self.namespace = f"tr-{secrets.token_hex(3)}"
        self._args = args
        self._overlay_token = overlay_token
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._stop = threading.Event()
        self._forwarding = threading.Thread(target=self._forward, daemon=True)
        self._http: httpx2.Client | None = None

    # -- the scripts --------------------------------------------------------------------

    def deploy(self, *more: str, release: str = "") -> subprocess.CompletedProcess[str]:
        """Run deploy.sh; `release` is what the variables that name other images end with."""
        app, toolbox = (os.environ[name + release] for name in ("TAILRUN_IMAGE", "TAILRUN_TOOLBOX_IMAGE"))
        images = ("--image", app, "--tool-image", toolbox)
        return self._script("deploy.sh", *self._args, *images, "--timeout", str(WAIT_S), *more)

    def verify(self) -> dict[str, dict[str, Any]]:
        done = self._script("verify.sh", "--json", "--timeout", str(WAIT_S), check=False)
        checks = {each["name"]: each for each in json.loads(done.stdout)["checks"]}
        bad = [each for each in checks.values() if each["result"] == "failed"]
        assert (done.returncode, bad) == (0, []), done.stderr
        return checks

    def _script(self, name: str, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [str(ROOT / name), "--namespace", self.namespace, *args],
            capture_output=True,
            text=True,
            timeout=4 * WAIT_S,
            check=False,
        )
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def kubectl(self, *args: str, check: bool = True) -> str:
        argv = ["kubectl", "--namespace", self.namespace, *args]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=WAIT_S, check=False)
        assert not check or done.returncode == 0, done.stderr
        return done.stdout

    def purge(self) -> None:
        self._stop.set()
        if self._forwarding.is_alive():
            self._forwarding.join(30)
        if self._http is not None:
            self._http.close()
        self._script("deploy.sh", *self._args, "--uninstall", "--purge-data", "--timeout", str(WAIT_S))

    # -- the API ------------------------------------------------------------------------

    def _forward(self) -> None:
        """Keep a port-forward: it ends with the pod that it led to."""
        argv = ["kubectl", "-n", self.namespace, "port-forward", "service/agent-api", f"{self.port}:80"]
        while not self._stop.is_set():
            forward = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            while forward.poll() is None and not self._stop.is_set():
                self._stop.wait(0.1)
            forward.terminate()
            forward.wait(30)

    def open(self) -> None:
        """Begin to use it."""
        headers = {"Authorization": f"Bearer {self._token()}"}
        self._http = httpx2.Client(base_url=self.url, headers=headers, timeout=30, trust_env=False)
        self._forwarding.start()
        wait_for(lambda: self.ask("GET", "/healthz") is not None, "the port-forward", WAIT_S)

    def _token(self) -> str:
        return "development-only" if self._overlay_token else self._secret("tailrun-credentials", "API_TOKEN")

    def _secret(self, name: str, key: str) -> str:
        template = f"go-template={{{{.data.{key} | base64decode}}}}"
        return self.kubectl("get", "secret", name, "-o", template)

    def ask(self, method: str, path: str, **options: Any) -> Any:
        """Ask again and again until an API answers; what is not 2xx and not 5xx fails."""
        assert self._http is not None
        deadline = time.monotonic() + WAIT_S
        while True:
            try:
                answer = self._http.request(method, path, **options)
            except httpx2.TransportError:
                answer = None
            if answer is not None and answer.status_code < 500:
                assert answer.is_success, answer.text
                return answer.json()
            assert time.monotonic() < deadline, f"no answer to {method} {path}"
            time.sleep(0.2)

    def submit(self, **body: Any) -> str:
        headers = {"Idempotency-Key": secrets.token_hex(8)}
        return self.ask("POST", "/v1/runs", content=json.dumps(body), headers=headers)["run_id"]

    def wait_end(self, run_id: str) -> dict[str, Any]:
        wait_for(lambda: self.ask("GET", f"/v1/runs/{run_id}")["ended_at"], f"the end of {run_id}", WAIT_S)
        return self.ask("GET", f"/v1/runs/{run_id}")

    def follow(self, run_id: str, seen: Callable[[str], None]) -> list[dict[str, Any]]:
        """Read a run's stream to its end, reconnecting with the last id; `seen` gets each line."""
        assert self._http is not None
        events: list[dict[str, Any]] = []
        deadline = time.monotonic() + 2 * WAIT_S
        while not events or events[-1]["type"] != "end":
            assert time.monotonic() < deadline, f"no end of {run_id}: {events[-1:]}"
            headers = {"Last-Event-ID": str(events[-1]["seq"])} if events else {}
            try:
                with self._http.stream("GET", f"/v1/runs/{run_id}/stream", headers=headers) as answer:
                    for line in answer.iter_lines():
                        if line.startswith("data: "):
                            events.append(json.loads(line[6:]))
                            seen(events[-1].get("content") or "")
            except httpx2.TransportError:
                time.sleep(0.2)
        return events
