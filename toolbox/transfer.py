"""One archive over HTTP, down or up, tried again until its time is over.

Addresses and headers are secrets: no error of this module, and none that it lets through, holds
them. TLS is verified with the authorities of the system (or `SSL_CERT_FILE`).
"""

from __future__ import annotations

import contextlib
import http.client
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import IO, Any, Self, TypeVar
from urllib.parse import urlsplit

from toolbox.archive import PIECE, Damaged, Read

T = TypeVar("T")

_SILENCE_S = 20.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 5.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_OK, _REDIRECT = 200, 300
_CODE = re.compile(rb"<Code>([A-Za-z]{1,64})</Code>")  # S3's error code


class TransferFailed(Exception):
    """It did not get through; the message holds no address."""


class _Passing(Exception):
    """The server or the network had a bad moment."""


def download(address: Mapping[str, Any], take: Callable[[Read], T], seconds: float) -> T:
    """GET and return what `take` makes of the body; it is called anew when the connection breaks.

    Raises:
        TransferFailed: refused, or not done within `seconds`. What else `take` raises goes through.
    """

    def once(until: float) -> T:
        with _Exchange(address, until) as exchange:
            answer = exchange.request("GET", None, 0)

            def read(size: int) -> bytes:
                with _network():
                    exchange.check_time()
                    return answer.read1(size)

            return take(read)

    return _tried(once, seconds)


def upload(address: Mapping[str, Any], file: IO[bytes], size: int, seconds: float) -> None:
    """PUT (or `method`) `size` bytes of `file`; raises as `download`."""

    def once(until: float) -> None:
        file.seek(0)
        with _Exchange(address, until) as exchange:
            exchange.request(str(address.get("method", "PUT")), file, size)

    _tried(once, seconds)


def _tried(once: Callable[[float], T], seconds: float) -> T:
    until = time.monotonic() + seconds
    pause = _FIRST_PAUSE_S
    while True:
        try:
            return once(until)
        except (_Passing, Damaged) as error:
            reason = str(error)
        if time.monotonic() + pause >= until:
            raise TransferFailed(f"not done within {seconds:g} s: {reason}")
        time.sleep(pause)
        pause = min(pause * 2, _LONGEST_PAUSE_S)


class _Exchange:
    """One request and its answer."""

    def __init__(self, address: Mapping[str, Any], until: float) -> None:
        try:
            url = urlsplit(address["url"])
            host, port = url.hostname, url.port
        except (KeyError, TypeError, ValueError):
            raise TransferFailed("the address is malformed") from None
        kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
        if url.scheme not in kinds or not host:
            raise TransferFailed("the address is neither http nor https")
        self._path = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._headers = {str(key): str(value) for key, value in dict(address.get("headers") or {}).items()}
        self._until = until
        wait_s = max(0.1, min(_SILENCE_S, until - time.monotonic()))
        self._connection = kinds[url.scheme](host, port, timeout=wait_s, blocksize=PIECE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def request(self, method: str, body: IO[bytes] | None, size: int) -> http.client.HTTPResponse:
        """Send the request; return the answer if it is a good one."""
        headers = self._headers | ({"Content-Length": str(size)} if body is not None else {})
        with _network():
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it may have answered
                self._connection.request(method, self._path, self._pieces(body), headers)
            answer = self._connection.getresponse()
            code = None if answer.status < _REDIRECT else _CODE.search(answer.read(4096))
        if not _OK <= answer.status < _REDIRECT:
            what = f"status {answer.status}" + (f" ({code[1].decode()})" if code else "")
            raise _Passing(what) if answer.status in _AGAIN else TransferFailed(what)
        return answer

    def check_time(self) -> None:
        """Raise TimeoutError when the time is over: a server may send one byte a second without end."""
        if time.monotonic() > self._until:
            raise TimeoutError

    def _pieces(self, body: IO[bytes] | None) -> Iterator[bytes] | None:
        if body is None:
            return None

        def pieces() -> Iterator[bytes]:
            while piece := body.read(PIECE):
                self.check_time()
                yield piece

        return pieces()


@contextlib.contextmanager
def _network() -> Generator[None]:
    """Turn what went wrong into words that hold no address."""
    try:
        yield
    except OSError as error:  # first: a certificate that does not verify is a ValueError as well
        raise _Passing(error.strerror or type(error).__name__) from None
    except (http.client.InvalidURL, ValueError):
        raise TransferFailed("the address or a header is malformed") from None
    except http.client.HTTPException as error:
        raise _Passing(type(error).__name__) from None
