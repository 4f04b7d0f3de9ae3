"""A model as it is used: gate, tries and time limits around one dialect and one connection pool.

    gate ──> POST ──> frames ──> assembly ──> deltas …  reply
      ^                  │
      └── retry <── ModelUnavailable (full jitter, or as the server asks)

Each try has three clocks: until the first token, from then on between two bytes, and for all of it.
A comment that keeps the connection alive starts the second anew, not the first. A reply is whole only if
the server said why it ended; all else is cut, and tried again. What a server refuses by name
(`stream_options`, `max_tokens` …) is left out or renamed from then on, which is no retry.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TYPE_CHECKING

from app.llm.chat import Chat
from app.llm.dialect import BYTES_A_TOKEN, Assembly, Dialect, Learned, input_estimate, usage_or_estimate
from app.llm.failures import ModelFailure, ModelRejected, ModelUnavailable, PauseAsked
from app.llm.gate import Gate
from app.llm.messages import Messages
from app.llm.model import Delta, ModelRequest, Piece, Reply, Retrying, TokenUsage
from app.llm.models_file import ModelConfig
from app.llm.wire import Wire
from tailrun.sse import Frame, SSEParser

if TYPE_CHECKING:
    import httpx2

DIALECTS: dict[str, Dialect] = {"chat": Chat(), "messages": Messages()}
_BASE_S, _LONGEST_S = 1.0, 30.0
_AFTER_FINISH_S = 2.0
"""How long counts may follow the reason to end."""
_DRAIN_S = 0.2
"""How long the last bytes may follow the end mark; a connection that is read to its end is used again."""
_MOST_BYTES = 100_000_000
"""Of one answer; with every token an event of a kilobyte, 100 000 tokens."""
_REFUSALS = (400, 422)


class ModelClient:
    """One model of this deployment; belongs to one event loop. `chance` returns numbers from 0 to 1."""

    def __init__(self, config: ModelConfig, *, chance: Callable[[], float] = random.random) -> None:
        self.config = config
        self.learned = Learned()
        self._dialect = DIALECTS[config.dialect]
        self._wire = Wire(config)
        self._gate = Gate(config.concurrency, chance)
        self._chance = chance

    @property
    def name(self) -> str:
        """Its name in this deployment."""
        return self.config.name

    @asynccontextmanager
    async def stream(self, request: ModelRequest) -> AsyncGenerator[AsyncIterator[Piece]]:
        """Call the model; see `Model.stream`."""
        async with aclosing(self._tries(request)) as pieces:
            yield pieces

    async def aclose(self) -> None:
        """Close its connections."""
        await self._wire.aclose()

    async def _tries(self, request: ModelRequest) -> AsyncGenerator[Piece]:
        """Try until there is a reply, or no use in trying."""
        wasted, failed = TokenUsage(), 0
        while True:
            assembly, known = self._dialect.assembly(self.name), self.learned.version
            try:
                async with self._gate.slot(), aclosing(self._once(request, assembly)) as deltas:
                    async for delta in deltas:
                        yield delta
                yield self._whole(assembly.reply(), request, assembly.written(), wasted)
            except ModelRejected as failure:
                if self._refused_by_name(failure, known):
                    continue
                failure.wasted = wasted + _estimate(request, assembly.written())
                raise
            except ModelUnavailable as failure:
                failed += 1
                wasted += _estimate(request, assembly.written())
                if failed > self.config.retries:
                    raise _given_up(failure, failed, wasted) from failure
                delay = self._delay(failure, failed)
                yield Retrying(failure.code, failure.message, delay, wasted)
                await asyncio.sleep(delay)
            except ModelFailure as failure:
                if isinstance(failure, PauseAsked):
                    self._gate.pause(failure.pause_s)
                failure.wasted = wasted + _estimate(request, assembly.written())
                raise
            else:
                return

    async def _once(self, request: ModelRequest, assembly: Assembly) -> AsyncGenerator[Delta]:
        """Make one try."""
        body = self._dialect.body(self.config, request, self.learned)
        await self._wire.prepare()
        clocks = _Clocks(self.config)
        async with (
            self._wire.post(self._dialect.path, body, clocks.deadline(assembly)) as answer,
            aclosing(_frames(answer, clocks, assembly)) as frames,
        ):
            try:
                async for frame in frames:
                    for delta in assembly.feed(frame):
                        yield delta
            except ModelFailure as failure:
                failure.message = self._wire.hidden(failure.message)
                failure.args = (failure.message,)
                raise
        if not assembly.whole:
            raise ModelUnavailable("The model's server ended the reply before it was whole.")

    def _refused_by_name(self, failure: ModelRejected, known: int) -> bool:
        """Whether the request is worth sending again, without what was refused."""
        if failure.status not in _REFUSALS:
            return False
        may_switch = self.config.dialect == "chat" and self.config.max_tokens_field == "auto"
        return self.learned.version > known or self.learned.learn(failure.text.lower(), may_switch=may_switch)

    def _delay(self, failure: ModelUnavailable, failed: int) -> float:
        """Return how long to wait before the next try; an overloaded server's pause holds for all."""
        asked = failure.retry_after_s
        if asked is None:
            delay = self._chance() * min(_LONGEST_S, _BASE_S * 2**failed)
        else:
            delay = asked + self._chance() * min(1.0, asked / 10)
        if failure.gate:
            self._gate.pause(delay)
        return delay

    def _whole(self, reply: Reply, request: ModelRequest, written: int, wasted: TokenUsage) -> Reply:
        return replace(reply, usage=usage_or_estimate(reply.usage, request, written), wasted=wasted)


class _Clocks:
    """The time limits of one try, as times of the event loop."""

    def __init__(self, config: ModelConfig) -> None:
        self._now = asyncio.get_running_loop().time
        self._config = config
        self._began = self._heard = self._now()

    def heard(self) -> None:
        """Note that bytes came."""
        self._heard = self._now()

    def deadline(self, assembly: Assembly) -> float:
        """Return until when the next bytes have to be there."""
        if assembly.ended:
            until = self._heard + _DRAIN_S
        elif assembly.whole:
            until = self._heard + _AFTER_FINISH_S
        elif assembly.written():
            until = self._heard + self._config.idle_s
        else:
            until = self._began + self._config.first_token_s
        return min(until, self._began + self._config.timeout_s)

    def late(self, assembly: Assembly) -> ModelUnavailable:
        """Say which limit is over."""
        now, config = self._now(), self._config
        if now >= self._began + config.timeout_s:
            said = f"The reply took more than {config.timeout_s:g} s (LLM_TIMEOUT_S)."
        elif not assembly.written() and now >= self._began + config.first_token_s:
            said = f"No token came within {config.first_token_s:g} s (LLM_FIRST_TOKEN_S)."
        else:
            said = f"The model's server was silent for {config.idle_s:g} s (LLM_IDLE_S)."
        return ModelUnavailable(said)


async def _frames(answer: httpx2.Response, clocks: _Clocks, assembly: Assembly) -> AsyncGenerator[Frame]:
    """Read an answer's frames until its end mark; an answer that is no stream is one frame."""
    import httpx2  # noqa: PLC0415 - loaded by the wire already

    parser, size, plain = SSEParser(), 0, bytearray()
    whole_body = answer.headers.get("content-type", "").startswith("application/json")
    pieces = answer.aiter_bytes()
    while True:
        try:
            async with asyncio.timeout_at(clocks.deadline(assembly)):
                piece = await anext(pieces, None)
        except (TimeoutError, httpx2.TransportError) as error:
            if assembly.whole:
                return  # it said why it ended; what might still follow are counts
            if isinstance(error, TimeoutError):
                raise clocks.late(assembly) from error
            raise ModelUnavailable(f"The connection broke within the reply: {error}.") from error
        clocks.heard()
        size += len(piece or b"")
        if size > _MOST_BYTES:
            raise ModelRejected(f"The model's server sent more than {_MOST_BYTES} bytes in one reply.")
        if whole_body:
            plain += piece or b""
        for frame in () if whole_body or assembly.ended else parser.feed(piece or b"\n\n"):
            yield frame
        if piece is None:
            break
    if whole_body:
        yield Frame(plain.decode(errors="replace"))


def _estimate(request: ModelRequest, written: int) -> TokenUsage:
    """Return what a try took that broke off after `written` bytes; nothing, if none came."""
    if not written:
        return TokenUsage()
    return TokenUsage(input_estimate(request), -(-written // BYTES_A_TOKEN), estimated=True)


def _given_up(failure: ModelUnavailable, tries: int, wasted: TokenUsage) -> ModelUnavailable:
    last = ModelUnavailable(
        f"{failure.message} That was try {tries}, the last (LLM_RETRIES)." if tries > 1 else failure.message
    )
    last.wasted = wasted
    return last
