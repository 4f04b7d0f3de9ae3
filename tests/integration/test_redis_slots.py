"""With a prefix in braces everything lies in one slot of a cluster: every key that the server ever sees."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import redis
from support.redis_exercise import all_scripts, drive, monitored
from support.redis_topologies import cluster_of_one

from app.redis.clients import RedisClients
from app.redis.lease import LeaseClient

PREFIX = "{tailrun}:"
_CALL = re.compile(r"redis\.p?call\(\s*(?P<what>[^,)]+)\s*(?:,\s*(?P<first>[^,)]+))?")


def keys_of(client: redis.Redis, words: list[str]) -> list[str]:
    try:
        return client.execute_command("COMMAND GETKEYS", *words)
    except redis.ResponseError:  # it has none
        return []


async def test_all_scripts_and_commands_stay_in_one_slot(tmp_path: Path) -> None:
    """Declared or computed, inside a script or not; and every script there is was among them."""
    server = cluster_of_one(tmp_path)
    clients, lease = RedisClients(server.url, PREFIX), LeaseClient(server.url, PREFIX, "w1", 5)
    try:
        with monitored(server) as monitor:
            await drive(clients, lease)
        seen = {words[1] for words in monitor.commands if words[0].upper() == "EVALSHA"}
        missing = {name for name, script in all_scripts().items() if script.sha not in seen}
        assert missing == set(), "a script that tests/support/redis_exercise.py does not drive"
        with server.client() as client:
            keys = {key for words in monitor.commands for key in keys_of(client, words)}
            assert len(keys) > 10
            assert {key for key in keys if not key.startswith(PREFIX)} == set()
            slots: set[Any] = {client.execute_command("CLUSTER KEYSLOT", key) for key in keys}
            assert len(slots) == 1
    finally:
        await clients.close()
        await lease.close()
        server.stop()


def test_no_script_computes_a_key() -> None:
    """A cluster and its proxies route by KEYS; what a script makes up they can't see."""
    for name, script in all_scripts().items():
        for call in _CALL.finditer(script.lua):
            first = (call["first"] or "").strip()
            free = call["what"].strip() in {"'TIME'", "'PUBLISH'", "'XINFO'"}
            assert free or re.fullmatch(r"KEYS\[(\d|i|#KEYS)\]", first), f"{name}: {call.group()}"
