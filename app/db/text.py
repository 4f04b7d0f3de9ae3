"""What has to be done to text before a database takes it.

PostgreSQL's text refuses NUL, and no UTF-8 encoder takes half of a surrogate pair. Programs print
both; a line of theirs must not stop the log, so each such character becomes U+FFFD.
JSON needs only the second: orjson writes NUL as an escape, which is plain text.
"""

from __future__ import annotations

import re
from typing import Any

import orjson

_SURROGATE = re.compile("[\ud800-\udfff]")
_NUL_GROWS = len("\ufffd".encode()) - len("\0")


def clean(value: str) -> str:
    """Return `value` with NUL and lone surrogates replaced by U+FFFD."""
    if value.isascii() and "\0" not in value:  # most text, and ten times as fast as to search it
        return value
    value = value.replace("\0", "\ufffd")
    try:
        value.encode()  # finds a surrogate forty times as fast as an expression that finds none
    except UnicodeEncodeError:
        return _SURROGATE.sub("\ufffd", value)
    return value


def stored_bytes(value: str) -> int:
    """Return how many bytes `clean(value)` has in UTF-8; a surrogate has as many as what replaces it."""
    size = len(value) if value.isascii() else len(value.encode(errors="surrogatepass"))
    return size + value.count("\0") * _NUL_GROWS if "\0" in value else size


def clean_or_none(value: str | None) -> str | None:
    """Return `clean(value)`, or None for None."""
    return None if value is None else clean(value)


def to_json(value: Any) -> str:
    """Encode for a JSON column; lone surrogates are replaced by U+FFFD."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # orjson's only complaint about what we hand it: a lone surrogate
        return orjson.dumps(_without_surrogates(value)).decode()


def to_json_or_none(value: Any) -> str | None:
    """Encode for a JSON column in which nothing is NULL."""
    return None if value is None else to_json(value)


def _without_surrogates(value: Any) -> Any:
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, dict):
        return {_without_surrogates(key): _without_surrogates(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_surrogates(item) for item in value]
    return value
