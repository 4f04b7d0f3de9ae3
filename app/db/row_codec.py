"""Between the rows of a table and a dataclass: its fields are the columns, each kept as its type says.

str     cleaned on the way in
float   a time limit in seconds; on the way out whatever a timer takes
dict    JSON, and so is list; text that is no JSON reads as empty
bytes   compressed; on the way out empty where it can't be read
StrEnum its value; any other word reads as a member that shows that word
int, bool, None are unchanged

Text on its way in: PostgreSQL refuses NUL, and no UTF-8 encoder takes half of a surrogate pair. Programs
print both; a line of theirs must not stop the log, so each such character becomes U+FFFD. JSON needs only
the second: orjson writes NUL as an escape, which is plain text.

Values on their way out may be anything: rows come from older and newer releases, and from people with a
database client. A list, the queue, the metrics, the reconciler and the janitor read many rows at once, and
one that is not as we write it must not hide the others; the log names its column.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from enum import StrEnum
from functools import partial
from types import NoneType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import orjson
import zstandard
from sqlalchemy import ColumnElement, Table

from app.core.telemetry import get_logger

Word = TypeVar("Word", bound=StrEnum)
Kind = TypeVar("Kind", dict[str, Any], list[Any])

LONGEST_S = 315_360_000.0
"""Ten years: what a time limit counts as that is longer, or no number."""

_log = get_logger(__name__)


def word(kind: type[Word], value: str) -> Word:
    """Return a member; for any other word one that is none of them, and shows that word."""
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


T = TypeVar("T")
Convert = Callable[[Any], Any]


class RowCodec(Generic[T]):
    """Reads and writes rows of `table` as `noun`, each of whose fields is a column of the same name."""

    def __init__(self, noun: type[T], table: Table) -> None:
        self._noun = noun
        hints = get_type_hints(noun)
        self.names: tuple[str, ...] = tuple(field.name for field in fields(noun))  # pyright: ignore[reportArgumentType] - a dataclass
        """The columns in the order of the fields; every SELECT and RETURNING of whole rows uses it."""
        self.columns: list[ColumnElement[Any]] = [table.c[name] for name in self.names]
        ways = {name: _ways(hints[name], f"{table.name}.{name}") for name in self.names}
        self._read = [(name, read) for name, (read, _) in ways.items() if read is not None]
        self._write = [(name, write) for name, (_, write) in ways.items()]

    def read(self, row: Sequence[Any]) -> T:
        """Make a noun of a row of `columns`, whatever it holds."""
        values = dict(zip(self.names, row, strict=True))
        for name, read in self._read:
            values[name] = read(values[name])
        return self._noun(**values)

    def write(self, one: T) -> dict[str, Any]:
        """Return the columns' values by name, in order, ready to be bound."""
        return {
            name: getattr(one, name) if write is None else write(getattr(one, name))
            for name, write in self._write
        }


def _ways(hint: Any, column: str) -> tuple[Convert | None, Convert | None]:
    """Return how a value is read and written; None: as it is."""
    optional = NoneType in get_args(hint)
    kind = next(kind for kind in get_args(hint) if kind is not NoneType) if optional else hint
    read, write = _ways_of(get_origin(kind) or kind, column)
    if not optional:
        return read, write
    return read and partial(_unless_none, read), write and partial(_unless_none, write)


def _ways_of(kind: type, column: str) -> tuple[Convert | None, Convert | None]:
    if issubclass(kind, StrEnum):
        return partial(word, kind), lambda member: member.value
    if issubclass(kind, (dict, list)):
        empty: Any = kind()
        return partial(from_json, empty=empty, column=column), to_json
    ways: dict[type, tuple[Convert | None, Convert | None]] = {
        str: (None, clean),
        float: (seconds, float),
        bool: (bool, None),
        bytes: (partial(unpacked, column=column), zstandard.compress),
        int: (None, None),
    }
    return ways[kind]


def _unless_none(convert: Convert, value: Any) -> Any:
    return None if value is None else convert(value)
