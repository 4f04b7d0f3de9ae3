"""Where Redis is and how to get in, from one URL and a few settings. Nothing connects here.

redis://[user:password@]host[:6379][/db]                                one server
rediss://…                                                              the same over TLS
unix://[user:password@]/path/to/socket[?db=0]                           a socket of this machine
redis+sentinel://[user:password@]a[:26379],b[:26379]/service[/db]       the master that sentinels name
rediss+sentinel://…                                                     TLS to sentinels and servers

What the sentinels of one service are, in the order in which to ask them.

A reconnect always asks for the master: an address that is remembered is the one that failed.
The sentinel that answered last is asked first, so a dead one costs its time-out only once; one
that named a server which is no master (cut off from the others, it still knows the old one)
goes to the end. Shared by the connections of a pool.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

from app.config import RedisSettings

Server = tuple[str, int]

_SCHEMES = ("redis", "rediss", "unix", "redis+sentinel", "rediss+sentinel")
_PORT, _SENTINEL_PORT = 6379, 26379
_SERVER = re.compile(r"(\[[^\]]+\]|[^:\[\]]+)(?::(\d{1,5}))?")


class BadAddress(ValueError):
    """A setting about Redis cannot be used; the message names it."""


@dataclass(frozen=True, slots=True)
class Tls:
    """Files of an encrypted connection; without a CA file the system's authorities count."""

    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    def context(self) -> ssl.SSLContext:
        """Return what verifies the server and shows our certificate; made anew when a file changes."""
        files = (self.ca_file, self.cert_file, self.key_file)
        return _context(self, tuple(file.stat().st_mtime_ns if file else 0 for file in files))


@lru_cache(maxsize=8)
def _context(tls: Tls, _changed: tuple[int, ...]) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=tls.ca_file)
    if tls.cert_file is not None:
        context.load_cert_chain(tls.cert_file, tls.key_file)
    return context


@dataclass(frozen=True, slots=True)
class RedisAddress:
    """One Redis. With a `service`, `servers` are sentinels that know where its master is."""

    servers: tuple[Server, ...] = (("127.0.0.1", _PORT),)
    socket: str | None = None
    service: str | None = None
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: Tls | None = None
    sentinel_username: str | None = None
    sentinel_password: str | None = None

    @classmethod
    def of(cls, settings: RedisSettings, url: str | None = None) -> RedisAddress:
        """Read the settings; `BadAddress` names the one that is wrong. `url` replaces REDIS_URL."""
        address = cls.parse(url or settings.effective_url)
        secret = settings.sentinel_password
        return replace(
            address,
            tls=_tls(settings, encrypted=address.tls is not None),
            sentinel_username=settings.sentinel_username,
            sentinel_password=secret.get_secret_value() if secret else None,
        )

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Read a URL of one of the forms above."""
        scheme, colon, rest = url.partition("://")
        if not colon or scheme not in _SCHEMES:
            forms = ", ".join(f"{known}://" for known in _SCHEMES)
            raise BadAddress(f"REDIS_URL must begin with one of {forms}")
        rest, _, query = rest.partition("?")
        login, _, place = rest.rpartition("@")
        username, _, password = login.partition(":")
        address = cls(
            username=unquote(username) or None,
            password=unquote(password) or None,
            tls=Tls() if scheme.startswith("rediss") else None,
        )
        options = _options(query)
        if scheme == "unix":
            address = replace(address, socket=_socket(place))
        elif scheme.endswith("+sentinel"):
            address = _with_sentinels(address, place)
        else:
            address = _with_server(address, place)
        return replace(address, db=_number(options["db"])) if "db" in options else address

    @property
    def shown(self) -> str:
        """The address for people: no user, no password."""
        if self.socket is not None:
            return f"unix://{self.socket}?db={self.db}"
        scheme = ("rediss" if self.tls else "redis") + ("+sentinel" if self.service else "")
        hosts = ",".join(f"{f'[{host}]' if ':' in host else host}:{port}" for host, port in self.servers)
        service = f"/{self.service}" if self.service else ""
        return f"{scheme}://{hosts}{service}/{self.db}"


@dataclass(frozen=True, slots=True)
class RestAddress:
    """Where Upstash's REST API is, and its token."""

    url: str
    token: str

    @classmethod
    def of(cls, settings: RedisSettings) -> RestAddress | None:
        """Read the settings; None where they are unset, `BadAddress` where they cannot be used."""
        url, token = settings.rest_url, settings.rest_token
        if url is None and token is None:
            return None
        if url is None or token is None:
            missing = "UPSTASH_REDIS_REST_URL" if url is None else "UPSTASH_REDIS_REST_TOKEN"
            raise BadAddress(f"{missing} is missing: URL and token of the REST API belong together")
        if not url.startswith(("https://", "http://")):
            raise BadAddress("UPSTASH_REDIS_REST_URL must begin with https:// (or http://, on this machine)")
        return cls(url.rstrip("/"), token.get_secret_value())


def _options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query, keep_blank_values=True))
    if unknown := sorted(options.keys() - {"db"}):
        raise BadAddress(
            f"REDIS_URL has parameters that mean nothing here: {', '.join(unknown)}. Files for TLS are in "
            "REDIS_CA_FILE, REDIS_CERT_FILE and REDIS_KEY_FILE"
        )
    return options


def _socket(place: str) -> str:
    path = unquote(place)
    if not path.startswith("/"):
        raise BadAddress("REDIS_URL: a unix:// address needs an absolute path, unix:///run/redis.sock")
    return path


def _with_server(address: RedisAddress, place: str) -> RedisAddress:
    host, _, db = place.partition("/")
    servers = (_server(host, _PORT),) if host else (("localhost", _PORT),)
    return replace(address, servers=servers, db=_number(db or "0"))


def _with_sentinels(address: RedisAddress, place: str) -> RedisAddress:
    hosts, _, path = place.partition("/")
    service, _, db = path.partition("/")
    if not service:
        raise BadAddress(
            "REDIS_URL: a +sentinel address ends in the name that the sentinels watch: "
            "redis+sentinel://host1:26379,host2:26379/mymaster"
        )
    servers = tuple(_server(host.strip(), _SENTINEL_PORT) for host in hosts.split(","))
    return replace(address, servers=servers, service=unquote(service), db=_number(db or "0"))


def _server(text: str, default_port: int) -> Server:
    found = _SERVER.fullmatch(text)
    if found is None:
        raise BadAddress(f"REDIS_URL: {text[:100]!r} is no host, host:port or [ipv6]:port")
    return unquote(found[1].strip("[]")), int(found[2] or default_port)


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise BadAddress(f"REDIS_URL: the number of a database is expected, not {text[:40]!r}")
    return int(text)


def _tls(settings: RedisSettings, *, encrypted: bool) -> Tls | None:
    tls = Tls(settings.ca_file, settings.cert_file, settings.key_file)
    named = {"REDIS_CA_FILE": tls.ca_file, "REDIS_CERT_FILE": tls.cert_file, "REDIS_KEY_FILE": tls.key_file}
    for name, file in named.items():
        if file is not None and not encrypted:
            raise BadAddress(f"{name} is set, but REDIS_URL is not encrypted: rediss:// is")
        if file is not None and not file.is_file():
            raise BadAddress(f"{name}: there is no file {file}")
    if tls.key_file is not None and tls.cert_file is None:
        raise BadAddress("REDIS_KEY_FILE is set without REDIS_CERT_FILE")
    return tls if encrypted else None


ASK_TIMEOUT_S = 0.5


class Sentinels:
    """The sentinels of one address; asking them is the connections' business."""

    def __init__(self, address: RedisAddress) -> None:
        self.service = address.service or ""
        self._order = [
            replace(
                address,
                servers=(server,),
                service=None,
                db=0,
                username=address.sentinel_username,
                password=address.sentinel_password,
            )
            for server in address.servers
        ]

    @property
    def question(self) -> tuple[str, str, str]:
        """The command to send to a sentinel."""
        return "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self.service

    def in_order(self) -> list[RedisAddress]:
        """Return an address for each, the most promising first."""
        return list(self._order)

    def answered(self, sentinel: RedisAddress, reply: Any) -> Server | None:
        """Take a sentinel's answer: the master, or None if it does not know the service."""
        if not reply:
            return None
        self._order.remove(sentinel)
        self._order.insert(0, sentinel)
        return reply[0].decode(), int(reply[1])

    def misled(self) -> None:
        """Take note that the server which the first sentinel named is no master."""
        self._order.append(self._order.pop(0))

    def no_master(self, said: list[str]) -> str:
        """Say that no sentinel was of help, and what each said."""
        return f"no sentinel names the master of {self.service!r} ({'; '.join(said)})"


def is_demoted(error: Exception) -> bool:
    """Whether a server's error says that it is a replica (now): its connection is good for nothing.

    A script's write is refused with the word inside; UNBLOCKED ends a blocking pop.
    """
    text = str(error)
    return "READONLY" in text or "can't write against a read only" in text or text.startswith("UNBLOCKED")
