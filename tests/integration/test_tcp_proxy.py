"""The proxy of the tests does what it says: else tests behind it would prove nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from redis.connection import Connection
from support.servers import RedisServer
from support.tcp_proxy import TcpProxy, reply_end


@pytest.fixture
def proxy(redis_server: RedisServer) -> Iterator[TcpProxy]:
    proxy = TcpProxy(redis_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def client(proxy: TcpProxy) -> Iterator[redis.Redis]:
    with redis.Redis(port=proxy.port, protocol=2, retry=None, socket_timeout=60) as client:
        client.ping()
        yield client


@pytest.mark.parametrize("reset", [True, False])
def test_it_cuts(proxy: TcpProxy, reset: bool) -> None:
    connection = Connection(port=proxy.port, protocol=2)  # a client would connect again by itself
    connection.connect()
    assert proxy.cut(reset=reset) == 1
    with pytest.raises(redis.ConnectionError):
        connection.read_response()
    connection.disconnect()


def test_it_freezes_and_thaws(proxy: TcpProxy, redis_server: RedisServer) -> None:
    with redis.Redis(port=proxy.port, retry=None, socket_timeout=0.2) as client:
        client.ping()
        assert proxy.freeze() == 1
        with pytest.raises(redis.TimeoutError):
            client.incr("n")
        proxy.thaw()
        client.ping()
    with redis_server.client() as direct:
        assert direct.get("n") in {None, "1"}


@pytest.mark.parametrize("keep", [0, 2])
def test_it_loses_a_reply_but_not_the_deed(
    proxy: TcpProxy, client: redis.Redis, redis_server: RedisServer, keep: int
) -> None:
    loss = proxy.lose(request=b"mine", skip=1, keep=keep)
    assert client.incr("mine") == 1
    assert client.incr("other") == 1
    with pytest.raises(redis.ConnectionError):
        client.incr("mine")
    assert loss.happened
    assert client.incr("mine") == 3


def test_it_drops_messages_and_nothing_else(
    proxy: TcpProxy, client: redis.Redis, redis_server: RedisServer
) -> None:
    with client.pubsub() as pubsub, redis_server.client() as direct:
        pubsub.subscribe("c")
        assert pubsub.get_message(timeout=60)["type"] == "subscribe"
        proxy.drop_messages = 0.5
        for n in range(100):
            direct.publish("c", f"{n}\r\n*3\r\n")
        proxy.drop_messages = 0.5
        pubsub.ping()
        got = []
        while (message := pubsub.get_message(timeout=60))["type"] != "pong":
            got.append(int(message["data"].split()[0]))
        assert got == sorted(set(got))
        assert 20 < proxy.dropped < 80
        assert len(got) + proxy.dropped == 100


@pytest.mark.parametrize(
    "reply",
    [
        b"+OK\r\n",
        b":7\r\n",
        b"$-1\r\n",
        b"$0\r\n\r\n",
        b"*-1\r\n",
        b"*2\r\n*1\r\n$1\r\na\r\n:1\r\n",
        b"%1\r\n+a\r\n+b\r\n",
    ],
)
def test_it_knows_where_a_reply_ends(reply: bytes) -> None:
    assert reply_end(reply + b"+", 0) == len(reply)
    assert [reply_end(reply[:n], 0) for n in range(len(reply))] == [None] * len(reply)
