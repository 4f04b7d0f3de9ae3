"""`verify.sh`, the real script, against a real `up`: it passes where all is well, and says what is not."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.recording_programs import Recorder
from support.up_process import Up, clean_environment

SCRIPT = Path(__file__).resolve().parents[2] / "verify.sh"
pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    up = Up(tmp_path_factory.mktemp("verify")).start()
    yield up
    up.stop()


def verify(*args: str, **env: str) -> tuple[int, dict[str, dict[str, Any]]]:
    """Run the script; return its exit code and its checks by name."""
    done = subprocess.run(
        [str(SCRIPT), "--json", *args],
        env=clean_environment(**env),
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.stderr == ""
    report = json.loads(done.stdout)
    assert report["ok"] is (done.returncode == 0)
    return done.returncode, {each["name"]: each for each in report["checks"]}


def test_everything_is_well(up: Up, tmp_path: Path) -> None:
    """Each check passes that this machine allows, with the token in a file and the address of `up`."""
    secret = tmp_path / "token"
    secret.write_text(up.token)
    code, checks = verify("--url", f"http://127.0.0.1:{up.port}/", "--token-file", str(secret))
    assert code == 0, checks
    skipped = {name for name, each in checks.items() if each["result"] == "skipped"}
    assert skipped == {"a tool's network", "a worker's metrics"}
    assert "6 lines while it ran" in checks["tailed while it runs"]["detail"]
    runs = json.loads(up.run("ls", "--json").stdout)["items"]
    assert {run["status"] for run in runs} == {"succeeded", "cancelled"}


@pytest.mark.deep  # one check waits for half a minute
def test_why_a_run_hangs_is_said(tmp_path: Path) -> None:
    """Its log knows: here that there is no worker, and what to do."""
    idle = Up(tmp_path / "up", UP_WORKERS="0").start()
    try:
        secret = tmp_path / "token"
        secret.write_text(idle.token)
        url = f"http://127.0.0.1:{idle.port}/"
        code, checks = verify("--url", url, "--token-file", str(secret), "--timeout", "5")
    finally:
        idle.stop()
    assert code == 1
    said = [each["detail"] for each in checks.values() if "its log says" in str(each.get("detail"))]
    assert said
    assert "no worker is alive: start one with `tailrun worker`" in said[0]


@pytest.mark.skipif(shutil.which("redis-cli") is None, reason="no redis-cli here")
def test_the_entry_is_seen_in_redis(up: Up) -> None:
    """With REDIS_URL the lists themselves are read."""
    redis = f"redis://127.0.0.1:{up.redis_port}/0"
    code, checks = verify(API=f"http://127.0.0.1:{up.port}", TOKEN=up.token, REDIS_URL=redis)
    assert code == 0, checks
    assert "its entry stands in jobs:" in checks["enqueued in Redis"]["detail"]


def test_a_wrong_token_is_named_and_nothing_else_tried(up: Up) -> None:
    code, checks = verify("--url", f"http://127.0.0.1:{up.port}", TOKEN="wrong")
    assert code == 1
    assert "401" in checks["API answers"]["detail"]
    assert [each["result"] for each in checks.values()].count("failed") == 1


def test_no_api_is_a_failure() -> None:
    code, checks = verify("--url", "http://127.0.0.1:1", "--timeout", "1", TOKEN="x")
    assert code == 1
    assert "connect" in checks["API answers"]["detail"].lower()


def test_the_load_generator_finds_nothing_missing(up: Up) -> None:
    """`make bench WHAT=load` against a running server, with the smallest of loads."""
    bounds = {"LOAD_SECONDS": "1", "LOAD_SUBMITTERS": "2", "LOAD_WATCHERS": "1"}
    where = {"API": f"http://127.0.0.1:{up.port}", "TOKEN": up.token}
    done = subprocess.run(
        [sys.executable, str(SCRIPT.parent / "bench/load.py")],
        env=clean_environment(**bounds, **where),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"lines followed +[1-9]\d\d", done.stdout)
    assert re.search(r"something missing +0$", done.stdout, re.MULTILINE)


class _Buffering(BaseHTTPRequestHandler):
    """A proxy that hands an answer on when it is complete, as a badly set-up one does."""

    upstream = ""

    def _pass(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        kept = {name: value for name, value in self.headers.items() if name.lower() != "host"}
        url = self.upstream + self.path
        answer = httpx2.request(self.command, url, content=body, headers=kept, timeout=120, trust_env=False)
        self.send_response(answer.status_code)
        self.send_header("content-length", str(len(answer.content)))
        self.end_headers()
        self.wfile.write(answer.content)

    do_GET = do_POST = do_PUT = _pass  # noqa: N815 - http.server asks for these

    def log_message(self, *args: Any) -> None:
        """Say nothing."""


def test_a_proxy_that_holds_streams_back_is_found(up: Up) -> None:
    """All lines come, but after the run: that is not tailing."""
    handler = type("Handler", (_Buffering,), {"upstream": f"http://127.0.0.1:{up.port}"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        code, checks = verify("--url", f"http://127.0.0.1:{server.server_port}", TOKEN=up.token)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert code == 1
    assert "holds streams back" in checks["tailed while it runs"]["detail"]
    assert checks["files of the workspace"]["result"] == "ok"


@pytest.mark.parametrize("args", [["--nothing"], ["--url"], ["--timeout", "soon"]])
def test_wrong_usage_is_said(args: list[str]) -> None:
    done = subprocess.run(
        [str(SCRIPT), *args], capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 2
    assert "--help" in done.stderr


KLOG = "E1120 18:00:00.123456   77 memcache.go:265] Unhandled Error"


def test_what_kubectl_says_is_told_without_its_log(tmp_path: Path) -> None:
    kubectl = Recorder(tmp_path, "kubectl")
    (tmp_path / "bin/kubectl").write_text(
        f"#!/bin/sh\necho '{KLOG}' >&2\necho 'The connection was refused' >&2\nexit 1\n"
    )
    done = kubectl.run(str(SCRIPT))
    assert done.returncode == 1
    assert "The connection was refused" in done.stdout
    assert "memcache" not in done.stdout + done.stderr


def test_a_tailrun_is_not_taken_for_a_cluster(tmp_path: Path) -> None:
    kubectl = Recorder(tmp_path, "kubectl")
    kubectl.answer("get --raw /openapi.json", 0, '{"openapi":"3.1.0","info":{"title":"Tailrun"}}')
    done = kubectl.run(str(SCRIPT))
    assert done.returncode == 1
    assert "which is a Tailrun" in done.stdout
    assert 'eval "$(tailrun env)"' in done.stdout
