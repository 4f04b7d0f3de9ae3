"""The follower: whatever cuts the log, each line comes once, or a gap says that it did not."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from random import Random
from types import SimpleNamespace

import pytest
from fake_cluster.cluster import FakeCluster, WithToken
from fake_cluster.faults import Fault
from fake_cluster.http import refusal
from fake_cluster.pod_log import PodLog
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from app.k8s.client import Cluster
from app.k8s.follower import MAX_LINE_BYTES, PodLogFollower
from app.k8s.frames import Cursor, FrameReader, Gap, Item, RawLines
from tailrun.process.lines import Line, Stream

_NUMBERS = itertools.count()
SECOND = 10**9
START = 1_795_000_000 * SECOND


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeCluster]:
    cluster = FakeCluster().start()
    yield cluster
    cluster.stop()


@dataclass
class Reading:
    """A pod's log, written in full, and what a follower made of it."""

    fake: FakeCluster
    log: PodLog
    name: str
    cuts: list[int] = field(default_factory=list)
    items: list[Item] = field(default_factory=list)

    @classmethod
    def of(cls, fake: FakeCluster, lines: list[tuple[int, bytes]]) -> Reading:
        log = PodLog(lambda: START)
        log.lines = lines
        log.ended = True
        name = f"pod-{next(_NUMBERS)}"
        fake.pods[name] = SimpleNamespace(log=log, tool=object())  # type: ignore[assignment]
        fake.objects.things["pods", name] = {"metadata": {"name": name}}
        return cls(fake, log, name)

    async def follow(self, reader: FrameReader | RawLines, *, tail: int = 0) -> Reading:
        """Follow through the cuts; the container is over when all of them were made."""
        cuts = iter(self.cuts)
        left = len(self.cuts) + tail
        path = f"/api/v1/namespaces/tools/pods/{self.name}/log"
        self.fake.faults = [Fault("GET", path, cut_after=lambda: next(cuts, None), times=len(self.cuts))]
        cluster = Cluster(WithToken(self.fake.url), jitter=Random(1))
        follower = PodLogFollower(cluster, path, reader, lambda: follower.connections >= left)

        async def take(items: list[Item]) -> None:
            self.items += items

        try:
            async with asyncio.timeout(60):
                await follower.run(take)
        finally:
            await cluster.close()
        return self

    @property
    def texts(self) -> list[str]:
        return [item.content for item in self.items if isinstance(item, Line) and not item.cr]

    @property
    def lost(self) -> list[int]:
        return [item.lost for item in self.items if isinstance(item, Gap)]


def frames(texts: list[str], *, end: bool = True) -> list[tuple[int, bytes]]:
    found = [{"n": n, "s": "o", "t": n, "d": text} for n, text in enumerate(texts, 1)]
    last = [{"n": len(texts) + 1, "x": {"code": 0}}] if end else []
    return [(START + n * SECOND // 7, json.dumps(f).encode() + b"\n") for n, f in enumerate([*found, *last])]


def wrapped() -> FrameReader:
    return FrameReader(1, Cursor())


def raw() -> RawLines:
    return RawLines(1, Cursor())


LINES = st.lists(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\n\r\0"), max_size=40), max_size=60
)
CUTS = st.lists(st.integers(1, 3000), max_size=6)
PROPERTY = settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])


@PROPERTY
@given(lines=LINES, cuts=CUTS)
async def test_any_cuts_deliver_every_frame_once(
    fake: FakeCluster, lines: list[str], cuts: list[int]
) -> None:
    reading = Reading.of(fake, frames(lines))
    reading.cuts = cuts
    await reading.follow(wrapped())
    assert reading.texts == lines
    assert reading.lost == []


@PROPERTY
@given(lines=LINES, cuts=CUTS, times=st.lists(st.integers(0, 3), min_size=60, max_size=60))
async def test_any_cuts_deliver_every_raw_line_once(
    fake: FakeCluster, lines: list[str], cuts: list[int], times: list[int]
) -> None:
    """Many lines may have one time."""
    clock = itertools.accumulate(times, lambda at, step: at + step * SECOND // 3, initial=START)
    reading = Reading.of(fake, [(ns, line.encode() + b"\n") for ns, line in zip(clock, lines, strict=False)])
    reading.cuts = cuts
    await reading.follow(raw(), tail=1)
    assert reading.texts == lines
    assert reading.lost == []


@PROPERTY
@given(lines=st.integers(1, 80), cut=st.integers(1, 3000), keep=st.integers(0, 80))
async def test_what_a_rotation_took_is_a_gap(fake: FakeCluster, lines: int, cut: int, keep: int) -> None:
    """Delivered and lost together are all that was written."""
    texts = [f"line {n}" for n in range(lines)]
    reading = Reading.of(fake, frames(texts))
    reading.cuts = [cut]
    original = fake.pods[reading.name].log.read

    def read(**how: object) -> AsyncIterator[bytes]:
        found = original(**how)
        reading.log.read = rotated  # type: ignore[method-assign]
        return found

    def rotated(**how: object) -> AsyncIterator[bytes]:
        if keep < len(reading.log.lines):
            reading.log.rotate(max(keep, 1))
        return original(**how)

    reading.log.read = read  # type: ignore[method-assign]
    await reading.follow(wrapped())
    assert len(reading.texts) + sum(reading.lost) == lines
    assert reading.texts == [text for text in texts if text in set(reading.texts)]


async def test_a_raw_log_that_lost_its_cursor_has_a_gap(fake: FakeCluster) -> None:
    reading = Reading.of(fake, [(START + n, b"%d\n" % n) for n in range(5, 9)])
    await reading.follow(RawLines(1, Cursor(ns=START + 2, count=1)))
    assert (reading.texts, reading.lost) == (["5", "6", "7", "8"], [0])


async def test_a_clock_that_steps_back_loses_nothing(fake: FakeCluster) -> None:
    times = [START + 9 * SECOND, START + 10 * SECOND, START + SECOND, START + 2 * SECOND]
    reading = Reading.of(fake, [(ns, b"%d\n" % n) for n, ns in enumerate(times)])
    await reading.follow(raw())
    assert (reading.texts, reading.lost) == (["0", "1", "2", "3"], [])


async def test_whoever_goes_on_takes_up_behind_the_last_src(fake: FakeCluster) -> None:
    for reader, lines in (
        (FrameReader, frames(["a", "b", "c"])),
        (RawLines, [(START, b"a\n"), (START, b"b\n")]),
    ):
        first = await Reading.of(fake, lines).follow(reader(3, Cursor()))
        src = next(item.src for item in first.items if isinstance(item, Line) and item.content == "b")
        again = await Reading.of(fake, lines).follow(reader(3, Cursor.parse(src, 3)))
        assert (again.texts, again.lost) == (first.texts[2:], [])
        assert Cursor.parse(src, 4) == Cursor()


async def test_a_last_line_without_an_end_and_odd_bytes_come_through(fake: FakeCluster) -> None:
    lines = [(START, b"a\xff\xe2\x80\xa8b\x85c\n"), (START, b"10%\r20%\rdone\n"), (START, b"no end")]
    reading = await Reading.of(fake, lines).follow(raw())
    assert reading.texts == ["a\ufffd\u2028b\ufffdc", "done", "no end"]


async def test_parts_are_joined_and_streams_told_apart(fake: FakeCluster) -> None:
    made = [
        {"n": 1, "s": "o", "t": 1, "d": "Pass", "p": 1},
        {"n": 2, "s": "e", "t": 1, "d": "ERROR: no"},
        {"n": 3, "s": "o", "t": 1, "d": "word", "p": 1},
        {"n": 4, "s": "o", "t": 1, "d": ""},
        {"n": 5, "s": "o", "t": 1, "d": "10%\r20%\rdone"},
        {"n": 6, "s": "o", "t": 1, "d": "end", "u": 1},
        {"n": 7, "x": {"code": 0}},
    ]
    reading = await Reading.of(fake, [(START, json.dumps(f).encode() + b"\n") for f in made]).follow(
        wrapped()
    )
    lines = [item for item in reading.items if isinstance(item, Line) and not item.cr]
    assert [(line.stream, line.content, line.src) for line in lines] == [
        (Stream.STDERR, "ERROR: no", "1:2"),
        (Stream.STDOUT, "Password", "1:4"),
        (Stream.STDOUT, "done", "1:5"),
        (Stream.STDOUT, "end", "1:6"),
    ]


async def test_what_is_no_frame_is_passed_over(fake: FakeCluster) -> None:
    """A program that finds the wrapper's stdout writes into it what it likes."""
    odd = [b"text\n", b"[1]\n", b'{"n":"1"}\n', b'{"n":-5,"s":"o","d":"x"}\n', b'{"n":true}\n', b"\n"]
    lines = [*((START, line) for line in odd), *frames(["real"])]
    reading = await Reading.of(fake, lines).follow(wrapped())
    assert (reading.texts, reading.lost) == (["real"], [])


async def test_an_endless_line_is_cut_and_told(fake: FakeCluster) -> None:
    lines = [(START, b"x" * (3 * MAX_LINE_BYTES) + b"\n"), (START, b"next\n")]
    reading = await Reading.of(fake, lines).follow(raw())
    assert reading.texts[-1] == "next"
    assert sum(map(len, reading.texts)) <= MAX_LINE_BYTES + 10
    assert reading.lost == [0]


@pytest.mark.parametrize("status", [400, 429, 500, 503])
async def test_refusals_on_the_way_are_survived(fake: FakeCluster, status: int) -> None:
    reading = Reading.of(fake, frames(["a", "b"]))
    path = f"/pods/{reading.name}/log"
    fake.faults = []
    cluster = Cluster(WithToken(fake.url), jitter=Random(1))
    fake.faults = [Fault("GET", path, answer=lambda: refusal(status, "wait"), times=3)]
    follower = PodLogFollower(
        cluster, f"/api/v1/namespaces/tools{path}", wrapped(), lambda: follower.connections > 3
    )
    items: list[Item] = []

    async def take(more: list[Item]) -> None:
        items.extend(more)

    async with asyncio.timeout(60):
        await follower.run(take)
    await cluster.close()
    assert [item.content for item in items if isinstance(item, Line)] == ["a", "b"]


async def test_a_log_that_is_gone_ends(fake: FakeCluster) -> None:
    reading = Reading.of(fake, [])
    del fake.pods[reading.name]
    assert (await reading.follow(wrapped())).items == []
