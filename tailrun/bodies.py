"""Bodies of requests and answers, as both clients handle them: types, an upload's size, an answer's error.

The clients do the I/O, and nothing else of it differs between them; so neither imports the other.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast
from urllib.parse import urlsplit

from tailrun.errors import Unreachable, Unusable, error_of
from tailrun.events import Event

Json = dict[str, Any]
Items = list[Json]
Page = tuple[list[Event], int | None]
Content = bytes | Path | BinaryIO
PIECE_BYTES = 256 * 1024
_AROUND = "\ufeff \t\r\n"
"""What editors, shells and mounted secrets leave around a value."""


def base_url(url: str) -> str:
    """Return the server's address without spaces around it; `Unusable` if it is none."""
    found = url.strip(_AROUND).rstrip("/")
    try:
        parts = urlsplit(found)
        sound = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:  # brackets that don't close, a port that is none
        sound = False
    if not sound or not found.isprintable() or " " in found:
        raise no_address(found)
    return found


def no_address(url: str) -> Unusable:
    """Return the error of what is no address of a server."""
    return Unusable(f"{url!r} is no address of a server, such as http://127.0.0.1:8080")


def authorization(token: str) -> str:
    """Return the header that carries a token, without spaces around it; the message never shows it."""
    found = token.strip(_AROUND)
    if not found:
        raise Unusable("The token is empty")
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise Unusable("The token holds characters that no token has: copy it anew, without blanks or quotes")
    return f"Bearer {found}"


def is_executable(file: Path) -> bool | None:
    """Whether a local file may be run by its owner; None where the system keeps no such bit."""
    return None if os.name == "nt" else bool(file.stat().st_mode & stat.S_IXUSR)


def too_short(missing: int) -> Unusable:
    """Return the error of a file that lost bytes between its measuring and its sending."""
    return Unusable(f"The file became {missing} bytes shorter while it was sent: send it again")


def bytes_left(file: BinaryIO) -> int | None:
    """Return how many bytes follow the file's position; None where it cannot tell.

    A pipe cannot seek, and the files of /proc call themselves empty: 0 says nothing either.
    """
    try:
        position = file.tell()
        end = file.seek(0, os.SEEK_END)
        file.seek(position)
    except (AttributeError, OSError):  # what is only like a file may lack either method
        return None
    return end - position if end > position else None


def unreachable(url: str, error: Exception) -> Unreachable:
    """Say which server did not answer, and why."""
    return Unreachable(f"{url} does not answer ({error or type(error).__name__})")


def check(status: int, body: bytes, headers: Mapping[str, str]) -> None:
    """Raise the error of an answer that is one."""
    if status >= 400:  # noqa: PLR2004
        raise error_of(status, body, headers)


def read_json(url: str, body: bytes) -> Json:
    """Read an answer; an empty one is an empty object, one that is not JSON comes from another server."""
    if not body:
        return {}
    try:
        return cast("Json", json.loads(body))
    except ValueError as error:
        raise Unreachable(f"{url} answers, but not as Tailrun does: check the URL") from error
