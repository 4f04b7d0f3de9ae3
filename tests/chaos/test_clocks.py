"""Processes whose machine's clock is an hour off: what they compare goes by Redis TIME."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.servers import free_port
from support.stack import ENTRY, Process, Stack, shell, wait_for

from app.core.clock import parse_ts

HOUR_S = 3600
_SHIFTED = (
    "import time; s, ns = time.time, time.time_ns;"
    " time.time = lambda: s() + {shift}; time.time_ns = lambda: ns() + {shift} * 10**9; "
)
_LIBRARY = [str(path) for path in Path("/usr/lib").glob("*/faketime/libfaketime.so.1")]

Shift = tuple[str, dict[str, str]]
"""What stands before a process's program, and in its environment."""


@pytest.fixture(params=["python", pytest.param("libfaketime", marks=pytest.mark.deep)])
def how(request: pytest.FixtureRequest) -> str:
    """Python's own functions are replaced, or the whole process is lied to where the library is."""
    if request.param == "libfaketime" and not _LIBRARY:
        pytest.skip("libfaketime is not installed (Debian: faketime)")
    return request.param


def shifted(how: str, seconds: int) -> Shift:
    if how == "python":
        return _SHIFTED.format(shift=seconds), {}
    return "", {
        "LD_PRELOAD": _LIBRARY[0],
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_NO_CACHE": "1",
    }


@pytest.fixture
def stack(tmp_path: Path, sqlite_url: str) -> Iterator[Stack]:
    stack = Stack(tmp_path, sqlite_url, workers=0, RETRY_BASE_S="0.2", RETRY_MAX_S="0.2")
    yield stack
    stack.close()


def process(stack: Stack, name: str, module: str, shift: Shift, **env: str) -> Process:
    before, more = shift
    return Process(module, stack._env(**more, **env), stack.folder / f"{name}.log", entry=before + ENTRY)


@pytest.mark.parametrize("seconds", [HOUR_S, -HOUR_S])
def test_a_worker_that_is_an_hour_off(stack: Stack, how: str, seconds: int) -> None:
    """It retries when that is due, pushes what Redis forgot, and writes times that all understand."""
    began = time.time_ns() // 1000
    forgotten = stack.submit(shell("echo forgotten"))
    with stack.redis.client() as client:
        client.flushall()
    port = str(free_port())
    stack.workers.append(process(stack, "worker0", "worker.main", shifted(how, seconds), WORKER_PORT=port))
    failing = stack.submit(argv=["sh", "-c", "exit 3"], retry_on=["exit_nonzero"], max_attempts=3)
    assert stack.wait_end(failing)["attempt"] == 3
    assert stack.wait_end(forgotten)["status"] == "succeeded"
    ended = time.time_ns() // 1000
    for run_id in (failing, forgotten):
        run = stack.run(run_id)
        times = [parse_ts(run[name]) for name in ("created_at", "started_at", "ended_at")]
        times += [parse_ts(event["ts"]) for event in stack.events(run_id)]
        assert all(began - 1_000_000 < at < ended + 1_000_000 for at in times), run


@pytest.mark.parametrize("seconds", [HOUR_S, -HOUR_S])
def test_an_api_that_is_an_hour_off(stack: Stack, how: str, seconds: int) -> None:
    """What it makes for a while opens at its neighbour, and the other way round; a due time is not late."""
    port = free_port()
    other = process(stack, "other", "main", shifted(how, seconds), PORT=str(port))
    try:
        ours, theirs = stack.url, f"http://127.0.0.1:{port}"
        wait_for(lambda: "serving" in other.log.read_text(), "the other API")
        run_id = stack.submit(shell("true"), start=False)
        for made, used in ((ours, theirs), (theirs, ours)):
            token = stack.http.post(f"{made}/v1/runs/{run_id}/stream-token").json()
            url = f"{used}{token['url']}&follow=0"
            assert stack.http.get(url, headers={"Authorization": ""}).status_code == 200
        stack.workers.append(stack.add_worker(0))
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 2))
        body = {"argv": ["true"], "run_at": now}
        at_once = stack.http.post(f"{theirs}/v1/runs", json=body).json()["run_id"]
        assert stack.wait_end(at_once)["status"] == "succeeded"
    finally:
        other.kill()
