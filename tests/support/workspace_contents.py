"""What tests ask of a workspace again and again."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import AsyncIterator, Generator
from contextlib import contextmanager
from pathlib import Path

from app.storage.s3_workspace import S3Workspaces
from app.storage.workspace import Workspace, WorkspaceLimits

LIMITS = WorkspaceLimits(file_bytes=1_000_000, total_bytes=2_500_000, files=12)


def store_at(url: str, bucket: str, tmp_path: Path, limits: WorkspaceLimits = LIMITS) -> S3Workspaces:
    return S3Workspaces(
        bucket,
        endpoint=url,
        region="us-east-1",
        access_key="k",
        secret_key="very-secret",
        limits=limits,
        tmp_dir=tmp_path / "tmp",
    )


async def content(workspace: Workspace, path: str, start: int = 0, end: int | None = None) -> bytes:
    return b"".join([piece async for piece in workspace.read(path, start, end)])


async def paths(workspace: Workspace, prefix: str = "") -> list[str]:
    return [file.path for file in await workspace.list(prefix)]


async def stream(*pieces: bytes) -> AsyncIterator[bytes]:
    for piece in pieces:
        yield piece


@contextmanager
def let_go(fifo: Path, within_s: float = 30) -> Generator[None]:
    """Fail if the block takes too long; a thread that hangs at `fifo` is let go then."""
    writer = threading.Timer(within_s, lambda: os.close(os.open(fifo, os.O_RDWR | os.O_NONBLOCK)))
    began = time.monotonic()
    writer.start()
    try:
        yield
    finally:
        writer.cancel()
    assert time.monotonic() - began < within_s
