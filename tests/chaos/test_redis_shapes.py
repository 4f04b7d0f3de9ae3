"""The whole system on each shape of Redis: an ACL user with the documented rights, a cluster, sentinels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.redis_exercise import all_scripts, drive
from support.redis_topologies import Certificates, SentinelSite, TlsServer, cluster_of_one
from support.servers import RedisServer
from support.stack import Stack, seqs, shell, wait_for

from app.redis.clients import RedisClients
from app.redis.lease import LeaseClient

DOCS = Path(__file__).resolve().parents[2] / "docs"
TICKS = 'for i in $(seq 1 80); do echo "tick $i"; sleep 0.1; done'
PASSWORD = "sesame"


def acl_words() -> list[str]:
    """The documented line, with a password."""
    line = re.search(r"^ACL SETUSER tailrun .*$", (DOCS / "redis.md").read_text(), re.MULTILINE)
    assert line
    return line.group().replace(">PASSWORD", f">{PASSWORD}").split()


@contextmanager
def stack_on(tmp_path: Path, database_url: str, redis: Any, **settings: str) -> Iterator[Stack]:
    stack = Stack(tmp_path, database_url, redis=redis, **settings)
    try:
        yield stack
    finally:
        stack.close()


def exercise(stack: Stack, prefix: str = "") -> None:
    """What users do: run, tail, cancel, retry, push by hand, look at the queue and the dead letters."""
    runs = [stack.submit(shell(f"echo line {n}")) for n in range(3)]
    failing = stack.submit(shell("exit 3"), max_attempts=2, retry_on=["exit_nonzero"])
    slow = stack.submit(shell("echo begun; sleep 60"))
    watcher = stack.watch(slow)
    watcher.wait_line("begun")
    assert stack.cancel(slow).status_code == 200
    assert watcher.finish()[-1]["status"] == "cancelled"
    assert [stack.wait_end(run)["status"] for run in runs] == ["succeeded"] * 3
    assert stack.wait_end(failing)["status"] == "failed"
    held = stack.submit(shell("echo by hand"), start=False)
    with stack.redis.client() as client:
        client.lpush(f"{prefix}jobs:pending", f'{{"run_id":"{held}"}}', "garbage")
    assert stack.wait_end(held)["status"] == "succeeded"
    wait_for(lambda: stack.http.get("/v1/queue").json()["dead"] == 2, "two dead letters")
    letters = stack.http.get("/v1/dead").json()["items"]
    assert {letter["reason"] for letter in letters} == {"malformed", "retries_exhausted"}
    assert stack.http.delete(f"/v1/dead/{failing}").status_code == 204


def test_the_documented_rights_are_enough(tmp_path: Path, sqlite_url: str) -> None:
    """The whole system as the ACL user of docs/redis.md, and the server refuses nothing."""
    server = RedisServer(tmp_path / "redis").start()
    with server.client() as client:
        client.execute_command(*acl_words())
    url = server.url.replace("://", f"://tailrun:{PASSWORD}@")
    with stack_on(tmp_path, sqlite_url, server, REDIS_URL=url) as stack:
        exercise(stack)
        assert stack.http.get("/readyz").json()["checks"]["redis"] == "ok"
        with server.client() as client:
            assert client.acl_log() == []


async def test_everything_that_is_ever_done_is_among_the_documented_rights(tmp_path: Path) -> None:
    """Also what only happens in trouble; and no right is documented that nothing uses."""
    server = RedisServer(tmp_path / "redis").start()
    with server.client() as client:
        client.execute_command(*acl_words())
    url = server.url.replace("://", f"://tailrun:{PASSWORD}@")
    clients, lease = RedisClients(url), LeaseClient(url, "", "w1", 5)
    try:
        await drive(clients, lease)
        await clients.commands.info()
        with server.client() as client:
            assert client.acl_log() == []
            stats: Any = client.info("commandstats")
    finally:
        await clients.close()
        await lease.close()
        server.stop()
    allowed = {word[1:] for word in acl_words() if word.startswith("+")}
    used = {name.removeprefix("cmdstat_").partition("|")[0] for name in stats}
    others = {"role", "select", "unsubscribe", "eval", "publish"}  # with Sentinel, a database, new scripts
    assert allowed - used - others == set(), "rights that nothing uses"


def test_every_command_of_a_script_is_among_the_documented_rights() -> None:
    """A branch that no test takes would be refused in production only."""
    allowed = {word[1:].upper() for word in acl_words() if word.startswith("+")}
    for name, script in all_scripts().items():
        calls = re.findall(r"redis\.p?call\(([^,)]*)", script.lua)
        called = set(re.findall(r"'([A-Z]{3,})'", " ".join(calls)))
        assert called, name
        assert called <= allowed, name


def test_the_whole_system_runs_on_a_cluster_of_one(tmp_path: Path, sqlite_url: str) -> None:
    """The server itself refuses whatever would cross slots."""
    prefix = "{tailrun}:"
    server = cluster_of_one(tmp_path / "redis")
    with stack_on(tmp_path, sqlite_url, server, REDIS_PREFIX=prefix) as stack:
        exercise(stack, prefix)


def test_a_run_goes_on_through_a_fail_over(tmp_path: Path, sqlite_url: str) -> None:
    """The master is killed in mid-run: every line once, to the watcher and in the database."""
    fail_over(tmp_path, sqlite_url, times=1)


@pytest.mark.deep
@pytest.mark.timeout(300)
def test_a_run_goes_on_through_several_fail_overs(tmp_path: Path, sqlite_url: str) -> None:
    """There and back: the old master comes again as a replica each time."""
    fail_over(tmp_path, sqlite_url, times=4)


def fail_over(tmp_path: Path, database_url: str, times: int) -> None:
    site = SentinelSite(tmp_path / "site").start()
    with stack_on(tmp_path, database_url, site) as stack:
        for _ in range(times):
            run_id = stack.submit(shell(TICKS))
            waiting = [stack.submit(shell(f"sleep 2; echo waited {n}")) for n in range(12)]
            watcher = stack.watch(run_id)
            watcher.wait_line("tick 5")
            old = site.master()
            old.kill()
            site.wait_for_other_master(old)
            run = stack.wait_end(run_id)
            assert run["status"] == "succeeded"
            assert seqs(watcher.finish()) == list(range(1, run["last_seq"] + 1))
            assert watcher.lines() == [f"tick {i}" for i in range(1, 81)]
            assert seqs(stack.events(run_id)) == seqs(watcher.events)
            for n, each in enumerate(waiting):
                assert stack.wait_end(each)["status"] == "succeeded"
                lines = [event["content"] for event in stack.events(each) if event["type"] == "log"]
                assert lines == [f"waited {n}"]
            assert stack.http.get("/v1/queue").json()["dead"] == 0
            old.start()


@pytest.mark.deep
def test_the_whole_system_runs_over_tls_with_client_certificates(tmp_path: Path, sqlite_url: str) -> None:
    """On a server that was built with TLS and that refuses whoever has no certificate."""
    certificates = Certificates.make(tmp_path / "certificates")
    server = TlsServer(tmp_path / "redis", certificates)
    server.start()
    with stack_on(tmp_path, sqlite_url, server, **certificates.settings(client=True)) as stack:
        exercise(stack)


@pytest.mark.deep
def test_the_whole_system_runs_over_a_unix_socket(tmp_path: Path, sqlite_url: str) -> None:
    """With a database number."""
    socket = tmp_path / "redis.sock"
    server = RedisServer(tmp_path / "redis", options=("--unixsocket", str(socket))).start()
    with stack_on(tmp_path, sqlite_url, server, REDIS_URL=f"unix://{socket}") as stack:
        exercise(stack)
