"""What several routes take beside a body: how lines look, numbers in headers."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query, Request

MAX_SEQ = 2**53
_DIGITS = 18
"""More than any number here has. Python refuses to read thousands of them with the error of a bug."""

AnsiParameter = Annotated[
    Literal["keep", "strip"], Query(description="`strip`: without colours and other terminal sequences.")
]
CollapseParameter = Annotated[
    Literal["cr", "none"] | None,
    Query(
        description="`cr`: of a progress bar's updates only the last state (default for text); `none`: all."
    ),
]


def whole_number(text: str, most: int) -> int | None:
    """Return a number of the user's from 0 to `most`; None for whatever is none."""
    if not (text.isascii() and text.isdigit() and len(text) <= _DIGITS):
        return None
    number = int(text)
    return number if number <= most else None


def announces_more(request: Request, limit: int) -> bool:
    """Whether the request says itself that its body has more than `limit` bytes."""
    announced = request.headers.get("content-length", "")
    return announced.isdecimal() and whole_number(announced, limit) is None


def collapses(collapse: str | None, *, text: bool) -> bool:
    """Whether updates are collapsed: as asked for, else in text alone."""
    return text if collapse is None else collapse == "cr"
