"""The shapes of files in answers: what OpenAPI shows; `app.routes.files` makes them."""

from __future__ import annotations

from pydantic import BaseModel, Field


class FileView(BaseModel):
    """One file of a run. Size in bytes, time in RFC 3339 with microseconds, in UTC."""

    path: str = Field(examples=["report/chart.svg"])
    size: int
    modified_at: str = Field(examples=["2026-11-20T12:00:00.123456Z"])
    content_type: str = Field(description="Guessed from the name.", examples=["image/svg+xml"])


class FileList(BaseModel):
    """All files of a run, sorted by path."""

    items: list[FileView]
    next: None = None
