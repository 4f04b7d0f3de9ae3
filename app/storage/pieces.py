"""The size in which file content moves: large enough that threads pay, small enough for many readers."""

from __future__ import annotations

from collections.abc import AsyncIterator

PIECE = 256 * 1024
"""Bytes read, written or sent at a time."""


async def merged(content: AsyncIterator[bytes] | bytes) -> AsyncIterator[bytes]:
    """Yield the same bytes in pieces of about `PIECE`; a network gives far smaller ones."""
    if isinstance(content, bytes):
        yield content
        return
    waiting, size = list[bytes](), 0
    async for piece in content:
        waiting.append(piece)
        size += len(piece)
        if size >= PIECE:
            yield b"".join(waiting)
            waiting, size = [], 0
    if waiting:
        yield b"".join(waiting)
