"""Reading what a row holds, whatever it is: one row that is not as we write them must not hide the others.

Rows come from older and newer releases, and from people with a database client. A list, the queue,
the metrics, the reconciler and the janitor read many at once; so a word that is no state of ours is
shown as it stands, a text that is no JSON counts as empty, and the log says of which column.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Any, TypeVar

import orjson
import zstandard

from app.core.telemetry import get_logger

Word = TypeVar("Word", bound=StrEnum)
Kind = TypeVar("Kind", dict[str, Any], list[Any])

LONGEST_S = 315_360_000.0
"""Ten years: what a time limit counts as that is longer, or no number."""

_log = get_logger(__name__)


def word(kind: type[Word], value: str) -> Word:
    """Return a member; for any other word one that is none of them, and shows as it stands."""
    try:
        return kind(value)
    except ValueError:
        unknown = str.__new__(kind, value)
        unknown._name_, unknown._value_ = "UNKNOWN", str(value)
        return unknown


def word_or(fallback: Word, value: str | None) -> Word | None:
    """Return a member, None for None, and `fallback` for what is none of them."""
    if value is None:
        return None
    try:
        return type(fallback)(value)
    except ValueError:
        return fallback


def from_json(raw: Any, empty: Kind, column: str) -> Kind:
    """Return what a JSON column holds; `empty` where it is no JSON, or of another kind."""
    try:
        found = orjson.loads(raw)
    except (orjson.JSONDecodeError, TypeError):
        found = None
    if isinstance(found, type(empty)):
        return found
    _log.warning("a row's column cannot be read, it counts as empty", column=column)
    return empty


def from_json_or_none(raw: Any, empty: Kind, column: str) -> Kind | None:
    """Return the same of a column that may be NULL."""
    return None if raw is None else from_json(raw, empty, column)


def unpacked(raw: bytes, column: str) -> bytes:
    """Return what a compressed column holds; nothing where it can't be read."""
    try:
        return zstandard.decompress(raw)
    except (zstandard.ZstdError, TypeError):
        _log.warning("a row's column cannot be read, it counts as empty", column=column)
        return b""


def seconds(value: Any) -> float:
    """Return a time limit that timers take."""
    number = value if isinstance(value, (int, float)) else math.nan
    return min(float(number), LONGEST_S) if math.isfinite(number) and number > 0 else LONGEST_S
