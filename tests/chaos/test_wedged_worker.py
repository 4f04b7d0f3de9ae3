"""A line that wedges the process that looks at it: the process ends, and only the line's own run is given up.

What wedges is put in from here, for the product has no such expression any more: one of `re` that does
not come to an end, and holds the GIL.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx2
import pytest
from support.stack import TOKEN, Process, Stack, free_port, shell, wait_for

pytestmark = pytest.mark.timeout(600)

SILENT_S = 3
WEDGE = f"""
import re, sys
from app.core import loop_guard
from app.config import Settings
loop_guard.SILENT_S = {SILENT_S}

def wedging(look, mark):
    def look_at(text):
        if mark in text:
            re.match("(?:x|x)*y", "x" * 60)
        return look(text)
    return look_at
"""
WORKER = f"""{WEDGE}
from tailrun.process import output
from app.worker.main import serve
output.level_of = wedging(output.level_of, "WEDGE worker")
sys.exit(serve(Settings()))
"""
API = f"""{WEDGE}
from app.main import serve
from app.routes import logs
logs.strip_ansi = wedging(logs.strip_ansi, "WEDGE api")
sys.exit(serve(Settings()))
"""
WEDGING = shell("echo 'WEDGE worker s3cret'; sleep 60")


class WedgedStack(Stack):
    """Workers that a line with WEDGE stops for good, and somebody who starts them again."""

    def add_worker(self, n: int) -> Process:
        port = free_port()
        env = self._env(WORKER_PORT=str(port))
        worker = Process("worker.main", env, self.folder / f"worker{n}.log", entry=WORKER)
        worker.url = f"http://127.0.0.1:{port}"
        return worker

    def restart(self) -> None:
        for worker in self.workers:
            if worker.popen.poll() is not None:
                worker.start()

    def wait_ended(self, run_ids: list[str], timeout_s: float = 300) -> list[dict[str, Any]]:
        def over() -> bool:
            self.restart()
            return all(self.run(run_id)["ended_at"] for run_id in run_ids)

        wait_for(over, "the runs to end", timeout_s)
        return [self.run(run_id) for run_id in run_ids]


@pytest.fixture
def stack(tmp_path: Path, system_url: str) -> Iterator[WedgedStack]:
    stack = WedgedStack(tmp_path, system_url, workers=2, LEASE_S="4", DRAIN_S="1")
    yield stack
    stack.close()


def test_a_run_that_wedges_its_workers_takes_no_other_down(stack: WedgedStack) -> None:
    """The six beside it succeed, whatever worker they were on; it is a dead letter; the workers go on."""
    victims = [stack.submit(shell("for i in $(seq 1 24); do echo $i; sleep 0.25; done")) for _ in range(6)]
    wait_for(lambda: all(stack.run(run_id)["log_lines"] for run_id in victims), "the victims' first lines")
    wedging = stack.submit(WEDGING)
    [guilty] = stack.wait_ended([wedging])
    assert (guilty["status"], guilty["error"]["code"]) == ("failed", "worker_lost")
    assert (guilty["attempt"], guilty["redeliveries"]) == (5, 4), "three redeliveries, and the last word"
    ended = stack.wait_ended(victims)
    assert [run["status"] for run in ended] == ["succeeded"] * 6
    assert max(run["redeliveries"] for run in ended) <= 2, "those who ran alone died no more"
    letters = stack.http.get("/v1/dead").json()["items"]
    assert [(letter["run_id"], letter["reason"]) for letter in letters] == [(wedging, "poison")]
    after = stack.submit(shell("echo on"))
    assert stack.wait_ended([after])[0]["status"] == "succeeded"


def test_runs_that_wait_to_run_alone_do_so_one_by_one(stack: WedgedStack) -> None:
    """What is suspected says so in its log, and is never beside another run."""
    victims = [stack.submit(shell("for i in $(seq 1 24); do echo $i; sleep 0.25; done")) for _ in range(3)]
    wait_for(lambda: all(stack.run(run_id)["log_lines"] for run_id in victims), "the victims' first lines")
    for attempt in (1, 2):
        wait_for(
            lambda n=attempt: all(stack.run(run_id)["attempt"] == n for run_id in victims),
            f"attempt {attempt}",
        )
        for worker in stack.workers:
            worker.kill()
        stack.restart()
    ended = stack.wait_ended(victims)
    assert [(run["status"], run["redeliveries"]) for run in ended] == [("succeeded", 2)] * 3
    spans: dict[str, list[tuple[str, str]]] = {}
    for run_id in victims:
        events = [event for event in stack.events(run_id) if event["attempt"] == 3]
        assert any("nothing else runs beside it" in (event.get("content") or "") for event in events)
        worker = next(log.name for log in stack.folder.glob("worker*.log") if alone_on(log, run_id))
        spans.setdefault(worker, []).append((events[0]["ts"], events[-1]["ts"]))
    for times in spans.values():
        times.sort()
        assert all(before[1] <= after[0] for before, after in pairwise(times)), spans


def alone_on(log: Path, run_id: str) -> bool:
    return f"run started  run_id={run_id} attempt=3" in log.read_text()


def test_sigterm_ends_a_wedged_worker(stack: WedgedStack) -> None:
    """No handler of ours runs any more; the log says where it stood, and nothing of what was printed."""
    owner = owner_of_wedge(stack)
    owner.signal(signal.SIGTERM)
    assert owner.popen.wait(60) == 1
    said = owner.log.read_text()
    assert "Timeout (0:00:03)!" in said
    assert "in _lines" in said
    assert "s3cret" not in said


def owner_of_wedge(stack: WedgedStack) -> Process:
    run_id = stack.submit(WEDGING)

    def wedged() -> list[Process]:
        return [worker for worker in stack.workers if not answers(worker)]

    wait_for(lambda: stack.run(run_id)["status"] == "running", "a worker to take it")
    wait_for(wedged, "it to wedge its worker")
    return wedged()[0]


def answers(worker: Process) -> bool:
    try:
        return httpx2.get(f"{worker.url}/healthz", timeout=1, trust_env=False).status_code == 200
    except httpx2.TransportError:
        return False


def test_a_wedged_api_ends(stack: WedgedStack) -> None:
    run_id = stack.submit(shell("echo WEDGE api"))
    stack.wait_ended([run_id])
    port = free_port()
    env = stack._env(PORT=str(port))
    api = Process("main", env, stack.folder / "wedged-api.log", entry=API)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(lambda: "serving" in api.log.read_text(), "the API to serve")
        headers = {"Authorization": f"Bearer {TOKEN}"}
        with pytest.raises(httpx2.TransportError):
            httpx2.get(
                f"{url}/v1/runs/{run_id}/logs?ansi=strip", headers=headers, timeout=60, trust_env=False
            )
        assert api.popen.wait(60) == 1
        assert "Timeout (0:00:03)!" in api.log.read_text()
    finally:
        if api.popen.poll() is None:
            api.kill()
