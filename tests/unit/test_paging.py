"""Pages and cursors: one form for all lists, which clients keep."""

from __future__ import annotations

import re

import pytest

from app.core.errors import InvalidRequest
from app.core.paging import CURSOR_PATTERN, PageCursor, page

RUN_ID = "0b5c8a52-5c0e-4a55-9d0c-7f4f3f6e2a11"


def test_a_cursor_that_a_client_holds_stays_readable() -> None:
    """The form of 0.1.0: `<created_at>.<id>`."""
    held = f"1790000000000000.{RUN_ID}"
    assert PageCursor.parse(held) == (1_790_000_000_000_000, RUN_ID)
    assert str(PageCursor(1_790_000_000_000_000, RUN_ID)) == held
    assert re.fullmatch(CURSOR_PATTERN, held)
    assert PageCursor.parse("-5.a") == (-5, "a")
    assert PageCursor.parse(None) is None


@pytest.mark.parametrize("text", ["", "1", "1.", ".a", "x.a", f"{2**63}.a", f"{-(2**63) - 1}.a", "١.a"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    """A number that no column holds is none either."""
    with pytest.raises(InvalidRequest, match="cursor"):
        PageCursor.parse(text)


@pytest.mark.parametrize(
    ("found", "items", "following"),
    [([], [], None), ([3, 2], [3, 2], None), ([3, 2, 1], [3, 2], "2.id")],
)
def test_a_page_names_the_next_one_only_if_there_is_one(
    found: list[int], items: list[int], following: str | None
) -> None:
    """Whoever asks the database asks for one more than the page holds."""
    assert page(found, 2, lambda one: PageCursor(one, "id")) == (items, following)
