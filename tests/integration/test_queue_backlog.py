"""How many runs of a user may wait: counted cheaply, refused in time, and never for good."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.api_server import Api, error_of, serving, settings_for
from support.run_rows import NOW, ended, new_run, running
from support.servers import RedisServer

from app.core.errors import TooManyRequests
from app.db.engine import Database
from app.db.run_store import RunStore
from app.runs.backlog import FRESH_S, Backlog

PROMPT = {"prompt": "x", "planner": "smoke"}


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[Api]:
    with serving(settings_for(tmp_path, redis_server.url, database_url, user_backlog_max=3)) as api:
        yield api


class Counting:
    """A database that says `waiting`, and how often it was asked."""

    def __init__(self, waiting: int = 0) -> None:
        self.waiting, self.asked, self.now = waiting, 0, 0.0

    async def __call__(self, user_id: str, cap: int) -> int:
        self.asked += 1
        await asyncio.sleep(0)
        return min(self.waiting, cap)


async def admitted(backlog: Backlog, counting: Counting, user: str = "ann") -> bool:
    try:
        async with backlog.place(user):
            await asyncio.sleep(0)
            counting.waiting += 1
    except TooManyRequests:
        return False
    return True


async def test_it_asks_once_a_second_and_counts_itself_meanwhile() -> None:
    counting = Counting()
    backlog = Backlog(counting, 100, lambda: counting.now)
    assert all([await admitted(backlog, counting) for _ in range(50)])
    assert counting.asked == 1
    counting.now += FRESH_S
    assert await admitted(backlog, counting)
    assert counting.asked == 2


@pytest.mark.parametrize("_again", range(20))
async def test_many_at_once_never_pass_the_limit(_again: int) -> None:
    counting = Counting(waiting=5)
    backlog = Backlog(counting, 20, lambda: counting.now)
    let_in = await asyncio.gather(*(admitted(backlog, counting) for _ in range(60)))
    assert (sum(let_in), counting.waiting) == (15, 20)


async def test_it_counts_again_before_it_refuses() -> None:
    """A worker may have taken them in the meantime."""
    counting = Counting(waiting=3)
    backlog = Backlog(counting, 3, lambda: counting.now)
    assert not await admitted(backlog, counting)
    counting.waiting, counting.now = 0, 0.2
    assert await admitted(backlog, counting)


async def test_a_run_that_was_not_made_takes_no_room() -> None:
    counting = Counting()
    backlog = Backlog(counting, 1, lambda: counting.now)
    with pytest.raises(ValueError, match="not made"):
        async with backlog.place("ann"):
            raise ValueError("not made")
    assert await admitted(backlog, counting)


async def test_each_user_has_their_own() -> None:
    counting = Counting()
    backlog = Backlog(counting, 1, lambda: counting.now)
    assert await admitted(backlog, counting, "ann")
    counting.waiting = 0
    assert await admitted(backlog, counting, "bob")


async def test_what_waits_is_counted(database: Database) -> None:
    """Queued runs, delayed and held ones too; not running, not ended, not of others."""
    store = RunStore(database)
    await store.create(new_run(), NOW)
    await store.create(new_run(run_at=NOW + 10**9), NOW)
    await store.create(new_run(start=False), NOW)
    await store.create(new_run(user_id="bob"), NOW)
    await running(store)
    run, fence = await running(store)
    await store.commit(fence, run.last_seq, ended(run.run_id, run.last_seq + 1))
    assert await store.backlog("ann", 100) == 3
    assert await store.backlog("ann", 1) == 1
    assert await store.backlog("nobody", 100) == 0
    assert await store.ended_since(NOW) == 1
    assert await store.ended_since(NOW + 10**9) == 0


def test_a_full_backlog_is_a_429(api: Api) -> None:
    """With Retry-After; a held run counts, and starts without further room; an admin is bounded too."""
    ada = api.user("ada")
    bodies = (PROMPT, PROMPT, {**PROMPT, "start": False})
    made = [
        ada.post("/v1/runs", json=body, headers={"Idempotency-Key": f"k{n}"}) for n, body in enumerate(bodies)
    ]
    assert [response.status_code for response in made] == [201] * 3
    refused = ada.post("/v1/runs", json=PROMPT)
    assert error_of(refused) == (429, "backlog_full")
    assert int(refused.headers["Retry-After"]) > 0
    again = ada.post("/v1/runs", json=PROMPT, headers={"Idempotency-Key": "k0"})
    assert (again.status_code, again.json()["run_id"]) == (200, made[0].json()["run_id"])
    assert error_of(ada.post("/v1/runs", json=PROMPT, headers={"Idempotency-Key": "new"}))[0] == 429
    assert error_of(ada.post("/v1/runs", json={**PROMPT, "start": False}))[0] == 429
    assert error_of(ada.post("/agent/execute", json={**PROMPT, "action": "create"}))[0] == 429
    assert ada.post(f"/v1/runs/{made[2].json()['run_id']}/start").json()["status"] == "queued"
    assert [api.admin.post("/v1/runs", json=PROMPT).status_code for _ in range(4)] == [201, 201, 201, 429]


def test_there_is_room_again_once_one_is_gone(api: Api) -> None:
    ada = api.user("ada")
    ids = [ada.post("/v1/runs", json=PROMPT).json()["run_id"] for _ in range(3)]
    assert ada.post("/v1/runs", json=PROMPT).status_code == 429
    ada.post(f"/v1/runs/{ids[0]}/cancel")
    while (answer := ada.post("/v1/runs", json=PROMPT)).status_code == 429:
        pass  # counted again a tenth of a second later
    assert answer.status_code == 201
