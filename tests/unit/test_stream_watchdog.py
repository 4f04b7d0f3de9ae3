"""The one timer of a stream, in virtual time."""

from __future__ import annotations

import asyncio

from support.virtual_loop import run

from app.routes.stream_response import Watchdog


class Watched:
    """Notes when the watchdog calls."""

    def __init__(self, idle_s: float | None, stalled_s: float) -> None:
        self.clock = asyncio.get_running_loop().time
        self.idle: list[float] = []
        self.stalled: list[float] = []
        self.bytes = 0
        self.dog = Watchdog(
            idle_s,
            stalled_s,
            on_idle=lambda: self.idle.append(round(self.clock(), 3)),
            on_stalled=lambda: self.stalled.append(round(self.clock(), 3)),
            taken=lambda: self.bytes,
        )


def test_silence_is_told_again_and_again() -> None:
    """`on_idle` comes every `idle_s` of silence, counted from the last send."""

    async def play() -> list[float]:
        watched = Watched(15, 30)
        await asyncio.sleep(10)
        watched.dog.sending()
        watched.dog.sent()
        for _ in range(3):
            await asyncio.sleep(16)
            assert watched.dog.idle()
            watched.dog.sent()
        watched.dog.stop()
        return watched.idle

    assert run(play()) == [25, 41, 57]


def test_a_send_that_takes_too_long_is_told_once() -> None:
    """`on_stalled` comes once a single send has taken `stalled_s`, whatever came before."""

    async def play() -> tuple[list[float], bool]:
        watched = Watched(15, 30)
        for _ in range(100):
            watched.dog.sending()
            await asyncio.sleep(0.9)
            watched.dog.sent()
            await asyncio.sleep(0.1)
        watched.dog.sending()
        await asyncio.sleep(100)
        assert watched.idle == []
        return watched.stalled, watched.dog.stalled

    assert run(play()) == ([130], True)


def test_a_limit_below_the_ping_holds_too() -> None:
    """The send limit is not rounded up to the ping's time."""

    async def play() -> list[float]:
        watched = Watched(15, 1)
        await asyncio.sleep(0.5)
        watched.dog.sending()
        await asyncio.sleep(5)
        return watched.stalled

    assert run(play()) == [1.5]


def test_without_pings_nothing_is_idle() -> None:
    """Text and WebSocket streams have no comment to send."""

    async def play() -> list[float]:
        watched = Watched(None, 30)
        await asyncio.sleep(100)
        assert not watched.dog.idle()
        watched.dog.stop()
        return watched.idle

    assert run(play()) == []


def test_one_who_reads_slowly_is_not_one_who_does_not() -> None:
    """A single send may last for ever while some of it is taken; the time counts from the last byte."""

    async def play() -> list[float]:
        watched = Watched(15, 30)
        watched.dog.sending()
        for _ in range(100):
            await asyncio.sleep(10)
            watched.bytes += 1
        assert watched.stalled == []
        await asyncio.sleep(200)
        return watched.stalled

    [at] = run(play())
    assert 1000 + 30 <= at <= 1000 + 30 + 15
