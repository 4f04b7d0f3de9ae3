"""What every peer's program shares: it says it is ready, then answers a word a line with a line of JSON.

A worker counts the jobs it was given by their numbers, so that one that is lost or comes twice shows; a
producer sends jobs and says how long it took. Times are CLOCK_MONOTONIC in nanoseconds, which all
processes of a machine share. Kept to the standard library: each peer runs in a venv of its own.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from importlib.metadata import version
from typing import Any


class Tally:
    """The jobs that this worker began."""

    def __init__(self) -> None:
        self.numbers: list[int] = []
        self.waits_ns: list[int] = []
        self.first_ns = self.last_ns = 0
        self.held_ns = 0

    def job(self, number: int, sent_ns: int) -> None:
        """Note that a job begins; `sent_ns` > 0: how long it waited counts."""
        now = time.monotonic_ns()
        self.first_ns = self.first_ns or now
        self.last_ns = now
        self.numbers.append(number)
        if sent_ns:
            self.waits_ns.append(now - sent_ns)

    def hold(self) -> None:
        """Note that the job begins that never ends."""
        self.held_ns = time.monotonic_ns()

    def answer(self, word: str) -> Any:
        """Answer a question of the benchmark."""
        match word:
            case "count":
                return {"count": len(self.numbers), "first_ns": self.first_ns, "last_ns": self.last_ns}
            case "numbers":
                return self.numbers
            case "waits":
                return self.waits_ns
            case "held":
                return self.held_ns
        raise SystemExit(f"unknown word: {word}")


def work(libraries: list[str], serve: Callable[[Tally], Awaitable[Any]]) -> None:
    """Be a worker: serve for ever from the word `go` on; ends when nobody speaks any more."""
    tally = Tally()

    async def main() -> None:
        loop, go = asyncio.get_running_loop(), asyncio.Event()
        threading.Thread(target=listen, args=(loop, go), daemon=True).start()
        await go.wait()
        await serve(tally)

    def listen(loop: asyncio.AbstractEventLoop, go: asyncio.Event) -> None:
        for line in sys.stdin:
            if line.strip() == "go":
                loop.call_soon_threadsafe(go.set)
                say("going")
            else:
                say(tally.answer(line.strip()))
        quit_now()

    _ready(libraries)
    _run(main())


def produce(libraries: list[str], answer: Callable[[list[str]], Awaitable[Any]]) -> None:
    """Be a producer: answer lines of words, one after the other."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            say(await answer(line.split()))

    _ready(libraries)
    _run(main())


async def timed(work: Awaitable[Any]) -> float:
    """Return the seconds that `work` takes."""
    began = time.perf_counter()
    await work
    return time.perf_counter() - began


async def orders(
    words: list[str],
    single: Callable[[int, int], Awaitable[Any]],
    bulk: Callable[[range], Awaitable[Any]],
    hold: Callable[[], Awaitable[Any]],
) -> Any:
    """Carry out one order of the benchmark with a peer's three ways of sending.

    `single <from> <to>`, `bulk <from> <to>`: in seconds. `paced <from> <to> <pause>`: each with the time it
    was sent. `hold`: the job that never ends.
    """
    match words:
        case ["single", first, end]:
            return await timed(_each(range(int(first), int(end)), single, 0))
        case ["bulk", first, end]:
            return await timed(bulk(range(int(first), int(end))))
        case ["paced", first, end, pause]:
            return await timed(_each(range(int(first), int(end)), single, float(pause)))
        case ["hold"]:
            return await timed(hold())
    raise SystemExit(f"unknown order: {words}")


async def _each(numbers: range, single: Callable[[int, int], Awaitable[Any]], pause_s: float) -> None:
    for number in numbers:
        await single(number, time.monotonic_ns() if pause_s else 0)
        if pause_s:
            await asyncio.sleep(pause_s)


async def together(calls: list[Coroutine[Any, Any, Any]], size: int = 100) -> None:
    """Await many calls, some at a time: the bulk of libraries that have none."""
    for at in range(0, len(calls), size):
        await asyncio.gather(*calls[at : at + size])


def say(answer: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(answer) + "\n")
    sys.stdout.flush()


def quit_now() -> None:
    """End at once: what a library would do on the way out is of no interest."""
    import os  # noqa: PLC0415 - for this one call

    os._exit(0)


def _ready(libraries: list[str]) -> None:
    say(", ".join(f"{name} {version(name)}" for name in libraries))


def _run(work: Coroutine[Any, Any, None]) -> None:
    try:
        import uvloop  # noqa: PLC0415 - where there is one
    except ImportError:
        asyncio.run(work)
        return
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work)
