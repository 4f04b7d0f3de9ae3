"""What was carried out is not always answered: the connection is cut between the deed and its reply.

Worker and API reach Redis and PostgreSQL through proxies of their own, which lose one reply about a run.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import closing

import pytest
from support.postgres_server import PostgresServer
from support.servers import RedisServer
from support.stack import Stack, seqs, shell, wait_for
from support.tcp_proxy import BehindProxy, Loss, TcpProxy

COUNTED = "echo x >> count.txt; echo counted"
EXCHANGES = 6
"""More than a worker has about a short run with either server; what isn't met is not asserted."""


class Lossy(Stack):
    """A stack with proxies: `redis.proxy` and `database` for the workers, `api_…` for the API."""

    database: TcpProxy
    api_database: TcpProxy
    api_redis: TcpProxy


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lossy]:
    folder = tmp_path_factory.mktemp("lossy")
    postgres = PostgresServer().start()
    server = RedisServer(folder / "redis").start()
    proxies = [TcpProxy(postgres.port), TcpProxy(postgres.port), TcpProxy(server.port)]
    urls = [f"postgresql://postgres@127.0.0.1:{proxy.port}/postgres" for proxy in proxies[:2]]
    stack = Lossy(
        folder,
        postgres.url,
        redis=BehindProxy(server),
        api_settings={"DATABASE_URL": urls[1], "REDIS_URL": f"redis://127.0.0.1:{proxies[2].port}/0"},
        DATABASE_URL=urls[0],
    )
    stack.database, stack.api_database, stack.api_redis = proxies
    with closing(postgres):
        yield stack
        stack.close()
        for proxy in proxies:
            proxy.close()


def held(stack: Lossy, **labels: str) -> str:
    """A run whose id is known before anybody else has to do with it."""
    return stack.submit(shell(COUNTED), start=False, labels=labels)


def start(stack: Lossy, run_id: str) -> None:
    assert stack.http.post(f"/v1/runs/{run_id}/start").is_success


def assert_ran_once(stack: Lossy, run_id: str) -> None:
    run = stack.wait_end(run_id, 120)
    assert run["status"] == "succeeded", run["error"]
    events = stack.events(run_id)
    assert seqs(events) == list(range(1, run["last_seq"] + 1))
    assert [event["type"] for event in events].count("end") == 1
    assert [event.get("content") for event in events].count("counted") == 1
    assert stack.http.get(f"/v1/runs/{run_id}/files/count.txt").text == "x\n"


def assert_nothing_left(stack: Lossy) -> None:
    with stack.redis.client() as client:
        wait_for(lambda: not client.keys("jobs:processing:*"), "nothing to be held")
        assert client.llen("jobs:pending") == client.llen("jobs:dead") == client.zcard("jobs:delayed") == 0


def test_a_claim_whose_reply_is_lost_is_given_back(stack: Lossy) -> None:
    """Nobody knows of the entry in the worker's list, until it finds the stranger; attempt 1 runs it."""
    run_id = held(stack)
    loss = stack.redis.proxy.lose(reply=run_id.encode())
    start(stack, run_id)
    assert_ran_once(stack, run_id)
    assert loss.happened
    assert stack.run(run_id)["attempt"] == 1
    assert_nothing_left(stack)


def test_a_batch_of_claims_whose_reply_is_lost_is_given_back(stack: Lossy) -> None:
    """The script's reply, when all slots were taken and more than one waits."""
    blockers = [stack.submit(shell("sleep 3")) for _ in range(10)]
    wait_for(lambda: all(stack.run(each)["status"] == "running" for each in blockers), "no slot to be free")
    run_ids = [held(stack) for _ in range(3)]
    losses = [stack.redis.proxy.lose(reply=run_id.encode(), keep=9) for run_id in run_ids]
    for run_id in run_ids:
        start(stack, run_id)
    for run_id in run_ids:
        assert_ran_once(stack, run_id)
        assert stack.run(run_id)["attempt"] == 1
    assert any(loss.happened for loss in losses)
    assert_nothing_left(stack)


def test_a_push_whose_reply_is_lost_is_one_entry(stack: Lossy) -> None:
    """The API cannot know whether it is there; the answer is 2xx, and the queue has it once."""
    stack.workers[0].signal(signal.SIGSTOP)
    try:
        run_id = held(stack)
        loss = stack.api_redis.lose(request=f"jobs:mark:{run_id}".encode())
        start(stack, run_id)
        assert loss.happened
        with stack.redis.client() as client:  # the frozen worker's blocking pop may have taken it
            lists = ("jobs:pending", *client.keys("jobs:processing:*"))
            assert sum(run_id in entry for each in lists for entry in client.lrange(each, 0, -1)) == 1
    finally:
        stack.workers[0].signal(signal.SIGCONT)
    assert_ran_once(stack, run_id)
    assert stack.run(run_id)["attempt"] == 1
    assert_nothing_left(stack)


def test_a_run_whose_creation_was_committed_and_not_answered_is_one_run(stack: Lossy) -> None:
    """The client hears 503 and repeats with its key."""
    loss = stack.api_database.lose(request=b"a-mark-of-its-own")
    run_id = stack.submit_stubbornly(shell(COUNTED), labels={"mark": "a-mark-of-its-own"})
    assert loss.happened
    assert_ran_once(stack, run_id)
    items = stack.http.get("/v1/runs", params={"limit": 200}).json()["items"]
    assert [run["run_id"] for run in items if run["labels"]] == [run_id]
    assert_nothing_left(stack)


@pytest.mark.parametrize("keep", [0, 1])
def test_any_exchange_about_a_run_may_lose_its_reply(stack: Lossy, keep: int) -> None:
    """Each of many runs loses another reply of Redis or PostgreSQL to the worker: claim, line, end, ack."""
    losses: list[Loss] = []
    run_ids: list[str] = []
    for proxy in (stack.redis.proxy, stack.database):
        for skip in range(EXCHANGES):
            run_ids.append(held(stack))
            losses.append(proxy.lose(request=run_ids[-1].encode(), skip=skip, keep=keep))
            start(stack, run_ids[-1])
    for run_id in run_ids:
        assert_ran_once(stack, run_id)
    assert sum(loss.happened for loss in losses[:EXCHANGES]) >= 2
    assert sum(loss.happened for loss in losses[EXCHANGES:]) >= 2
    assert_nothing_left(stack)
