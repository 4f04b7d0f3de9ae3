"""Pages of history that many viewers ask for are read once, and not kept for long: logs expire."""

from __future__ import annotations

import asyncio

from support.stream_fixtures import Committed, log
from support.virtual_loop import run

from app.core.events import Entry
from app.stream.history import Backfill


class EmptyTail:
    async def read(self, run_id: str, after: int, limit: int | None = None) -> list[Entry]:
        return []


def test_a_page_is_read_once_for_all_and_again_after_a_while() -> None:
    async def play() -> None:
        committed = Committed()
        committed.commit([log("r", seq) for seq in range(1, 6)])
        backfill = Backfill(EmptyTail(), committed.history, committed.heads)  # pyright: ignore[reportArgumentType]
        first = await backfill.page("r", 0, 3)
        assert [seq for seq, _ in first] == [1, 2, 3]
        committed.events.clear()
        assert await backfill.page("r", 0, 3) == first
        await asyncio.sleep(11)
        assert await backfill.page("r", 0, 3) == []
        assert committed.asked == 2

    run(play())
