"""Bodies of requests and answers, as both clients handle them: types, an upload's size, an answer's error.

The clients do the I/O, and nothing else of it differs between them; so neither imports the other.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

from tailrun.errors import Unreachable, error_of
from tailrun.events import Event

Json = dict[str, Any]
Items = list[Json]
Page = tuple[list[Event], int | None]
Content = bytes | Path | BinaryIO
PIECE_BYTES = 256 * 1024


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
