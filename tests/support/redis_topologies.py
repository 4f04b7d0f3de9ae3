"""Real servers in the shapes that Redis is found in: behind sentinels, TLS or an ACL, as a cluster of one."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
import trustme

from support import reaper
from support.servers import RedisServer, free_port, redis_binary

SERVICE = "tailrun-test"


class SentinelSite:
    """A master, a replica and sentinels, on loopback. `url` is what Tailrun is given."""

    def __init__(self, folder: Path, *, password: str | None = None, sentinels: int = 3) -> None:
        self._folder = folder
        self._password = password
        secret = ("--requirepass", password, "--masterauth", password) if password else ()
        first, second = (free_port(), free_port())
        self.servers = [
            _Member(folder / "one", first, password, secret),
            _Member(folder / "two", second, password, (*secret, "--replicaof", f"127.0.0.1 {first}")),
        ]
        self.sentinel_ports = [free_port() for _ in range(sentinels)]
        self._sentinels: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        login = f":{self._password}@" if self._password else ""
        return f"redis+sentinel://{login}{hosts}/{SERVICE}/0"

    def start(self) -> SentinelSite:
        for server in self.servers:
            server.start()
        _until(self._follows, "the replica to follow its master")
        for port in self.sentinel_ports:
            self._sentinels.append(self._start_sentinel(port))
        _until(self._settled, "the sentinels to know each other and the replica")
        return self

    def master(self) -> RedisServer:
        """The server that the sentinels name now."""
        port = self.master_port()
        return next(server for server in self.servers if server.port == port)

    def master_port(self) -> int:
        for port in self.sentinel_ports:
            with contextlib.suppress(redis.RedisError), redis.Redis(port=port, socket_timeout=1) as client:
                found: Any = client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)
                return int(found[1])
        raise AssertionError("no sentinel answers")

    def wait_for_other_master(self, old: RedisServer) -> RedisServer:
        _until(lambda: self.master_port() != old.port, "a fail-over")
        return self.master()

    def kill_sentinel(self, number: int) -> None:
        self._sentinels[number].kill()
        self._sentinels[number].wait()

    def client(self) -> redis.Redis:
        return self.master().client()

    def stop(self) -> None:
        for process in self._sentinels:
            process.kill()
            process.wait()
        for server in self.servers:
            server.stop()

    def _start_sentinel(self, port: int) -> subprocess.Popen[bytes]:
        folder = self._folder / f"sentinel-{port}"
        folder.mkdir(parents=True)
        config = folder / "sentinel.conf"
        quorum = len(self.sentinel_ports) // 2 + 1
        lines = [
            f"port {port}",
            "bind 127.0.0.1",
            f"dir {folder}",
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} {quorum}",
            f"sentinel down-after-milliseconds {SERVICE} 800",
            f"sentinel failover-timeout {SERVICE} 4000",
        ]
        lines += [f"sentinel auth-pass {SERVICE} {self._password}"] if self._password else []
        config.write_text("\n".join(lines) + "\n")
        sentinel = subprocess.Popen(
            [redis_binary(), str(config), "--sentinel"], stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT
        )
        reaper.watch(sentinel.pid)
        return sentinel

    def _follows(self) -> bool:
        with self.servers[1].client() as client:
            info: Any = client.info("replication")
        return info["master_link_status"] == "up"

    def _settled(self) -> bool:
        others = len(self.sentinel_ports) - 1
        for port in self.sentinel_ports:
            with redis.Redis(port=port, socket_timeout=1, decode_responses=True) as client:
                try:
                    state: Any = client.sentinel_master(SERVICE)
                except redis.RedisError:
                    return False
                if (int(state["num-slaves"]), int(state["num-other-sentinels"])) != (1, others):
                    return False
        return True


class _Member(RedisServer):
    """One of the servers that sentinels watch."""

    def __init__(self, folder: Path, port: int, password: str | None, options: tuple[str, ...]) -> None:
        super().__init__(folder, options=options)
        self.port = port
        self._password = password

    def client(self) -> redis.Redis:
        return redis.Redis(port=self.port, password=self._password, decode_responses=True, socket_timeout=2)

    def wait_ready(self) -> None:
        def answers() -> bool:
            with contextlib.suppress(redis.ConnectionError, redis.TimeoutError), self.client() as client:
                return bool(client.ping())
            return False

        _until(answers, "a server to start")


@dataclass
class Certificates:
    """An authority, a server's certificate for 127.0.0.1 and a client's, as files."""

    ca: Path
    server: Path
    server_key: Path
    client: Path
    client_key: Path
    stranger: Path

    @classmethod
    def make(cls, folder: Path) -> Certificates:
        folder.mkdir(parents=True, exist_ok=True)
        authority, other = trustme.CA(), trustme.CA()
        made = cls(
            *(
                folder / f"{name}.pem"
                for name in ("ca", "server", "server-key", "client", "client-key", "stranger")
            )
        )
        authority.cert_pem.write_to_path(made.ca)
        other.cert_pem.write_to_path(made.stranger)
        for certificate, file, key in (
            (authority.issue_cert("127.0.0.1"), made.server, made.server_key),
            (authority.issue_cert("worker@tailrun.test"), made.client, made.client_key),
        ):
            certificate.cert_chain_pems[0].write_to_path(file)
            certificate.private_key_pem.write_to_path(key)
        return made

    def settings(self, *, client: bool) -> dict[str, str]:
        """The environment for it."""
        found = {"REDIS_CA_FILE": str(self.ca)}
        if client:
            found |= {"REDIS_CERT_FILE": str(self.client), "REDIS_KEY_FILE": str(self.client_key)}
        return found


@contextmanager
def tls_front(server: RedisServer, certificates: Certificates, *, client: bool) -> Iterator[int]:
    """Put TLS before a server (the wheel's has none) and yield the port; `client`: demand a certificate."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=certificates.ca)
    context.load_cert_chain(certificates.server, certificates.server_key)
    context.verify_mode = ssl.CERT_REQUIRED if client else ssl.CERT_NONE
    loop = asyncio.new_event_loop()
    started: list[asyncio.Server] = []
    ready = threading.Event()

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.CancelledError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        with contextlib.suppress(OSError):
            writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            back_reader, back_writer = await asyncio.open_connection("127.0.0.1", server.port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(pump(reader, back_writer), pump(back_reader, writer))

    async def run() -> None:
        loop.set_exception_handler(lambda _loop, _context: None)  # a refused handshake is what a test wants
        started.append(await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context))
        ready.set()
        with contextlib.suppress(asyncio.CancelledError):
            await started[0].serve_forever()
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    task: list[asyncio.Task[None]] = []

    def body() -> None:
        task.append(loop.create_task(run()))
        loop.run_until_complete(task[0])
        loop.close()

    thread = threading.Thread(target=body)
    thread.start()
    assert ready.wait(60)
    try:
        yield started[0].sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(task[0].cancel)
        thread.join(60)


class TlsServer(RedisServer):
    """Debian's redis-server, which is built with TLS; its plain port is open as well."""

    def __init__(self, folder: Path, certificates: Certificates) -> None:
        self.tls_port = free_port()
        super().__init__(
            folder,
            options=(
                *("--tls-port", str(self.tls_port), "--tls-auth-clients", "yes"),
                *(
                    "--tls-cert-file",
                    str(certificates.server),
                    "--tls-key-file",
                    str(certificates.server_key),
                ),
                *("--tls-ca-cert-file", str(certificates.ca)),
            ),
        )

    @property
    def url(self) -> str:
        return f"rediss://127.0.0.1:{self.tls_port}/0"

    def command(self) -> tuple[list[str], str | None]:
        """The program is one file with redis-check-rdb, told apart by the name it is called by."""
        checker = shutil.which("redis-check-rdb")
        assert checker, "Debian's redis-tools are missing: `make test-deep` installs them"
        return ["redis-server"], checker


def cluster_of_one(folder: Path) -> RedisServer:
    """A server in cluster mode that owns all slots: what crosses slots is refused."""
    server = RedisServer(
        folder, options=("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
    ).start()
    with server.client() as client:
        client.execute_command("CLUSTER ADDSLOTSRANGE", 0, 16383)
        _until(lambda: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok", "the cluster")
    return server


def _until(condition: Any, what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.02)
