"""Prints lines into a server under test, as its publisher would: a process of its own, driven over stdin.

    feeder.py tcp PORT | redis PORT | nchan PORT | tailrun REDIS_URL

Commands: `open RUN_ID SEQ` (tailrun only), `burst LINES`, `steady RATE SECONDS`; each is answered by `done`.
A line has 200 bytes: when it was sent, padding, and one `~` by which it is counted.
"""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parents[2]))

WIDTH = 199
BATCH = 512


def line() -> str:
    """Return one line, without its line end."""
    return f"@{time.monotonic_ns()} ".ljust(WIDTH - 1, "x") + "~"


class Tcp:
    """Lines over a plain connection."""

    batch = BATCH

    def __init__(self, port: str) -> None:
        self._port = int(port)

    async def start(self) -> None:
        """Connect."""
        _, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def send(self, lines: list[str]) -> None:
        """Send some lines; wait while the server is behind."""
        self._writer.write(("\n".join(lines) + "\n").encode())
        await self._writer.drain()


class Nchan:
    """A POST per line, pipelined over one connection."""

    batch = 16

    def __init__(self, port: str) -> None:
        self._port = int(port)

    async def start(self) -> None:
        """Connect."""
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)

    async def send(self, lines: list[str]) -> None:
        """Post some lines and read their answers."""
        head = f"POST /pub HTTP/1.1\r\nHost: x\r\nContent-Length: {WIDTH}\r\n\r\n"
        self._writer.write("".join(head + text for text in lines).encode())
        for _ in lines:
            answer = await self._reader.readuntil(b"\r\n\r\n")
            length = int(answer.lower().partition(b"content-length:")[2].partition(b"\r\n")[0] or 0)
            await self._reader.readexactly(length)


class Redis:
    """A PUBLISH per line, in pipelines."""

    batch = 64

    def __init__(self, port: str) -> None:
        from redis.asyncio import Redis as Client  # noqa: PLC0415 - only this peer needs it

        self._redis: Any = Client(port=int(port))

    async def start(self) -> None:
        """Nothing to do: it connects by itself."""

    async def send(self, lines: list[str]) -> None:
        """Publish some lines."""
        async with self._redis.pipeline(transaction=False) as pipe:
            for text in lines:
                pipe.publish("lines", text)
            await pipe.execute()


class Tailrun:
    """What a worker's log writer does: events through `app.redis.publisher`, fenced."""

    batch = BATCH

    def __init__(self, url: str) -> None:
        from app.redis.clients import RedisClients  # noqa: PLC0415 - only this peer needs it
        from app.redis.publisher import Publisher  # noqa: PLC0415

        self._publisher = Publisher(RedisClients(url))
        self._run_id, self._seq = "", 0

    async def start(self) -> None:
        """Nothing to do: it connects by itself."""

    def open(self, run_id: str, seq: int) -> None:
        """Go on with another run, which stands at `seq`."""
        self._run_id, self._seq = run_id, seq

    async def send(self, lines: list[str]) -> None:
        """Publish some lines in one call."""
        from app.core.events import LineBatch  # noqa: PLC0415
        from tailrun.process.lines import Line, Stream  # noqa: PLC0415

        printed = [Line(Stream.STDOUT, text) for text in lines]
        batch = LineBatch(self._seq + 1, time.time_ns() // 1000, self._run_id, 1, "s1", printed)
        refused = await self._publisher.append(
            self._run_id, 1, batch.first, batch.encoded(), keep_from=0, may_raise=True
        )
        assert refused is None
        self._seq = batch.seq


KINDS = {"tcp": Tcp, "nchan": Nchan, "redis": Redis, "tailrun": Tailrun}


async def burst(peer: Any, lines: int) -> None:
    """Send as fast as the server takes them."""
    while lines:
        count = min(lines, peer.batch)
        await peer.send([line() for _ in range(count)])
        lines -= count


async def steady(peer: Any, rate: float, seconds: float) -> None:
    """Send one line after the other, each at its time."""
    began = time.monotonic()
    for n in range(int(rate * seconds)):
        wait = began + n / rate - time.monotonic()
        if wait > 0:
            await asyncio.sleep(wait)
        await peer.send([line()])


async def main() -> None:
    """Take commands until the input ends."""
    peer: Any = KINDS[sys.argv[1]](sys.argv[2])
    await peer.start()
    print("done", flush=True)
    while command := (await asyncio.to_thread(sys.stdin.readline)).split():
        match command:
            case ["open", run_id, seq]:
                peer.open(run_id, int(seq))
            case ["burst", lines]:
                await burst(peer, int(lines))
            case ["steady", rate, seconds]:
                await steady(peer, float(rate), float(seconds))
            case _:
                raise SystemExit(f"unknown command {command}")
        print("done", flush=True)


asyncio.run(main())
