"""Between the rows of a table and a dataclass: its fields are the columns, each kept as its type says.

str     cleaned on the way in
float   a time limit in seconds; on the way out whatever a timer takes
dict    JSON, and so is list; what is no JSON reads as empty
bytes   compressed; on the way out empty where it can't be read
StrEnum its value; any other word reads as a member that shows as it stands
int, bool, None are what they are
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import fields
from enum import StrEnum
from functools import partial
from types import NoneType
from typing import Any, Generic, TypeVar, get_args, get_origin, get_type_hints

import zstandard
from sqlalchemy import ColumnElement, Table

from app.db.lenient import from_json, seconds, unpacked, word
from app.db.text import clean, to_json

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
