"""A model whose replies are recorded: it needs no key and no network, and costs nothing.

Its words come in pieces, as a server's do, so that a replay is watched as the run was.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager

from app.llm.model import Delta, ModelRequest, Piece, Reply
from app.llm.models_file import ModelConfig

_PIECE_CHARS = 24
_PIECE_S, _MOST_S = 0.02, 1.0
"""Between two pieces, and for a whole reply at most."""
_NO_LIMIT = 1_000_000_000


class RecordedModel:
    """Gives the reply that `following` returns; implements `Model`."""

    def __init__(self, name: str, following: Callable[[], Reply]) -> None:
        self._following = following
        fields = {
            "name": name[:100] or "recorded",
            "model": "recorded",
            "url": "http://recorded.invalid/v1",
            "context_tokens": _NO_LIMIT,
            "max_output_tokens": 1,
        }
        self.config = ModelConfig.model_validate(fields)

    @property
    def name(self) -> str:
        """Its name, as it was recorded."""
        return self.config.name

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncGenerator[AsyncIterator[Piece]]:
        """Give the recorded reply, whatever the request is: whoever asks compares it."""
        del request
        yield self._pieces(self._following())

    async def _pieces(self, reply: Reply) -> AsyncIterator[Piece]:
        text = reply.text
        pieces = [text[at : at + _PIECE_CHARS] for at in range(0, len(text), _PIECE_CHARS)]
        for piece in pieces:
            yield Delta("text", piece)
            await asyncio.sleep(min(_PIECE_S, _MOST_S / len(pieces)))
        yield reply
