"""One call of the model: reserved and written down, made, and its reply committed with all that it asks for.

    budget ──> row `sent` ──> stream (words go to the log) ──> row `answered` + steps, in one transaction

Nothing is done with a reply before it is committed, so it is never paid for again. Between the last byte and
that commit lies one transaction; a worker that is killed there has paid for a reply that is lost.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.agent.agent_tools import proposed_step
from app.agent.budget import BudgetSpent, Ledger, RunBudget
from app.agent.conversation import View, encode_reply
from app.agent.folding import step_id
from app.agent.replay import RecordedRun, RequestHash
from app.agent.rows import AgentRows
from app.agent.words import Words
from app.core.agent_records import CallRecord, CallStatus
from app.core.events import EventType
from app.core.models import StepRecord, StepStatus
from app.llm.client import ModelClient
from app.llm.dialect import BYTES_A_TOKEN, input_estimate
from app.llm.failures import ContextOverflow, ModelFailure, PauseAsked
from app.llm.model import (
    Delta,
    ModelRequest,
    Reply,
    Retrying,
    TokenUsage,
    ToolSpec,
    ToolTurn,
    Turn,
    UserTurn,
)
from app.llm.prices import Prices, Reservation
from app.llm.recorded import RecordedModel
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level
from tailrun.process.stop import StopToken

_MICRO = 1_000_000
_FULL, _EMPTIED = 0.8, 0.5
"""Parts of the window: a conversation over the first is cut down to the second."""
_NARROWER, _MOST_OVERFLOWS = 0.7, 3
"""What part of a refused conversation is taken for the window, and how often in a row."""
_KEPT_REPLIES = 6
_LOW = 4
"""The model is told what is left when less than one part of so many is."""


class ModelPause(RunFailure):
    """The model's server wants a long pause: the run goes back and frees its worker; no try is counted."""

    def __init__(self, failure: PauseAsked) -> None:
        super().__init__(ErrorCode.MODEL_UNAVAILABLE, failure.message, away=True)
        self.pause_s = failure.pause_s


@dataclass(frozen=True, slots=True)
class Prefix:
    """What every request of a run begins with; kept with the first call, so that no upgrade changes it."""

    system: str
    tools: tuple[ToolSpec, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it as the row keeps it."""
        return {"system": self.system, "tools": [asdict(tool) for tool in self.tools]}

    @classmethod
    def of(cls, kept: dict[str, Any]) -> Prefix:
        """Read what a row has kept."""
        tools = [ToolSpec(t["name"], t["description"], t["parameters"]) for t in kept.get("tools", ())]
        return cls(kept.get("system", ""), tuple(tools))


@dataclass(slots=True)
class ModelTurn:
    """Makes the calls of one run's model, one after the other."""

    rows: AgentRows
    model: ModelClient | RecordedModel
    prices: Prices
    budget: RunBudget
    prefix: Prefix
    finish_only: bool
    """Whether the result has a form, so that words alone are none."""
    stop: StopToken
    news: asyncio.Event
    """Set when there may be a new message of the user."""
    clock: Callable[[], int]
    replay: RecordedRun | None
    hashes: RequestHash
    window: float | None = None
    """Tokens that the model takes, as its refusal of a longer conversation has shown."""
    overflows: int = 0
    """Refusals of that kind in a row."""

    async def call(self, prompt: str, note: str = "") -> None:
        """Make the next call; afterwards its row says what became of it. `note` is for this call alone.

        When the run is asked to stop, or the user writes something that does not wait, the call is ended and
        counted, and nothing is raised.

        Raises:
            RunFailure: the budget, or the model's failure.
        """
        view = self._view(prompt)
        turns = self._turns(prompt, view)
        request, reserved = self._request(turns, note)
        sent, told = self._sent(self.hashes.of(self.prefix.as_dict(), turns), reserved, view), self.rows.told
        if self.replay is not None:
            await self.replay.compare(sent.request_hash, self.prefix.as_dict(), turns)
        await self.rows.send(sent)
        await self._messages(told)
        await self._event(sent.n, "sent", Level.DEBUG)
        try:
            reply, call = await self._streamed(request, sent)
        except ModelFailure as failure:
            error = await self._failed(sent, failure)
            self.overflows += isinstance(failure, ContextOverflow)
            if not isinstance(failure, ContextOverflow) or self.overflows > _MOST_OVERFLOWS:
                raise error from failure
            self.window = input_estimate(request) * _NARROWER
            return
        self.overflows = 0
        if reply is None:
            await self.rows.settle(call)
            await self._event(sent.n, "cancelled", Level.WARNING)
        else:
            await self._answered(call, reply)

    # -- before ---------------------------------------------------------------------------

    def _request(self, turns: tuple[Turn, ...], note: str) -> tuple[ModelRequest, Reservation]:
        ledger = self.rows.ledger
        notes = " ".join(each for each in (note, self._left(ledger)) if each)
        request = ModelRequest(self.prefix.system, _with_note(turns, notes), self.prefix.tools)
        try:
            reserved = ledger.next_call(self.budget, self.prices, self.model.config, request)
        except BudgetSpent as spent:
            raise RunFailure(ErrorCode.BUDGET, f"The budget of this run ({spent.which}): {spent}") from spent
        return replace(request, max_output_tokens=reserved.tokens.output), reserved

    def _turns(self, prompt: str, view: View) -> tuple[Turn, ...]:
        return self.rows.turns(prompt, view, finish_only=self.finish_only)

    def _view(self, prompt: str) -> View:
        """Return what to leave out, so that the conversation fits into the model's window.

        Little by little would cost what the server has cached at each call; so once it is too long, it is cut
        down to the half. First old results are shortened, then old replies left out.
        """
        if self.replay is not None:
            return self.replay.view
        rows, config, view = self.rows, self.model.config, self.rows.view
        output = min(config.max_output_tokens, config.context_tokens / _LOW)
        window = config.context_tokens - output if self.window is None else self.window

        def size(view: View) -> int:
            return input_estimate(
                ModelRequest(self.prefix.system, self._turns(prompt, view), self.prefix.tools)
            )

        if size(view) <= window * _FULL:
            return view
        for n in rows.answered[:-1] if self.window is None else rows.answered:
            view = replace(view, stubs=max(view.stubs, n))
            if size(view) <= window * _EMPTIED:
                return view
        if rows.before:
            view = replace(view, forgotten=True)
            if size(view) <= window * _EMPTIED:
                return view
        for n in rows.answered[:-_KEPT_REPLIES]:
            view = replace(view, dropped=max(view.dropped, n))
            if size(view) <= window * _EMPTIED:
                return view
        return view

    def _left(self, ledger: Ledger) -> str:
        """Say what is left where it is little, so that the model comes to an end by itself."""
        limits = (
            ("calls of the model, this one included", self.budget.calls, ledger.calls),
            ("calls of tools", self.budget.tool_calls, ledger.tool_calls),
            ("tokens", self.budget.tokens, ledger.tokens),
        )
        left = [
            f"{most - spent} {what}" for what, most, spent in limits if most and (most - spent) * _LOW < most
        ]
        return f"(left for this task: {', '.join(left)})" if left else ""

    def _sent(self, request_hash: str, reserved: Reservation, view: View) -> CallRecord:
        rows, config = self.rows, self.model.config
        first = not rows.calls
        return CallRecord(
            run_id=rows.run.run_id,
            n=self.replay.number if self.replay else rows.calls[-1].n + 1 if rows.calls else 1,
            status=CallStatus.SENT,
            attempt=rows.run.attempt,
            model=config.name,
            dialect=config.dialect,
            request_hash=request_hash,
            reserved_tokens=reserved.tokens.total,
            reserved_u=reserved.cost,
            sent_at=self.clock(),
            inbox_upto=rows.read_upto,
            prefix=self.prefix.as_dict() if first else None,
            view=None if view == View() else asdict(view),
        )

    # -- while it comes -------------------------------------------------------------------

    async def _streamed(self, request: ModelRequest, sent: CallRecord) -> tuple[Reply | None, CallRecord]:
        """Return the reply, None if the run was asked to stop, and the row as far as it is known by then."""
        stream = _Stream(self, request, sent)
        task = asyncio.create_task(stream.read())
        interrupt = asyncio.create_task(self._interrupted())
        either = asyncio.create_task(asyncio.wait((task, interrupt), return_when=asyncio.FIRST_COMPLETED))
        try:
            await self.stop.race(either)
            if task.done():
                return task.result(), stream.call
        finally:  # a reply that is left closes its connection, and so ends the generation
            for each in (either, interrupt, task):
                each.cancel()
            await asyncio.gather(either, interrupt, task, return_exceptions=True)
        written = -(-stream.written // BYTES_A_TOKEN)
        used = stream.wasted + TokenUsage(input_estimate(request), written, estimated=True)
        return None, self._counted(stream.call, used, CallStatus.CANCELLED)

    async def _interrupted(self) -> None:
        """Return when the user has written something that does not wait."""
        while not self.rows.user_interrupts_after(self.rows.told):
            await self.news.wait()
            self.news.clear()
            await self.rows.read_messages()

    # -- after ----------------------------------------------------------------------------

    async def _answered(self, call: CallRecord, reply: Reply) -> None:
        counted = replace(
            self._counted(call, reply.usage + reply.wasted, CallStatus.ANSWERED),
            finish=reply.finish,
            response_id=reply.response_id,
            reply=encode_reply(reply),
        )
        steps = self._proposed(counted, reply)
        await self.rows.settle(counted, reply, steps)
        await self._event(counted.n, "answered", Level.DEBUG, finish=reply.finish)
        await self._usage(counted)
        for step in steps:
            if step.status is StepStatus.REFUSED:
                await self.rows.tell_step(step, f"✗ {step.step_id} {step.tool}: {step.for_model}")

    def _proposed(self, call: CallRecord, reply: Reply) -> list[StepRecord]:
        names = [tool.name for tool in self.prefix.tools]
        base, now = len(self.rows.steps), self.clock()
        return [
            proposed_step(
                each,
                names,
                StepRecord(
                    run_id=call.run_id,
                    step_id=step_id(call.n, k),
                    idx=base + k,
                    tool=each.name[:100],
                    args=each.arguments,
                    status=StepStatus.PROPOSED,
                    attempt=call.attempt,
                    started_at=now,
                    call=call.n,
                    call_id=each.id,
                ),
            )
            for k, each in enumerate(reply.calls)
        ]

    async def _failed(self, sent: CallRecord, failure: ModelFailure) -> RunFailure:
        error = {"code": failure.code, "message": failure.message}
        call = replace(self._counted(sent, failure.wasted, CallStatus.FAILED), error=error)
        await self.rows.settle(call)
        await self._event(call.n, "failed", Level.ERROR, error=error)
        if isinstance(failure, PauseAsked):
            return ModelPause(failure)
        return RunFailure(failure.code, failure.message)

    def _counted(self, call: CallRecord, used: TokenUsage, status: CallStatus) -> CallRecord:
        return replace(
            call,
            status=status,
            ended_at=self.clock(),
            input_tokens=used.input,
            cached_tokens=used.cached,
            cache_written_tokens=used.cache_written,
            output_tokens=used.output,
            reasoning_tokens=used.reasoning,
            estimated=used.estimated,
            cost_u=self.prices.cost(self.model.config, used),
        )

    # -- in the stream --------------------------------------------------------------------

    async def _event(self, n: int, status: str, level: Level, **more: Any) -> None:
        data = {"n": n, "status": status, "model": self.model.name, **more}
        await self.rows.log.event(EventType.MODEL, level=level, data=data)

    async def _usage(self, call: CallRecord) -> None:
        spent = self.rows.ledger
        priced = any(each.cost_u is not None for each in self.rows.calls)
        data = {
            "call": call.n,
            "input_tokens": call.input_tokens,
            "cached_tokens": call.cached_tokens,
            "output_tokens": call.output_tokens,
            "estimated": call.estimated,
            "cost_usd": None if call.cost_u is None else call.cost_u / _MICRO,
            "spent_usd": spent.cost / _MICRO if priced else None,
            "spent_tokens": spent.tokens,
        }
        await self.rows.log.event(EventType.USAGE, data=data)

    async def _messages(self, told: int) -> None:
        """Show what the user wrote where the model reads it."""
        for message in self.rows.messages:
            if message.k > told:
                data = {"k": message.k, "by": message.by, "mode": message.mode}
                text = message.content
                await self.rows.log.event(EventType.MESSAGE, level=Level.INFO, content=text, data=data)

    async def retrying(self, n: int, piece: Retrying) -> None:
        """Tell that a try failed; the words since the last such event are void."""
        error = {"code": piece.code, "message": piece.message}
        delay = round(piece.delay_s, 1)
        await self._event(n, "retry", Level.WARNING, retry_in_s=delay, error=error)


class _Stream:
    """One reply on its way."""

    def __init__(self, turn: ModelTurn, request: ModelRequest, sent: CallRecord) -> None:
        self._turn, self._request = turn, request
        self.call = replace(sent, tries=1)
        self.wasted = TokenUsage()
        self._before = 0
        self._words = Words(turn.rows.log, sent.n)

    @property
    def written(self) -> int:
        """Bytes that the try at work has written."""
        return self._words.size - self._before

    async def read(self) -> Reply:
        """Read it to its end."""
        turn = self._turn
        async with self._words as words, turn.model.stream(self._request) as pieces:
            async for piece in pieces:
                if isinstance(piece, Reply):
                    return piece
                if isinstance(piece, Delta):
                    if self.call.first_at is None:
                        self.call = replace(self.call, first_at=turn.clock())
                    await words.add(piece)
                else:
                    await words.end()
                    self.call = replace(self.call, tries=self.call.tries + 1)
                    self.wasted, self._before = piece.wasted, words.size
                    await turn.retrying(self.call.n, piece)
        raise AssertionError("a stream ends with a reply or raises")


def _with_note(turns: Sequence[Any], note: str) -> tuple[Any, ...]:
    """Put a note behind the last turn, where it changes nothing of what servers have cached."""
    last = turns[-1]
    if not note or not isinstance(last, UserTurn | ToolTurn):
        return tuple(turns)
    return (*turns[:-1], replace(last, text=f"{last.text}\n\n{note}"))
