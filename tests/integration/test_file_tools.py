"""The file tools on real files, and on stores that hang or are away."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from support.agent_context import Place, open_place

from app.core.errors import NotFound, StorageError
from tailrun.process.errors import ErrorCode
from tailrun.process.lines import Level
from tailrun.process.stop import StopReason


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with open_place(tmp_path) as place:
        yield place


async def test_a_file_is_written_read_listed_and_deleted(place: Place) -> None:
    written = await place.call("file_write", path="docs/ü.txt", content="grün\r\nblau\n\nrot")
    assert written.result == {"path": "docs/ü.txt", "size": 16}
    assert [file.path for file in written.files] == ["docs/ü.txt"]
    read = await place.call("file_read", path="docs/ü.txt")
    assert read.result == {"path": "docs/ü.txt", "size": 16, "encoding": "utf-8"}
    assert place.log.stdout == ["grün", "blau", "", "rot"]
    listed = await place.call("file_list", prefix="docs/")
    assert listed.result == {"files": 1, "size": 16}
    assert place.log.text[-1].split() == ["16", "docs/ü.txt"]
    assert (await place.call("file_delete", path="docs/ü.txt")).files == ()
    assert (await place.call("file_list")).result == {"files": 0, "size": 0}


async def test_bytes_go_in_and_come_out_in_base64(place: Place) -> None:
    content = bytes(range(256))
    await place.call(
        "file_write",
        path="b.bin",
        content=base64.b64encode(content).decode(),
        encoding="base64",
    )
    assert await place.content("b.bin") == content
    read = await place.call("file_read", path="b.bin")
    assert read.result == {"path": "b.bin", "size": 256, "encoding": "base64"}
    assert "".join(place.log.text) == base64.b64encode(content).decode()
    assert max(map(len, place.log.text)) == 76


async def test_a_long_file_is_shown_up_to_its_64_kilobytes(place: Place) -> None:
    """The cut goes through a character, and the file is still a text."""
    await place.workspace.write("long.txt", ("x" + "ü" * 40_000).encode())
    await place.call("file_read", path="long.txt")
    assert place.log.text == ["x" + "ü" * 32_767]
    note = "long.txt: 65536 of 80001 bytes are shown; download the file for the rest"
    assert place.log.said == [(Level.INFO, note)]


async def test_an_empty_file_prints_nothing(place: Place) -> None:
    await place.call("file_write", path="empty", content="")
    await place.call("file_read", path="empty")
    assert place.log.text == []


async def test_a_missing_file_fails_the_step_for_good(place: Place) -> None:
    for tool in ("file_read", "file_delete"):
        failure = await place.failure(tool, path="nowhere.txt")
        assert (failure.code, failure.exit_code, failure.retried) == (ErrorCode.EXIT_NONZERO, 1, False)
        assert "nowhere.txt" in failure.message


async def test_a_path_that_only_the_store_refuses_is_an_invalid_plan(place: Place) -> None:
    """It leads through a link that an earlier step has made."""
    await place.call("shell", command="ln -s /tmp out")
    failure = await place.failure("file_write", path="out/x", content="")
    assert failure.code is ErrorCode.INVALID_PLAN


async def test_a_file_over_the_limit_is_a_resource_limit_that_no_retry_mends(place: Place) -> None:
    failure = await place.failure("file_write", path="big", content="x" * 100_001)
    assert (failure.code, failure.retried) == (ErrorCode.RESOURCE_LIMIT, False)
    assert (await place.call("file_list")).result == {"files": 0, "size": 0}


class _Hanging:
    """A store that does not answer; remembers that it was let go of."""

    def __init__(self) -> None:
        self.called, self.released = asyncio.Event(), False

    async def stat(self, path: str) -> None:
        self.called.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.released = True


async def test_a_file_tool_is_stopped_while_the_store_hangs(place: Place) -> None:
    store: Any = _Hanging()
    place.workspace = store
    call = asyncio.create_task(place.call("file_read", path="a"))
    await store.called.wait()
    place.stop.stop(StopReason.CANCEL)
    assert (await call).stopped is StopReason.CANCEL
    assert store.released


async def test_a_file_tool_obeys_its_own_timeout(place: Place) -> None:
    store: Any = _Hanging()
    place.workspace = store
    assert (await place.call("file_read", timeout_s=0.01, path="a")).stopped is StopReason.TIMEOUT
    assert store.released


async def test_a_cancelled_file_tool_leaves_no_task(place: Place) -> None:
    store: Any = _Hanging()
    place.workspace = store
    before = asyncio.all_tasks()
    call = asyncio.create_task(place.call("file_read", path="a"))
    await store.called.wait()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    assert store.released
    assert asyncio.all_tasks() == before


async def test_a_store_that_is_away_is_tried_again(place: Place) -> None:
    class Away:
        async def stat(self, path: str) -> None:
            raise StorageError("connection refused")

    store: Any = Away()
    place.workspace = store
    failure = await place.failure("file_read", path="a")
    assert (failure.code, failure.retried) == (ErrorCode.EXECUTOR_UNAVAILABLE, True)


async def test_a_deleted_file_is_gone(place: Place) -> None:
    await place.call("file_write", path="a.txt", content="x")
    await place.call("file_delete", path="a.txt")
    with pytest.raises(NotFound):
        await place.workspace.stat("a.txt")
