"""Webhooks over real HTTP: once at the end, again when it fails, never lost, on both databases."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from random import Random

import pytest
from support.run_rows import NOW, end, ended, new_run, parked, running
from support.stream_fixtures import until
from support.webhook_receiver import SECRET, Receiver, verify

from app.config import WebhookSettings
from app.core.agent_records import WaitingFor
from app.core.models import Fence, RunStatus
from app.core.periodic import Backoff
from app.db.engine import Database
from app.db.run_store import Batch, Outcome, RunStore
from app.db.webhook_store import WebhookStore
from app.maintenance.webhooks import Webhooks, WebhookSender


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.close()


class Clock:
    def __init__(self) -> None:
        self.now = NOW + 1_000_000

    def __call__(self) -> int:
        return self.now


def webhooks(
    database: Database,
    clock: Clock,
    *,
    tries: int = 3,
    allow: bool = True,
    timeout_s: float = 30,
) -> Webhooks:
    sender = WebhookSender(SECRET, timeout_s=timeout_s, allow_private=allow)
    settings = WebhookSettings(max_attempts=tries, timeout_s=timeout_s)
    runs, store = RunStore(database), WebhookStore(database)
    return Webhooks(store, runs, sender, settings, backoff=Backoff(10, 100, Random(1)), clock=clock)


async def send(sending: Webhooks) -> int:
    """Send what is due and wait for the answers."""
    began = await sending.send_due()
    while sending._sending:
        await asyncio.wait(tuple(sending._sending), timeout=60)
    return began


async def finished(database: Database, url: str | None, status: RunStatus = RunStatus.SUCCEEDED) -> str:
    run, fence = await running(RunStore(database), webhook_url=url)
    await RunStore(database).commit(fence, 2, ended(run.run_id, 3, status))
    return run.run_id


async def test_the_row_comes_with_the_end_and_only_then(database: Database) -> None:
    """Whoever ends the run: its owner, a cancel before the start, the end of an orphan; not a retry."""
    runs, store = RunStore(database), WebhookStore(database)
    run, fence = await running(runs, webhook_url="https://example.com/")
    again = Outcome(RunStatus.QUEUED, next_attempt_at=NOW + 5, counts_retry=True, at=NOW + 2)
    await runs.commit(fence, 2, Batch(outcome=again))
    assert await store.get(run.run_id) is None
    (run,) = await runs.claim([run.run_id], "w2", NOW + 9)
    last = Batch(events=[end(run.run_id, 3, attempt=2)], outcome=Outcome(RunStatus.SUCCEEDED, 0))
    for _ in range(2):  # a repeat, whose first reply was lost, changes nothing
        await runs.commit(Fence(run.run_id, 2, "w2"), 2, last)
    found = await store.get(run.run_id)
    assert found
    assert (found.url, found.next_at, found.attempts) == ("https://example.com/", NOW + 3, 0)

    waiting = await runs.create(new_run(webhook_url="https://example.com/"), NOW)
    await runs.request_cancel(waiting.run.run_id, NOW + 4)
    assert await store.get(waiting.run.run_id)
    assert await store.get(await finished(database, None)) is None


async def test_an_end_is_told_once_signed_and_noted(database: Database, receiver: Receiver) -> None:
    run_id, clock = await finished(database, receiver.url, RunStatus.FAILED), Clock()
    hooks = webhooks(database, clock)
    assert [await send(hooks), await send(hooks)] == [1, 0]
    [(headers, body)] = receiver.got
    assert headers["host"] == f"127.0.0.1:{receiver.port}"
    assert (headers["webhook-id"], headers["content-type"]) == (f"msg_{run_id}", "application/json")
    verify(SECRET, headers, body)
    told = json.loads(body)
    assert (told["type"], told["data"]["run_id"], told["data"]["status"]) == ("run.failed", run_id, "failed")
    row = await WebhookStore(database).get(run_id)
    assert row
    assert (row.delivered_at, row.next_at, row.attempts) == (clock.now, None, 1)
    assert [(one["status"], one["error"]) for one in row.tries] == [(204, None)]


async def test_a_wait_is_told_while_it_lasts(database: Database, receiver: Receiver) -> None:
    """Under an id of its own; what a wait that is over had to tell is not told."""
    runs, hooks = RunStore(database), webhooks(database, Clock())
    run, fence = await running(runs, webhook_url=receiver.url)
    await runs.commit(fence, 2, parked(run.run_id, 3, WaitingFor.ANSWER))
    assert [await send(hooks), await send(hooks)] == [1, 0]
    [(headers, body)] = receiver.got
    told = json.loads(body)
    assert (told["type"], told["data"]["waiting_for"]) == ("run.waiting", "answer")
    assert headers["webhook-id"] == f"msg_{run.run_id}_1"
    await runs.stop_waiting(run.run_id, NOW + 1000)
    assert await send(hooks) == 0
    await runs.request_cancel(run.run_id, NOW + 1001)
    assert await send(hooks) == 1
    assert receiver.got[1][0]["webhook-id"] == f"msg_{run.run_id}"
    quiet, fence = await running(runs, webhook_url=receiver.url)
    await runs.commit(fence, 2, parked(quiet.run_id, 3, WaitingFor.ANSWER))
    await runs.stop_waiting(quiet.run_id, NOW + 1000)
    assert await send(hooks) == 0


async def test_failures_are_tried_again_with_pauses_and_given_up(
    database: Database, receiver: Receiver
) -> None:
    """A 500, a redirect that is not followed, nobody there: three tries, and a record of each."""
    receiver.answers, clock = [500, 302], Clock()
    receiver.location = receiver.url
    run_id = await finished(database, receiver.url)
    hooks, store = webhooks(database, clock), WebhookStore(database)
    pauses = list[int]()
    for n in range(3):
        if n == 2:
            receiver.close()
        assert await send(hooks) == 1
        assert await send(hooks) == 0
        row = await store.get(run_id)
        assert row
        pauses.append(0 if row.next_at is None else row.next_at - clock.now)
        clock.now = row.next_at or clock.now
    assert len(receiver.got) == 2
    assert 0 <= pauses[0] <= 10_000_000
    assert 0 <= pauses[1] <= 20_000_000
    assert pauses[2] == 0
    assert (row.delivered_at, row.next_at, row.attempts) == (None, None, 3)
    assert [one["status"] for one in row.tries] == [500, 302, None]
    assert "Connect" in row.tries[2]["error"]


async def test_gone_is_final(database: Database, receiver: Receiver) -> None:
    receiver.answers = [410]
    run_id = await finished(database, receiver.url)
    await send(webhooks(database, Clock()))
    row = await WebhookStore(database).get(run_id)
    assert row
    assert (row.next_at, row.delivered_at) == (None, None)


async def test_private_addresses_are_refused_at_the_try(database: Database, receiver: Receiver) -> None:
    """Also a name that leads there: localhost stands for one that was public at the POST."""
    urls = [f"http://{host}:{receiver.port}/" for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]")]
    ids = [await finished(database, url) for url in urls]
    await send(webhooks(database, Clock(), allow=False))
    for run_id in ids:
        row = await WebhookStore(database).get(run_id)
        assert row
        assert "not a public address" in row.tries[0]["error"]
    assert receiver.got == []


async def test_a_sender_that_died_leaves_it_to_the_next(database: Database, receiver: Receiver) -> None:
    """Taken, and never settled: due again after a while; a late answer of the first is not noted."""
    run_id, clock, store = await finished(database, receiver.url), Clock(), WebhookStore(database)
    [seen] = await store.due(clock.now, 10)
    assert await store.take(seen, clock.now + 50)
    assert not await store.take(seen, clock.now + 50)
    hooks = webhooks(database, clock)
    assert await send(hooks) == 0
    late = clock.now + 50
    clock.now += 100
    assert await send(hooks) == 1
    tried = {"at": clock.now, "status": 500, "error": None, "ms": 1}
    assert not await store.settle(seen, late, tried, next_at=None, delivered=False)
    row = await store.get(run_id)
    assert row
    assert row.delivered_at is not None


async def test_two_senders_send_it_once(database: Database, receiver: Receiver) -> None:
    for _ in range(5):
        await finished(database, receiver.url)
    clock = Clock()
    senders = [webhooks(database, clock) for _ in range(3)]
    for _ in range(3):
        await asyncio.gather(*(send(hooks) for hooks in senders))
    assert len({headers["webhook-id"] for headers, _ in receiver.got}) == len(receiver.got) == 5


async def test_a_receiver_that_hangs_takes_four_places(database: Database, receiver: Receiver) -> None:
    """Whatever waits behind it for others is sent meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:  # takes connections, and never answers
        for _ in range(6):
            await finished(database, f"http://127.0.0.1:{hanging.getsockname()[1]}/")
        fine = await finished(database, receiver.url)
        hooks = webhooks(database, Clock(), timeout_s=60)
        sending = asyncio.create_task(send(hooks))
        await until(lambda: bool(receiver.got))
        assert [headers["webhook-id"] for headers, _ in receiver.got] == [f"msg_{fine}"]
        await until(lambda: len(hooks._sending) == 4)
    assert await sending == 5


ODD_BODIES = {
    "cut off": b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok",
    "no chunk": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nok",
    "no gzip": b"HTTP/1.1 202 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\nok",
    "too long": b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nok and more",
    "empty, and closed": b"HTTP/1.1 204 No Content\r\n\r\n",
}


@pytest.mark.parametrize("answer", ODD_BODIES.values(), ids=ODD_BODIES.keys())
async def test_a_status_of_success_is_a_delivery_whatever_its_body(answer: bytes) -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(answer)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        sent = await WebhookSender(SECRET, timeout_s=30, allow_private=True).send(url, "m", b"{}")
    assert sent.delivered, sent


async def test_a_body_that_never_ends_is_a_delivery_when_the_time_is_over() -> None:
    async def reply(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nok")
        await reader.read()
        writer.close()

    server = await asyncio.start_server(reply, "127.0.0.1", 0)
    async with server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
        sent = await WebhookSender(SECRET, timeout_s=1, allow_private=True).send(url, "m", b"{}")
    assert sent.delivered, sent


async def test_the_next_address_is_tried_where_no_connection_comes_about(receiver: Receiver) -> None:
    """One that refuses, and one that keeps silent: its backlog is full, so that no handshake ends."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.8", receiver.port))
        silent.listen(0)
        waiting = [socket.socket() for _ in range(3)]
        for each in waiting:
            each.setblocking(False)
            each.connect_ex(("127.0.0.8", receiver.port))

        async def resolver(host: str, port: int) -> list[str]:
            return ["127.0.0.9", "127.0.0.8", "127.0.0.1"]

        sender = WebhookSender(SECRET, timeout_s=4, allow_private=True, resolver=resolver)
        sent = await sender.send(f"http://hook.example:{receiver.port}/", "m", b"{}")
        for each in waiting:
            each.close()
    assert sent.status == 204
    assert len(receiver.got) == 1


async def test_what_was_sent_to_one_address_is_not_sent_to_the_next(receiver: Receiver) -> None:
    """A receiver that has taken it and died may have acted on it."""

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.close()

    async def resolver(host: str, port: int) -> list[str]:
        return ["127.0.0.9", "127.0.0.1"]

    server = await asyncio.start_server(hang_up, "127.0.0.9", receiver.port)
    async with server:
        sender = WebhookSender(SECRET, timeout_s=30, allow_private=True, resolver=resolver)
        sent = await sender.send(f"http://hook.example:{receiver.port}/", "m", b"{}")
    assert sent.status is None
    assert receiver.got == []
