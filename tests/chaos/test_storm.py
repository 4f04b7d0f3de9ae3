"""Everything at once, at random, by a seed: a short storm here, long ones by `make chaos`.

CHAOS_SEED, CHAOS_RUNS and CHAOS_SECONDS make one storm; the seed is printed.
"""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from havoc import storm
from support.servers import RedisServer
from support.stack import Stack
from support.tcp_proxy import BehindProxy, TcpProxy

_SETTINGS = {"JOB_MAX_REDELIVERIES": "100", "JOB_MAX_ATTEMPTS": "100", "RETRY_MAX_S": "2", "DRAIN_S": "1"}
_DROPPED = 0.05
"""The share of pub/sub messages that never arrives."""


def _storm(folder: Path, url: str, *, seed: int, runs: int, seconds: float) -> None:
    print(f"\nseed {seed}")
    redis = BehindProxy(RedisServer(folder / "redis").start(), seed=seed)
    redis.proxy.drop_messages = _DROPPED
    proxies, settings = {"redis": redis.proxy}, dict(_SETTINGS)
    if url.startswith("postgresql"):
        port = urlsplit(url).port
        assert port
        proxies["database"] = TcpProxy(port, seed=seed)
        settings["DATABASE_URL"] = url.replace(f":{port}/", f":{proxies['database'].port}/")
    stack = Stack(folder, url, workers=2, redis=redis, **settings)
    try:
        print(storm(stack, folder, seed=seed, runs=runs, seconds=seconds, proxies=proxies))
    finally:
        stack.close()
        if "database" in proxies:
            proxies["database"].close()


@pytest.mark.timeout(900)
def test_a_short_storm(tmp_path: Path, sqlite_url: str) -> None:
    """Nothing is lost, nothing is doubled, nothing runs twice at once, nothing is left."""
    _storm(tmp_path, sqlite_url, seed=20261120, runs=20, seconds=15)


@pytest.mark.deep
@pytest.mark.timeout(7200)
def test_a_long_storm(tmp_path: Path, database_url: str) -> None:
    seed = int(os.environ.get("CHAOS_SEED", secrets.randbelow(10**9)))
    runs, seconds = int(os.environ.get("CHAOS_RUNS", "300")), float(os.environ.get("CHAOS_SECONDS", "240"))
    _storm(tmp_path, database_url, seed=seed, runs=runs, seconds=seconds)
