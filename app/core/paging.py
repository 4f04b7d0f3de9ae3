"""Pages of what was made, newest first: where a page ends, and how a client asks for the next one.

A cursor is `<created_at>.<id>` of a page's last item. Clients keep cursors, so this form stays readable.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeVar

from app.core.errors import InvalidRequest

T = TypeVar("T")

CURSOR_PATTERN = r"^-?[0-9]{1,19}\.[0-9a-f-]{1,64}$"
"""The form of a page's `next`, for the parameters of routes."""

_CURSOR = re.compile(r"(-?[0-9]{1,19})\.(.+)", re.ASCII)
_INT64 = 2**63


class PageCursor(NamedTuple):
    """The last item of a page: the next page holds what is older. The time is in microseconds."""

    created_at: int
    item_id: str

    @classmethod
    def parse(cls, text: str | None) -> PageCursor | None:
        """Read a cursor; None for the first page. `InvalidRequest` for what is no cursor."""
        if text is None:
            return None
        found = _CURSOR.fullmatch(text)
        if found is None or not -_INT64 <= int(found[1]) < _INT64:
            raise InvalidRequest(f"cursor {text[:64]!r} is not one of ours: use `next` of the page before")
        return cls(int(found[1]), found[2])

    def __str__(self) -> str:
        return f"{self.created_at}.{self.item_id}"


def page(found: Sequence[T], limit: int, cursor_of: Callable[[T], PageCursor]) -> tuple[list[T], str | None]:
    """Return the first `limit` of what a query for one more has found, and the next page's cursor.

    The cursor is None where nothing follows.
    """
    if len(found) <= limit:
        return list(found), None
    return list(found[:limit]), str(cursor_of(found[limit - 1]))
