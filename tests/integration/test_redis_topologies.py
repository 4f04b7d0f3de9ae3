"""Every way to a Redis serves all that Tailrun does there: commands, blocking, pub/sub, the lease."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from support.redis_topologies import Certificates, SentinelSite, cluster_of_one, tls_front
from support.servers import RedisServer

from app.config import Settings
from app.core.models import Job
from app.redis.address import RedisAddress
from app.redis.claims import Claims
from app.redis.clients import RedisClients, RedisDown
from app.redis.inspect import ask
from app.redis.lease import LeaseClient
from app.redis.queue import Queue
from app.redis.subscriber import Subscriptions

Site = Callable[..., Settings]
JOB = {"user_id": "u", "kind": "steps", "project": None, "type": None, "attempt": 0, "enqueued_at": 1}


def settings(url: str, **more: Any) -> Settings:
    return Settings(redis_url=SecretStr(url), **more)


@dataclass
class Heard:
    """A listener of `Subscriptions`."""

    messages: asyncio.Queue[bytes]
    confirmed: asyncio.Event

    @classmethod
    def on(cls, subscriptions: Subscriptions, channel: str) -> Heard:
        heard = cls(asyncio.Queue(), asyncio.Event())
        subscriptions.add(channel, heard.messages.put_nowait, heard.confirmed.set)
        return heard


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.make(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def sentinel_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelSite]:
    site = SentinelSite(tmp_path_factory.mktemp("sentinels"), password="pa:ss")
    yield site.start()
    site.stop()


@pytest.fixture
def way(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    """The settings for one way to a Redis."""
    kind: str = request.param
    if kind == "sentinel":
        site: SentinelSite = request.getfixturevalue("sentinel_site")
        yield settings(site.url.replace("pa:ss", "pa%3Ass"))
        return
    if kind == "cluster":
        server = cluster_of_one(tmp_path / "redis")
        yield settings(server.url, redis_prefix="{tailrun}:")
    elif kind == "socket":
        socket = tmp_path / "redis.sock"
        server = RedisServer(tmp_path / "redis", options=("--unixsocket", str(socket))).start()
        yield settings(f"unix://{socket}?db=1")
    else:
        server = RedisServer(tmp_path / "redis").start()
        certificates: Certificates = request.getfixturevalue("certificates")
        files: Any = {
            name.lower(): value for name, value in certificates.settings(client=kind == "mutual tls").items()
        }
        with tls_front(server, certificates, client=kind == "mutual tls") as port:
            yield settings(f"rediss://127.0.0.1:{port}/2", **files)
    server.stop()


WAYS = ["socket", "tls", "mutual tls", "sentinel", "cluster"]


@pytest.mark.parametrize("way", WAYS, indirect=True)
async def test_every_way_serves_all_purposes(way: Settings) -> None:
    """Push, wait, claim, ack, subscribe, renew in a thread, and look with `tailrun redis`."""
    clients = RedisClients.for_worker(way.redis)
    claims, queue = Claims(clients, "w1", 5), Queue(clients)
    lease = LeaseClient(RedisAddress.of(way.redis), way.redis.prefix, "w1", 5)
    subscriptions = Subscriptions(clients)
    try:
        await clients.ping()
        heard = Heard.on(subscriptions, clients.keys.control())
        await asyncio.wait_for(heard.confirmed.wait(), 60)
        waiting = asyncio.create_task(claims.wait())
        await queue.push(Job(run_id="r1", **JOB), 0)
        entry = await asyncio.wait_for(waiting, 60)
        assert entry is not None
        assert await lease.renew() == [entry]
        assert await queue.worker_alive("w1")
        await clients.commands.publish(clients.keys.control(), b"hello")
        assert await asyncio.wait_for(heard.messages.get(), 60) == b"hello"
        await claims.claim(1, [entry])
        assert (await queue.depth()).in_flight == 0
        key = clients.keys.workers()
        assert [reply async for reply in ask(RedisAddress.of(way.redis), ["ZCARD", key])] == [1]
        await lease.release()
    finally:
        await clients.commands.flushdb()
        await subscriptions.close()
        await clients.close()
        await lease.close()


@pytest.mark.parametrize("wrong", ["a stranger's authority", "no client certificate", "the wrong host"])
async def test_tls_is_verified_on_both_sides(
    wrong: str, tmp_path: Path, certificates: Certificates, redis_server: RedisServer
) -> None:
    """A server that the CA file does not vouch for is not talked to, and it does not talk to strangers."""
    files: dict[str, Any] = {"redis_ca_file": certificates.ca}
    if wrong == "a stranger's authority":
        files["redis_ca_file"] = certificates.stranger
    if wrong != "no client certificate":
        files |= {"redis_cert_file": certificates.client, "redis_key_file": certificates.client_key}
    host = "localhost" if wrong == "the wrong host" else "127.0.0.1"
    with tls_front(redis_server, certificates, client=True) as port:
        way = settings(f"rediss://{host}:{port}", **files)
        clients = RedisClients.for_worker(way.redis)
        lease = LeaseClient(RedisAddress.of(way.redis), "", "w1", 5)
        with pytest.raises(RedisDown):
            await clients.ping()
        with pytest.raises(RedisDown):
            await lease.renew()
        await clients.close()
        await lease.close()


async def test_a_certificate_that_was_renewed_is_used_without_a_restart(
    tmp_path: Path, redis_server: RedisServer
) -> None:
    """cert-manager replaces the files under a running process."""
    old, new = Certificates.make(tmp_path / "old"), Certificates.make(tmp_path / "new")
    ca = tmp_path / "ca.pem"
    ca.write_bytes(old.ca.read_bytes())
    with tls_front(redis_server, new, client=False) as port:
        clients = RedisClients.for_worker(settings(f"rediss://127.0.0.1:{port}", redis_ca_file=ca).redis)
        with pytest.raises(RedisDown):
            await clients.ping()
        ca.write_bytes(new.ca.read_bytes())
        await clients.ping()
        await clients.close()


async def test_a_wrong_password_is_an_error_that_says_so(sentinel_site: SentinelSite) -> None:
    """And not the password."""
    clients = RedisClients.for_worker(settings(sentinel_site.url.replace("pa:ss", "not-it")).redis)
    with pytest.raises(RedisDown, match=r"(?i)auth|password") as error:
        await clients.ping()
    assert "not-it" not in str(error.value)
    await clients.close()


async def test_an_unknown_service_is_an_error_that_names_it(sentinel_site: SentinelSite) -> None:
    """Every sentinel's answer stands in it."""
    clients = RedisClients.for_worker(settings(sentinel_site.url.replace("tailrun-test", "nobody")).redis)
    with pytest.raises(RedisDown, match=r"'nobody'.*does not know it"):
        await clients.ping()
    await clients.close()


async def test_a_fail_over_moves_every_connection_to_the_new_master(tmp_path: Path) -> None:
    """Commands, blocking pop, pub/sub and the lease's thread; one sentinel dead besides."""
    site = SentinelSite(tmp_path).start()
    way = settings(site.url)
    clients = RedisClients.for_worker(way.redis)
    claims, queue, subscriptions = Claims(clients, "w1", 5), Queue(clients), Subscriptions(clients)
    lease = LeaseClient(RedisAddress.of(way.redis), "", "w1", 5)
    try:
        heard = Heard.on(subscriptions, "agent:control")
        await asyncio.wait_for(heard.confirmed.wait(), 60)
        await lease.renew()
        await queue.push(Job(run_id="r1", **JOB), 0)
        heard.confirmed.clear()
        old = site.master()
        await asyncio.to_thread(site.kill_sentinel, 0)
        await asyncio.to_thread(old.kill)
        new = await asyncio.to_thread(site.wait_for_other_master, old)
        await _until_it_works(clients.ping)
        await asyncio.wait_for(heard.confirmed.wait(), 60)
        await _until_it_works(lease.renew)
        entry = await asyncio.wait_for(_until_it_works(claims.wait), 60)
        assert entry is not None, "the replica had the entry"
        with new.client() as client:
            assert client.lrange("jobs:processing:w1", 0, -1) == [entry.decode()]
            assert client.publish("agent:control", "hello") == 1
        assert await asyncio.wait_for(heard.messages.get(), 60) == b"hello"
    finally:
        await subscriptions.close()
        await clients.close()
        await lease.close()
        await asyncio.to_thread(site.stop)


async def test_a_readonly_reply_ends_the_connection(tmp_path: Path) -> None:
    """Plain, out of a script, or ending a blocking pop: the next one resolves the name again."""
    servers = [RedisServer(tmp_path / name).start() for name in ("one", "two")]
    clients = RedisClients.for_worker(settings(servers[0].url).redis)
    claims, queue, lease = Claims(clients, "w1", 5), Queue(clients), LeaseClient(servers[0].url, "", "w1", 5)
    try:
        await queue.push_delayed(Job(run_id="r1", **JOB), 1)
        await lease.renew()
        waiting = asyncio.create_task(claims.wait())
        with servers[0].client() as client:
            await _until(lambda: client.info("clients")["blocked_clients"] == 1)
            client.execute_command("REPLICAOF", "127.0.0.1", servers[1].port)
            for work in (
                waiting,
                queue.push(Job(run_id="r2", **JOB), 0),
                queue.push_delayed(Job(run_id="r2", **JOB), 1),
                lease.renew(),
            ):
                with pytest.raises(RedisDown, match="no master any more"):
                    await work
            await _until(lambda: len(list(client.client_list(_type="normal"))) == 1)  # the asker's own
    finally:
        await clients.close()
        await lease.close()
        for server in servers:
            await asyncio.to_thread(server.stop)


async def test_a_server_that_a_sentinel_names_has_to_be_a_master(tmp_path: Path) -> None:
    """A sentinel that is cut off still names the old one, which would take no writes."""
    site = SentinelSite(tmp_path, sentinels=1).start()
    clients = RedisClients.for_worker(settings(site.url).redis)
    lease = LeaseClient(site.url, "", "w1", 5)
    try:
        with site.master().client() as client:
            client.execute_command("REPLICAOF", "127.0.0.1", site.servers[1].port)
        with pytest.raises(RedisDown, match="is no master but a slave"):
            await clients.ping()
        with pytest.raises(RedisDown, match="is no master but a slave"):
            await lease.renew()
    finally:
        await clients.close()
        await lease.close()
        await asyncio.to_thread(site.stop)


async def _until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


async def _until_it_works(work: Callable[[], Any]) -> Any:
    async with asyncio.timeout(60):
        while True:
            try:
                return await work()
            except RedisDown:
                await asyncio.sleep(0.05)


async def test_the_lease_thread_is_not_held_by_sentinels_that_are_silent(
    tmp_path: Path, slack: float
) -> None:
    """Two of three accept connections and never answer: a renewal still takes less than the lease."""
    site = SentinelSite(tmp_path, sentinels=1).start()
    silent = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    try:
        hosts = ",".join(f"127.0.0.1:{each.getsockname()[1]}" for each in silent)
        url = f"redis+sentinel://{hosts},127.0.0.1:{site.sentinel_ports[0]}/tailrun-test"
        lease = LeaseClient(RedisAddress.parse(url), "", "w1", 5)
        began = time.monotonic()
        async with asyncio.timeout(4 * slack):
            await lease.renew()
        first = time.monotonic() - began
        await lease.close()
        began = time.monotonic()
        await lease.renew()
        assert time.monotonic() - began < first, "the one that answered is asked first"
        await lease.close()
    finally:
        for each in silent:
            each.close()
        site.stop()
