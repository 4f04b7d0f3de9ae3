"""What a program has printed is read to the end, however late this process comes to it."""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

from app.execution.guard_client import _enlarge
from tailrun.capture.process import DirectCommand
from tailrun.process import pipes
from tailrun.process.lines import Line, Stream
from tailrun.process.monitor import ProcessMonitor
from tailrun.process.pipes import DeliveredPipe, FdPipe, Pipe
from tailrun.process.stop import ProcessResult, StopToken

COMMAND = DirectCommand(("program",), Path("/"), {})
LINE = b"0123456789abcde\n"


class Ended:
    """A program that has ended, beside a process outside of its tree that keeps its pipe open."""

    def __init__(self) -> None:
        self.out, self.theirs = os.pipe()
        for fd in (self.out, self.theirs):
            os.set_blocking(fd, False)
        _enlarge(self.out)
        self.pid: int | None = 1
        self.pipes: dict[Stream, Pipe] = {Stream.STDOUT: FdPipe(self.out)}
        self.report: dict[str, Any] = {"exited": 0, "signal": None, "asked": "", "wall_s": 1.0}
        self.gone = True

    def listen(self, changed: Callable[[], None]) -> None:
        changed()

    def say(self, word: bytes) -> None:
        """Nothing of it is left to obey."""

    def fill(self) -> int:
        """Write lines until the pipe is full; return how many."""
        count = 0
        while True:
            try:
                count += os.write(self.theirs, LINE * 4096) // len(LINE)
            except BlockingIOError:
                return count

    def close(self) -> None:
        os.close(self.out)
        os.close(self.theirs)


@pytest.fixture
def program() -> Iterator[Ended]:
    program = Ended()
    yield program
    program.close()


@pytest.fixture
def starved(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine so loaded that between any two looks at the clock a minute goes by."""
    clock = itertools.count(0, 60)
    monkeypatch.setattr(pipes, "time", SimpleNamespace(monotonic=lambda: float(next(clock))))


async def run(program: Ended, sink: Callable[[Sequence[Line]], Any]) -> ProcessResult:
    async with asyncio.timeout(60):
        return await ProcessMonitor(program, COMMAND, sink, StopToken()).run(None)  # type: ignore[arg-type]


@pytest.mark.usefixtures("starved")
async def test_what_is_in_the_pipe_is_read_however_late_it_is(program: Ended) -> None:
    written, got = program.fill(), list[Line]()

    async def sink(lines: Sequence[Line]) -> None:
        got.extend(lines)

    assert (await run(program, sink)).exit_code == 0
    assert len(got) == written
    assert written * len(LINE) > pipes._READ_BYTES, "more than one read brings"


@pytest.mark.usefixtures("starved")
async def test_one_who_writes_on_without_a_pause_holds_up_nothing(program: Ended) -> None:
    """The pipe is never empty: what it can hold is read, and no more."""
    first, got = program.fill(), 0

    async def sink(lines: Sequence[Line]) -> None:
        nonlocal got
        got += len(lines)
        program.fill()

    await run(program, sink)
    assert first <= got <= first + 2 * pipes._REST_BYTES // len(LINE)


async def test_who_holds_the_pipe_silently_is_not_waited_for(program: Ended) -> None:
    """The bound is the test's own: without an end this would not return."""
    os.write(program.theirs, b"last")
    got = list[Line]()

    async def sink(lines: Sequence[Line]) -> None:
        got.extend(lines)

    await run(program, sink)
    assert [line.content for line in got] == ["last"]


class Delivering(asyncio.Protocol):
    """As asyncio's subprocess transports hand a program's output to the library."""

    def __init__(self, pipe: DeliveredPipe) -> None:
        self._pipe = pipe

    def data_received(self, data: bytes) -> None:
        self._pipe.deliver(data)


@pytest.mark.usefixtures("starved")
@pytest.mark.parametrize("loop_factory", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_a_transport_has_not_delivered_yet_is_waited_for(
    program: Ended, loop_factory: Callable[[], Any]
) -> None:
    """An empty hand of the transport's is not an empty pipe."""
    written, got, delivered = program.fill(), list[Line](), DeliveredPipe()
    program.pipes = {Stream.STDOUT: delivered}

    async def sink(lines: Sequence[Line]) -> None:
        got.extend(lines)

    async def follow() -> None:
        with os.fdopen(os.dup(program.out), "rb") as ours:
            loop = asyncio.get_running_loop()
            transport, _ = await loop.connect_read_pipe(lambda: Delivering(delivered), ours)
            delivered.open(transport)
            await run(program, sink)
            transport.close()

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(follow())
    assert len(got) == written
