"""The way to the cluster's API server: the only module that talks to it, and that imports `kubernetes`.

Dicts in, dicts out. What a moment mends (connection loss, 429, 5xx, a token that was replaced) is
tried again here, as long as the caller has patience; the rest is a typed error. Every request of
ours may be sent twice: names are ours, so a second create answers 409 and a second delete 404. The
library finds the cluster, gets credentials and sends; its models and its retries are not used.

ClusterError                 status, reason, message of the API server
├── Absent                   404
├── Exists                   409
├── Expired                  410: the version is too old, list again
├── RequestRefused                  401, 403
├── TooMuch                  413
└── InvalidObject                  400, 422
ClusterAway                  (a StorageError) no answer, or none but 429 and 5xx, for as long as we waited
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from random import Random
from typing import Any

import aiohttp
import orjson
from kubernetes.aio.client import ApiClient, Configuration

from app.core.errors import StorageError
from app.k8s.login import Login, NoCluster

PATIENCE_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_CONNECT_S, _ANSWER_S = 5.0, 20.0
_CONNECTIONS = 1000
_READ_BYTES = 1 << 18
_ERROR_BYTES = 100_000


class ClusterError(Exception):
    """The API server refuses."""

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status, self.reason, self.message = status, reason, message
        self.retry_after_s: float | None = None


class Absent(ClusterError):
    """404: no such object."""


class Exists(ClusterError):
    """409: there is one of this name, or it was changed meanwhile."""


class Expired(ClusterError):
    """410: the version to continue from is too old; list again."""


class RequestRefused(ClusterError):
    """401 and 403: we may not."""


class TooMuch(ClusterError):
    """413: the object is too large."""


class InvalidObject(ClusterError):
    """400 and 422: the request makes no sense, now or ever."""


class ClusterAway(StorageError):
    """The API server did not answer just now; the caller tries again."""


_ERRORS: Mapping[int, type[ClusterError]] = {
    400: InvalidObject,
    401: RequestRefused,
    403: RequestRefused,
    404: Absent,
    409: Exists,
    410: Expired,
    413: TooMuch,
    422: InvalidObject,
}
_UNAUTHORIZED, _TOO_MANY, _SERVER_ERROR, _OK = 401, 429, 500, 300
_AWAY = (aiohttp.ClientError, TimeoutError, OSError, NoCluster)


class _Connections:
    """The library's client for one configuration; closed when it is replaced and the last request is over."""

    def __init__(self, configuration: Configuration) -> None:
        configuration.connection_pool_maxsize = _CONNECTIONS
        self.configuration = configuration
        self.api = ApiClient(configuration)
        self.api.user_agent = "tailrun"
        rest = self.api.rest_client
        plain = rest.pool_manager  # the library's reads proxies from the environment and keeps cookies
        rest.pool_manager = aiohttp.ClientSession(
            connector=plain.connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            read_bufsize=_READ_BYTES,
            trust_env=False,
        )
        plain.detach()
        self._users, self._replaced = 0, False

    def serves(self, configuration: Configuration) -> bool:
        """Whether requests of another configuration differ in their token alone."""
        mine = self.configuration
        return all(
            getattr(mine, name) == getattr(configuration, name)
            for name in (
                "host",
                "ssl_ca_cert",
                "verify_ssl",
                "tls_server_name",
                "proxy",
                "cert_file",
                "key_file",
            )
        )

    @contextlib.asynccontextmanager
    async def used(self) -> AsyncGenerator[ApiClient]:
        """Lend the client out for one request."""
        self._users += 1
        try:
            yield self.api
        finally:
            self._users -= 1
            await self._close_unused()

    async def replaced(self) -> None:
        """Close, now or after the requests that are under way."""
        self._replaced = True
        await self._close_unused()

    async def _close_unused(self) -> None:
        if self._replaced and not self._users:
            await self.api.close()


class Cluster:
    """One API server. Open for the life of a worker, closed at its end."""

    def __init__(self, login: Login, *, jitter: Random) -> None:
        self._login, self._jitter = login, jitter
        self._one_login = asyncio.Lock()
        self._logins, self._good_until = 0, float("-inf")
        self._connections: _Connections | None = None

    @property
    def namespace(self) -> str:
        """The namespace that our credentials name."""
        return self._login.namespace

    async def close(self) -> None:
        if self._connections is not None:
            await self._connections.api.close()

    async def get(self, path: str, params: Mapping[str, str | int] | None = None) -> dict[str, Any]:
        """Read an object or a list."""
        return await self._call("GET", path, None, params or {}, PATIENCE_S)

    async def create(
        self, path: str, body: Mapping[str, Any], *, patience_s: float = PATIENCE_S
    ) -> dict[str, Any]:
        """Create an object; `Exists` also when it was this very call that made it and its answer was lost."""
        return await self._call("POST", path, body, {}, patience_s)

    async def patch(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Merge `body` into an object."""
        return await self._call("PATCH", path, body, {}, PATIENCE_S)

    async def delete(self, path: str, *, patience_s: float = PATIENCE_S) -> None:
        """Delete an object after all that it owns; one that is gone already is fine."""
        body = {"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Foreground"}
        with contextlib.suppress(Absent):
            await self._call("DELETE", path, body, {}, patience_s)

    @contextlib.asynccontextmanager
    async def stream(
        self, path: str, *, idle_s: float | None, **params: str | int
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """Open a streamed answer and yield its bytes as they come. Tried once.

        Raises `ClusterAway` from inside as well: when the connection breaks, and when nothing has
        come for `idle_s` seconds (None: no limit).
        """
        async with contextlib.AsyncExitStack() as stack:
            try:
                answer = await stack.enter_async_context(self._request("GET", path, None, params, idle_s))
            except _AWAY as error:
                raise _away(error) from error
            yield _pieces(answer)

    # -- one call -----------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        params: Mapping[str, str | int],
        patience_s: float,
    ) -> dict[str, Any]:
        clock = asyncio.get_running_loop().time
        until, pause_s, refused = clock() + patience_s, _FIRST_PAUSE_S, False
        while True:
            try:
                async with self._request(method, path, body, params, _ANSWER_S) as answer:
                    return orjson.loads(await answer.read())
            except ClusterError as error:
                if error.status == _UNAUTHORIZED and not refused:
                    refused = True
                    continue
                if error.status != _TOO_MANY and error.status < _SERVER_ERROR:
                    raise
                trouble, wait_s = str(error), max(error.retry_after_s or 0, self._jittered(pause_s))
            except (*_AWAY, orjson.JSONDecodeError) as error:
                trouble, wait_s = _say(error), self._jittered(pause_s)
            if clock() + wait_s > until:
                raise ClusterAway(f"the cluster's API server does not answer: {trouble}")
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    @contextlib.asynccontextmanager
    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None,
        params: Mapping[str, str | int],
        idle_s: float | None,
    ) -> AsyncGenerator[aiohttp.ClientResponse]:
        """Send one request; give out a good answer. Raises `_AWAY` and `ClusterError`."""
        connections, login = await self._logged_in()
        headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = f"application/{'merge-patch+' if method == 'PATCH' else ''}json"
        timeout = aiohttp.ClientTimeout(connect=_ANSWER_S, sock_connect=_CONNECT_S, sock_read=idle_s)
        async with connections.used() as api:
            call: Any = api.call_api  # what it returns depends on its arguments
            answer: aiohttp.ClientResponse = await call(
                path,
                method,
                query_params=list(params.items()),
                header_params=headers,
                body=None if body is None else dict(body),
                auth_settings=["BearerToken"],
                _preload_content=False,
                _request_timeout=timeout,
            )
            try:
                if answer.status >= _OK:
                    raise self._error(answer, await _some(answer), login)
                yield answer
            finally:
                answer.close()  # what was read to its end has given its connection back before

    async def _logged_in(self) -> tuple[_Connections, int]:
        """Return the client with good credentials, and the number of the login that brought them."""
        clock = asyncio.get_running_loop().time
        async with self._one_login:
            if self._connections is None or clock() >= self._good_until:
                configuration = Configuration()
                good_for_s = await self._login.load(configuration)
                if self._connections is not None and self._connections.serves(configuration):
                    self._connections.configuration.api_key = configuration.api_key
                else:
                    old, self._connections = self._connections, _Connections(configuration)
                    if old is not None:
                        await old.replaced()
                self._logins += 1
                self._good_until = clock() + good_for_s
            return self._connections, self._logins

    def _error(self, answer: aiohttp.ClientResponse, content: bytes, login: int) -> ClusterError:
        status, reason, message = answer.status, "", content[:500].decode(errors="replace")
        with contextlib.suppress(orjson.JSONDecodeError, AttributeError):
            body = orjson.loads(content)
            reason, message = body.get("reason") or "", body.get("message") or message
        if status == _UNAUTHORIZED and login == self._logins:  # a later login may be good
            self._login.refused()
            self._good_until = float("-inf")
        error = _ERRORS.get(status, ClusterError)(status, reason, message)
        with contextlib.suppress(KeyError, ValueError):
            error.retry_after_s = min(float(answer.headers["Retry-After"]), PATIENCE_S)
        return error

    def _jittered(self, pause_s: float) -> float:
        return pause_s * self._jitter.uniform(0.5, 1)


async def _pieces(answer: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
    """Yield bytes as they come; an error here is the connection's, not the reader's."""
    try:
        while piece := await answer.content.readany():
            yield piece
    except _AWAY as error:
        raise _away(error) from error


async def _some(answer: aiohttp.ClientResponse) -> bytes:
    """Read the text of an error, up to a bound."""
    found = b""
    while len(found) <= _ERROR_BYTES and (piece := await answer.content.readany()):
        found += piece
    return found


def _away(error: Exception) -> ClusterAway:
    return ClusterAway(f"the cluster's API server does not answer: {_say(error)}")


def _say(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()
