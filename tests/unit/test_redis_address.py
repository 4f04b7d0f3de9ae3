"""Where Redis is: one URL and a few settings; what cannot be meant is refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from app.config import Settings
from app.redis.address import BadAddress, RedisAddress, RestAddress, Sentinels
from app.redis.clients import RedisClients


def settings(**fields: Any) -> Settings:
    return Settings(_env_file=None, **fields)


@pytest.mark.parametrize(
    ("url", "servers", "rest"),
    [
        ("redis://", (("localhost", 6379),), {}),
        ("redis://host", (("host", 6379),), {}),
        ("redis://host:7/3", (("host", 7),), {"db": 3}),
        ("redis://host:7?db=3", (("host", 7),), {"db": 3}),
        ("redis://:p%40ss@host", (("host", 6379),), {"password": "p@ss"}),
        ("redis://me:a:b@[::1]:7/1", (("::1", 7),), {"username": "me", "password": "a:b", "db": 1}),
        ("redis+sentinel://a,b:1/svc", (("a", 26379), ("b", 1)), {"service": "svc"}),
        (
            "redis+sentinel://u:p@[::1],[::2]:2/my%2Fsvc/4",
            (("::1", 26379), ("::2", 2)),
            {"service": "my/svc", "db": 4, "username": "u", "password": "p"},
        ),
    ],
)
def test_a_url_names_servers(url: str, servers: tuple[tuple[str, int], ...], rest: dict[str, Any]) -> None:
    """Hosts, ports, users, databases and services, with what is left out filled in."""
    assert RedisAddress.parse(url) == RedisAddress(servers=servers, **rest)


def test_a_unix_socket_has_a_path_and_a_database() -> None:
    """`unix:///path?db=2`, with or without a login."""
    address = RedisAddress.parse("unix://me:pw@/run/redis.sock?db=2")
    assert (address.socket, address.db, address.username) == ("/run/redis.sock", 2, "me")


@pytest.mark.parametrize("scheme", ["rediss", "rediss+sentinel"])
def test_two_s_mean_tls(scheme: str) -> None:
    """Also between the sentinels and us."""
    assert RedisAddress.parse(f"{scheme}://host/name" if "+" in scheme else f"{scheme}://host").tls


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://host", "begin with"),
        ("host:6379", "begin with"),
        ("redis://host:x", "no host"),
        ("redis://host:1:2", "no host"),
        ("redis://host/one", "number of a database"),
        ("redis://host/-1", "number of a database"),
        ("redis+sentinel://a,b", "the name that the sentinels watch"),
        ("redis+sentinel://a,,b/svc", "no host"),
        ("unix://relative/path", "absolute path"),
        ("rediss://host?ssl_cert_reqs=none", "ssl_cert_reqs"),
    ],
)
def test_a_wrong_url_is_refused_with_what_is_wrong(url: str, says: str) -> None:
    """And the message names the setting, but no password."""
    with pytest.raises(BadAddress, match="REDIS_URL") as error:
        RedisAddress.parse(url.replace("://", "://me:secret@", 1) if "://" in url else url)
    assert says in str(error.value)
    assert "secret" not in str(error.value)


def test_the_shown_address_has_no_password() -> None:
    """It stands in errors."""
    url = "rediss+sentinel://me:secret@a:1,[::1]:2/svc/3"
    assert RedisAddress.parse(url).shown == "rediss+sentinel://a:1,[::1]:2/svc/3"
    assert RedisAddress.parse("unix://:secret@/s.sock").shown == "unix:///s.sock?db=0"


def test_files_for_tls_need_an_encrypted_address(tmp_path: Path) -> None:
    """Whoever names a CA file must not talk in the clear."""
    file = tmp_path / "ca.pem"
    file.touch()
    with pytest.raises(BadAddress, match="REDIS_CA_FILE"):
        RedisAddress.of(settings(redis_url=SecretStr("redis://h"), redis_ca_file=file).redis)
    with pytest.raises(BadAddress, match="REDIS_CA_FILE: there is no file"):
        RedisAddress.of(settings(redis_url=SecretStr("rediss://h"), redis_ca_file=tmp_path / "none").redis)
    with pytest.raises(BadAddress, match="REDIS_KEY_FILE"):
        RedisAddress.of(settings(redis_url=SecretStr("rediss://h"), redis_key_file=file).redis)


def test_sentinels_have_a_login_of_their_own() -> None:
    """The URL's is for the servers."""
    address = RedisAddress.of(
        settings(
            redis_url=SecretStr("redis+sentinel://app:one@a,b/svc/5"),
            redis_sentinel_username="watch",
            redis_sentinel_password=SecretStr("two"),
        ).redis
    )
    sentinel = Sentinels(address).in_order()[0]
    assert (address.username, address.password, address.db) == ("app", "one", 5)
    assert (sentinel.username, sentinel.password, sentinel.db) == ("watch", "two", 0)


def test_the_sentinel_that_helped_is_asked_first_and_the_one_that_misled_last() -> None:
    """A dead sentinel costs its time-out once, and one that is cut off cannot hold us for ever."""
    sentinels = Sentinels(RedisAddress.parse("redis+sentinel://a,b,c/svc"))
    a, b, c = sentinels.in_order()
    assert sentinels.answered(a, None) is None
    assert sentinels.answered(b, [b"10.0.0.1", b"6379"]) == ("10.0.0.1", 6379)
    assert sentinels.in_order() == [b, a, c]
    sentinels.misled()
    assert sentinels.in_order() == [a, c, b]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"upstash_redis_rest_url": "https://u"}, "UPSTASH_REDIS_REST_TOKEN is missing"),
        ({"upstash_redis_rest_token": SecretStr("t")}, "UPSTASH_REDIS_REST_URL is missing"),
        (
            {"upstash_redis_rest_url": "redis://u", "upstash_redis_rest_token": SecretStr("t")},
            "must begin with https://",
        ),
    ],
)
def test_a_rest_address_is_whole_or_absent(fields: dict[str, Any], says: str) -> None:
    """URL and token belong together."""
    with pytest.raises(BadAddress, match=says):
        RestAddress.of(settings(**fields).redis)


def test_without_rest_settings_there_is_no_rest_address() -> None:
    """The Redis protocol serves everything then."""
    assert RestAddress.of(settings().redis) is None


def test_a_worker_refuses_to_start_with_the_rest_address_alone() -> None:
    """It could neither wait for runs nor hear a STOP."""
    alone = settings(upstash_redis_rest_url="https://u", upstash_redis_rest_token=SecretStr("t"))
    with pytest.raises(BadAddress, match="A worker needs REDIS_URL"):
        RedisClients.for_worker(alone.redis)
