"""Following a run over a WebSocket: events as JSON, or bare lines and a last word.

The handshake is always accepted and the connection then closed with a code of its own, for
browsers hide the status of a refused one: 4401 token, 4403 not allowed, 4404 run, 4422 bad
parameter, 1013 a limit, 1012 the process stops (connect again with `?after=`), 1008 the token was
revoked or has expired since.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any

import orjson
from fastapi import APIRouter, WebSocket

from app.core.errors import (
    Forbidden,
    NotFound,
    StorageError,
    TailrunError,
    TooManyRequests,
    Unauthorized,
    Unavailable,
    Unprocessable,
)
from app.core.models import Run
from app.core.telemetry import get_logger
from app.routes.auth import find_run, services, stream_user
from app.routes.body import MAX_SEQ, whole_number
from app.routes.server import abort, taken
from app.routes.stream_response import SEND_TIMEOUT_S, Watchdog
from app.runs.cancel import request_cancel
from app.runs.services import Principal, Services
from app.stream.formats import Encoding, bare_messages, messages, stripped
from app.stream.reader import Reader

router = APIRouter()

_log = get_logger(__name__)

DONE, POLICY, RESTART, TRY_LATER = 1000, 1008, 1012, 1013
BAD_TOKEN, NOT_ALLOWED, NO_RUN, BAD_PARAMETER, FAILED = 4401, 4403, 4404, 4422, 1011
_CODES: dict[type[Exception], int] = {
    Unauthorized: BAD_TOKEN,
    Forbidden: NOT_ALLOWED,
    NotFound: NO_RUN,
    Unprocessable: BAD_PARAMETER,
    TooManyRequests: TRY_LATER,
    Unavailable: TRY_LATER,
    StorageError: TRY_LATER,
}
_SUBPROTOCOL = "bearer"


@router.websocket("/v1/runs/{run_id}/stream")
async def stream(socket: WebSocket, run_id: str) -> None:
    """Send events as JSON; take `STOP` or `{"signal": "STOP"}`, and `{"resume": <seq>}`."""
    await _serve(socket, run_id, "json")


@router.websocket("/tasks/{run_id}/watch")
async def watch(socket: WebSocket, run_id: str) -> None:
    """Send bare lines, then `DONE`, `STOPPED`, `FAILED: …` or `TIMEOUT`, then close 1000."""
    await _serve(socket, run_id, "text")


async def _serve(socket: WebSocket, run_id: str, default: str) -> None:
    offered = socket.scope.get("subprotocols", [])
    await socket.accept(subprotocol=_SUBPROTOCOL if _SUBPROTOCOL in offered else None)
    shared = services(socket)
    with ExitStack() as held:
        try:
            principal = await stream_user(socket, _token(socket, offered), shared)
            run = await find_run(shared, principal, run_id)
            after, encode = _after(socket), _encoding(socket, default)
            place = held.enter_context(shared.streams.place(principal.user_id, principal.rests_on))
        except TailrunError as error:
            await socket.close(_CODES.get(type(error), FAILED), _reason(error))
            return
        session = _Session(socket, shared, principal, run, encode)
        place.end = session.revoke
        await session.run(after)


class _Session:
    """One open WebSocket: a task that listens, and the sending itself.

    A client that asks to resume gets another reader, which begins where it said.
    """

    _reader: Reader

    def __init__(
        self, socket: WebSocket, shared: Services, principal: Principal, run: Run, encode: Encoding
    ) -> None:
        self._socket = socket
        self._services = shared
        self._principal = principal
        self._run = run
        self._encode = encode
        self._resume: int | None = None
        self._gone = False
        self._revoked = False
        self._close = (RESTART, "The server stops; connect again with ?after=.")

    async def run(self, after: int) -> None:
        """Serve what follows `after`, until the run's end, the client's leave or the process's."""
        watchdog = Watchdog(
            None,
            SEND_TIMEOUT_S,
            on_idle=lambda: None,
            on_stalled=self._cut,
            taken=lambda: taken(self._socket.scope),
        )
        self._resume = after
        listening: asyncio.Future[None] | None = None
        try:
            while self._resume is not None and not (self._gone or self._revoked):
                after, self._resume = self._resume, None
                with self._open(await self._services.hub.within(self._run, after)) as self._reader:
                    listening = listening or asyncio.ensure_future(self._listen())
                    await self._send_all(watchdog)
        except StorageError as error:
            self._close = (TRY_LATER, _reason(error))
        finally:
            watchdog.stop()
            if listening is not None:
                listening.cancel()
        if not self._gone:
            await self._socket.close(*((DONE, None) if self._reader.finished else self._close))

    def revoke(self) -> None:
        """End the session: the token that opened it is no longer valid."""
        self._revoked = True
        self._end(POLICY, "The token is revoked or has expired.")

    def _open(self, after: int) -> AbstractContextManager[Reader]:
        hub, run = self._services.hub, self._run
        if run.status.terminal:
            return hub.replay(run.run_id, after, run.last_seq, self._encode)
        return hub.follow(run.run_id, after, self._encode)

    async def _send_all(self, watchdog: Watchdog) -> None:
        while (payload := await self._reader.next()) is not None:
            for text in payload:
                if self._gone or self._resume is not None:
                    return
                watchdog.sending()
                await self._send(text)
                watchdog.sent()

    async def _send(self, text: str) -> None:
        try:
            await self._socket.send({"type": "websocket.send", "text": text})
        except (OSError, RuntimeError):  # left while we were sending
            self._leave()

    async def _listen(self) -> None:
        """Take signals until the client leaves."""
        while True:
            message = await self._socket.receive()
            if message["type"] == "websocket.disconnect":
                self._leave()
                return
            match _body(message.get("text") or message.get("bytes")):
                case {"signal": "STOP"}:
                    await self._stop()
                case {"resume": seq}:
                    self._resume_after(seq)
                case _:
                    pass

    async def _stop(self) -> None:
        if self._principal.scope == "stream":
            self._end(NOT_ALLOWED, "A stream token only reads.")
            return
        try:
            if await self._services.streams.holds(self._principal.rests_on):
                await request_cancel(self._services, self._run.run_id)
            else:
                self.revoke()
        except TailrunError as error:
            _log.warning("STOP failed", run_id=self._run.run_id, error=str(error))
            self._end(TRY_LATER, "STOP could not be taken; try again.")

    def _resume_after(self, seq: Any) -> None:
        if type(seq) is int and 0 <= seq <= MAX_SEQ:
            self._resume = seq
            self._reader.close()
        else:
            self._end(BAD_PARAMETER, "resume must be the `seq` of an event.")

    def _end(self, code: int, reason: str) -> None:
        if not self._revoked or code == POLICY:
            self._close = (code, reason)
        self._reader.close()

    def _leave(self) -> None:
        self._gone = True
        self._reader.close()

    def _cut(self) -> None:
        _log.info("stream cut: its reader does not read", run_id=self._run.run_id)
        self._leave()
        abort(self._socket.scope)


def _token(socket: WebSocket, offered: Sequence[str]) -> str | None:
    """Return the token of the `Authorization` header or of the subprotocols `bearer, <token>`."""
    scheme, _, token = socket.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token.strip():
        return token.strip()
    return offered[1] if len(offered) > 1 and offered[0] == _SUBPROTOCOL else None


def _after(socket: WebSocket) -> int:
    text = socket.query_params.get("after") or "0"
    after = whole_number(text, MAX_SEQ)
    if after is None:
        raise Unprocessable(f"after must be the `seq` of an event, not {text[:64]!r}.")
    return after


def _encoding(socket: WebSocket, default: str) -> Encoding:
    form, ansi = socket.query_params.get("format", default), socket.query_params.get("ansi", "keep")
    encode = {"json": messages, "text": bare_messages}.get(form)
    if encode is None:
        raise Unprocessable(f"format must be json or text, not {form[:64]!r}.")
    if ansi not in {"keep", "strip"}:
        raise Unprocessable(f"ansi must be keep or strip, not {ansi[:64]!r}.")
    return stripped(encode) if ansi == "strip" else encode


def _body(message: Any) -> Any:
    """Return what a client says: JSON, or the bare word STOP."""
    text = message.decode("utf-8", "replace") if isinstance(message, bytes) else str(message)
    if text.strip() == "STOP":
        return {"signal": "STOP"}
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        return None


def _reason(error: Exception) -> str:
    """Return a close reason; a WebSocket has room for 123 bytes. Where a server is stays in the log."""
    if isinstance(error, StorageError):
        _log.warning("storage away", error=str(error))
        return "The database or Redis does not answer just now; try again."
    return str(error).encode()[:120].decode("utf-8", "ignore")
