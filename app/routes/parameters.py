"""Query parameters that several routes take: how lines look."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import Query

AnsiParameter = Annotated[
    Literal["keep", "strip"], Query(description="`strip`: without colours and other terminal sequences.")
]
CollapseParameter = Annotated[
    Literal["cr", "none"] | None,
    Query(
        description="`cr`: of a progress bar's updates only the last state (default for text); `none`: all."
    ),
]


def collapses(collapse: str | None, *, text: bool) -> bool:
    """Whether updates are collapsed: as asked for, else in text alone."""
    return text if collapse is None else collapse == "cr"
