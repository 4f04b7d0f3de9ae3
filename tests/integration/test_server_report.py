"""What the Redis server's settings would cost is said, and stops nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.api_server import serving, settings_for
from support.servers import RedisServer, free_port
from support.stack import Process, wait_for

from app.db.migrate import migrate
from app.redis.clients import RedisClients
from app.redis.inspect import ServerReport, remarks_on

WELL: dict[str, Any] = {"redis_version": "6.2.0", "maxmemory_policy": "noeviction", "aof_enabled": 1}


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"redis_version": "6.0.16"}, "older than 6.2"),
        ({"redis_version": "5.0"}, "older than 6.2"),
        ({"maxmemory_policy": "allkeys-lru"}, "maxmemory-policy allkeys-lru"),
        ({"aof_enabled": 0}, "no append-only file"),
    ],
)
def test_each_shortcoming_is_one_remark(changed: dict[str, Any], says: str) -> None:
    """With what it would cost, and what to set."""
    (remark,) = remarks_on(WELL | changed)
    assert says in remark


@pytest.mark.parametrize(
    "info",
    [WELL, {}, {"redis_version": "7.2.4"}, {"redis_version": "unknown"}, WELL | {"redis_version": "10.0"}],
)
def test_a_server_that_is_well_or_says_nothing_gets_no_remark(info: dict[str, Any]) -> None:
    """Managed services leave fields out."""
    assert remarks_on(info) == []


async def test_a_server_that_refuses_to_tell_gets_no_remark(tmp_path: Path) -> None:
    """`INFO` may be forbidden; and a Redis that is away is somebody else's remark."""
    server = RedisServer(tmp_path, appendonly=False).start()
    with server.client() as client:
        client.execute_command("ACL SETUSER shy on >pw ~* +@all -info")
    clients = RedisClients(server.url.replace("://", "://shy:pw@"))
    assert await ServerReport(clients).remarks() == []
    server.stop()
    assert await ServerReport(clients).remarks() == []
    await clients.close()


def test_both_processes_say_it(tmp_path: Path, sqlite_url: str) -> None:
    """On /readyz, which stays 200, and in the logs."""
    options = ("--maxmemory", "50mb", "--maxmemory-policy", "allkeys-lru")
    server = RedisServer(tmp_path / "redis", appendonly=False, options=options).start()
    migrate(sqlite_url)
    port = free_port()
    env = {"REDIS_URL": server.url, "DATABASE_URL": sqlite_url, "DATA_DIR": str(tmp_path / "data")}
    root = str(Path(__file__).parents[2])
    worker = Process(
        "worker.main", env | {"WORKER_PORT": str(port), "PYTHONPATH": root}, tmp_path / "worker.log"
    )
    try:
        with serving(settings_for(tmp_path, server.url, sqlite_url)) as api:
            answer = api.admin.get("/readyz")
            assert answer.status_code == 200
            policy, file = answer.json()["remarks"]
            assert "maxmemory-policy allkeys-lru" in policy
            assert "no append-only file" in file
        wait_for(lambda: "worker ready" in worker.log.read_text(), "the worker")
        worker.url = f"http://127.0.0.1:{port}"
        wait_for(lambda: worker.get("/readyz").status_code == 200, "the worker to claim")
        first, *remarks = worker.get("/readyz").text.splitlines()
        assert first == "ready, 0 runs in flight"
        assert remarks == [f"remark: {policy}", f"remark: {file}"]
        log = worker.log.read_text()
        assert "maxmemory-policy allkeys-lru" in log
        assert "no append-only file" in log
    finally:
        worker.stop()
        server.stop()
