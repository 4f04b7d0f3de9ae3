"""The way to the cluster's API server: the only module that talks to it.

Dicts in, dicts out. What a moment mends (connection loss, 429, 5xx, a token that was replaced) is
tried again here, as long as the caller has patience; the rest is a typed error. Every request of
ours may be sent twice: names are ours, so a second create answers 409 and a second delete 404.

ClusterError                 status, reason, message as the API server says them
├── Absent                   404
├── Exists                   409
├── Expired                  410: the version is too old, list again
├── Refused                  401, 403
├── TooMuch                  413
└── Invalid                  400, 422
ClusterAway                  (a StorageError) no answer, or none but 429 and 5xx, for as long as we waited
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from random import Random
from typing import Any

import httpx2
import orjson

from app.errors import StorageError
from app.k8s.credentials import Credentials, NoCluster

PATIENCE_S = 30.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 5.0
_CONNECT_S, _ANSWER_S = 5.0, 20.0
_CONNECTIONS = 1000
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
    """410: what we know is too old to go on from; list again."""


class Refused(ClusterError):
    """401 and 403: we may not."""


class TooMuch(ClusterError):
    """413: the object is too large."""


class Invalid(ClusterError):
    """400 and 422: the request makes no sense, now or ever."""


class ClusterAway(StorageError):
    """The API server did not answer just now; the caller tries again."""


_ERRORS: Mapping[int, type[ClusterError]] = {
    400: Invalid,
    401: Refused,
    403: Refused,
    404: Absent,
    409: Exists,
    410: Expired,
    413: TooMuch,
    422: Invalid,
}
_UNAUTHORIZED, _TOO_MANY, _SERVER_ERROR, _OK = 401, 429, 500, 300


class Cluster:
    """One API server. Open for the life of a worker, closed at its end."""

    def __init__(self, credentials: Credentials, *, jitter: Random) -> None:
        self._credentials, self._jitter = credentials, jitter
        self._http = httpx2.AsyncClient(
            base_url=credentials.server,
            verify=credentials.tls if credentials.tls is not None else True,
            timeout=httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S),
            limits=httpx2.Limits(max_connections=_CONNECTIONS, max_keepalive_connections=20),
            trust_env=False,
        )

    @property
    def namespace(self) -> str:
        """The namespace that our credentials name."""
        return self._credentials.namespace

    async def close(self) -> None:
        """Close all connections."""
        await self._http.aclose()

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
        """Open an answer that goes on: give out its bytes as they come. Tried once.

        Raises `ClusterAway` from inside as well: when the connection breaks, and when nothing has
        come for `idle_s` seconds (None: wait for ever).
        """
        timeout = httpx2.Timeout(_ANSWER_S, connect=_CONNECT_S, read=idle_s)
        try:
            headers = {**await self._headers(), "Accept-Encoding": "identity"}
            async with self._http.stream(
                "GET", path, params=params, headers=headers, timeout=timeout
            ) as answer:
                if answer.status_code >= _OK:
                    raise self._error(answer.status_code, answer.headers, await _some(answer))
                yield answer.aiter_raw()
        except httpx2.TransportError as error:
            raise ClusterAway(f"the cluster's API server does not answer: {_say(error)}") from error
        except NoCluster as error:
            raise ClusterAway(str(error)) from error

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
                return await self._send(method, path, body, params)
            except ClusterError as error:
                if error.status == _UNAUTHORIZED and not refused:
                    refused = True
                    continue
                if error.status != _TOO_MANY and error.status < _SERVER_ERROR:
                    raise
                trouble, wait_s = str(error), max(error.retry_after_s or 0, self._jittered(pause_s))
            except (httpx2.TransportError, NoCluster, orjson.JSONDecodeError) as error:
                trouble, wait_s = _say(error), self._jittered(pause_s)
            if clock() + wait_s > until:
                raise ClusterAway(f"the cluster's API server does not answer: {trouble}")
            await asyncio.sleep(wait_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None, params: Mapping[str, str | int]
    ) -> dict[str, Any]:
        headers = await self._headers()
        content = None
        if body is not None:
            kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
            headers["Content-Type"] = kind
            content = orjson.dumps(body)
        answer = await self._http.request(method, path, params=params, headers=headers, content=content)
        if answer.status_code >= _OK:
            raise self._error(answer.status_code, answer.headers, answer.content)
        return orjson.loads(answer.content)

    async def _headers(self) -> dict[str, str]:
        if self._credentials.stale:
            await asyncio.to_thread(self._credentials.renew)
        authorization = self._credentials.header
        headers = {"Accept": "application/json"}
        return headers if authorization is None else {**headers, "Authorization": authorization}

    def _error(self, status: int, headers: httpx2.Headers, content: bytes) -> ClusterError:
        reason, message = "", content[:500].decode(errors="replace")
        with contextlib.suppress(orjson.JSONDecodeError, AttributeError):
            body = orjson.loads(content)
            reason, message = body.get("reason") or "", body.get("message") or message
        if status == _UNAUTHORIZED:
            self._credentials.refused()
        error = _ERRORS.get(status, ClusterError)(status, reason, message)
        with contextlib.suppress(KeyError, ValueError):
            error.retry_after_s = min(float(headers["Retry-After"]), PATIENCE_S)
        return error

    def _jittered(self, pause_s: float) -> float:
        return pause_s * self._jitter.uniform(0.5, 1)


async def _some(answer: httpx2.Response) -> bytes:
    """Read the text of an error, up to a bound."""
    found = b""
    async for piece in answer.aiter_raw():
        found += piece
        if len(found) > _ERROR_BYTES:
            break
    return found


def _say(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()
