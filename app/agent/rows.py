"""The rows of one agent's run, as its owner knows them: read once, written before they are acted on.

    load ──> calls, replies, steps, messages ──> turns of the next request
    send, settle: committed first, known here then

What the next thing to do is, follows from them alone, so that an attempt after a crash does what this one
would have done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar

from app.agent.budget import Ledger
from app.agent.conversation import View, decode_reply
from app.agent.folding import answered, fold, step_id, view_of
from app.agent.tools.program import RunLog
from app.core.agent_records import (
    Approval,
    CallRecord,
    CallStatus,
    InboxMessage,
    MessageMode,
)
from app.core.events import EventType
from app.core.models import Fence, Run, StepRecord, StepStatus
from app.core.telemetry import MODEL_CALLS, MODEL_COST, MODEL_FIRST_SECONDS, MODEL_TOKENS
from app.db.approval_store import ApprovalStore
from app.db.call_store import CallStore
from app.db.inbox_store import InboxStore
from app.db.run_store import RunStore
from app.llm.model import Finish, Reply, ToolCall, Turn
from tailrun.process.lines import Level, Line

FINISH = "finish"
"""The tool by which a model ends its run."""
MISFIT = "result_schema"
"""The policy of a `finish` whose result has not the form that the run asks for."""
UNUSABLE = "unusable"
"""The policy of a call that can't be carried out as it is: no such tool, or wrong arguments."""

_MICRO = 1_000_000
_MOST_EARLIER = 10
"""Runs that continue each other, of which the conversation is kept."""
_NOT_COUNTED = frozenset({StepStatus.PROPOSED, StepStatus.WAITING, StepStatus.REFUSED})

T = TypeVar("T")


class AgentLog(RunLog, Protocol):
    """What an agent asks of the writer of its run's stream beside what its tools do."""

    async def lines(
        self, lines: Sequence[Line], step: str | None, *, call: int | None = None
    ) -> Sequence[Line]:
        """As `RunLog.lines`; `call`: they are words of that call of the model."""
        ...

    def hide(self, value: T) -> T:
        """Return a text or a record without secrets."""
        ...

    def hidden(self, record: StepRecord) -> StepRecord:
        """Return a step's record without secrets."""
        ...

    async def stored(self, write: Callable[[], Awaitable[T]]) -> T:
        """Repeat `write` until the store takes it."""
        ...


@dataclass(frozen=True, slots=True)
class AgentStores:
    """Where the rows of agents are."""

    runs: RunStore
    calls: CallStore
    inbox: InboxStore
    approvals: ApprovalStore


@dataclass(slots=True)
class AgentRows:
    """All rows of the run. Every call that writes may raise `LostOwnership`."""

    run: Run
    fence: Fence
    stores: AgentStores
    log: AgentLog
    calls: list[CallRecord] = field(default_factory=list[CallRecord])
    replies: dict[int, Reply] = field(default_factory=dict[int, Reply])
    steps: dict[str, StepRecord] = field(default_factory=dict[str, StepRecord])
    messages: list[InboxMessage] = field(default_factory=list[InboxMessage])
    approvals: dict[str, Approval] = field(default_factory=dict[str, Approval])
    before: tuple[Turn, ...] = ()
    """The conversation of the run that this one continues."""

    # -- read -----------------------------------------------------------------------------

    async def load(self) -> None:
        """Read what earlier attempts have left. May raise `StorageError`."""
        run_id = self.run.run_id
        self.calls = await self.stores.calls.of_run(run_id)
        self.replies = {call.n: decode_reply(call.reply) for call in self.calls if call.reply}
        self.steps = {record.step_id: record for record in await self.stores.runs.steps(run_id)}
        self.approvals = {asked.step_id: asked for asked in await self.stores.approvals.of_run(run_id)}

    async def load_earlier(self, depth: int = 0) -> None:
        """Read the conversation that this one continues. May raise `StorageError`."""
        earlier_id = (self.run.agent or {}).get("continue_of")
        if not isinstance(earlier_id, str) or depth == _MOST_EARLIER:
            return
        earlier = await self.stores.runs.get(earlier_id)
        if earlier is None or earlier.user_id != self.run.user_id:
            return
        rows = AgentRows(earlier, self.fence, self.stores, self.log)
        await rows.load()
        await rows.read_messages()
        await rows.load_earlier(depth + 1)
        self.before = rows.turns(rows.prompt, rows.view)

    @property
    def prompt(self) -> str:
        """What the run is for."""
        return str(self.run.spec.get("prompt", ""))

    async def read_messages(self) -> None:
        """Read what the user has written since the last look, however long it takes."""
        run_id, last = self.run.run_id, self.read_upto
        new = await self.log.stored(lambda: self.stores.inbox.after(run_id, last))
        self.messages += [message for message in new if message.k > self.read_upto]

    @property
    def read_upto(self) -> int:
        """The last message that was read here."""
        return self.messages[-1].k if self.messages else 0

    @property
    def ledger(self) -> Ledger:
        """What the run has spent."""
        return Ledger(
            tokens=sum(call.tokens for call in self.calls),
            cost=sum(call.dollars_u for call in self.calls),
            calls=sum(1 for call in self.calls if call.status is not CallStatus.FAILED or call.tokens),
            tool_calls=sum(1 for step in self.steps.values() if step.status not in _NOT_COUNTED),
        )

    @property
    def lost(self) -> int:
        """How many calls were lost with their workers."""
        return sum(1 for call in self.calls if call.status is CallStatus.LOST)

    @property
    def told(self) -> int:
        """The last message that went out with a call of the model, whatever became of the call."""
        return max((call.inbox_upto for call in self.calls), default=0)

    @property
    def unread(self) -> bool:
        """Whether the user wrote something that no reply knows of."""
        return self.read_upto > self._seen

    @property
    def user_interrupts(self) -> bool:
        """Whether the user wrote, since the newest reply, something that does not wait."""
        return self.user_interrupts_after(self._seen)

    def user_interrupts_after(self, k: int) -> bool:
        """Whether a message behind the `k`-th does not wait."""
        return any(each.mode is MessageMode.INTERRUPT and each.k > k for each in self.messages)

    @property
    def _seen(self) -> int:
        return max((call.inbox_upto for call in self._answered()), default=0)

    @property
    def view(self) -> View:
        """What the last request left out of the conversation; the next one leaves out at least that."""
        return view_of(next((call.view for call in reversed(self.calls) if call.view), None))

    @property
    def answered(self) -> list[int]:
        """The numbers of the calls that have a reply."""
        return [call.n for call in self._answered()]

    def turns(self, prompt: str, view: View, *, finish_only: bool = False) -> tuple[Turn, ...]:
        """Return the conversation so far; `finish_only`: only `finish` ends it."""
        calls = self._answered()
        own = fold(prompt, calls, self.replies, self.steps, self.messages, view=view, finish_only=finish_only)
        return own if view.forgotten else (*self.before, *own)

    # -- what is to be done next ----------------------------------------------------------

    @property
    def last_reply(self) -> tuple[int, Reply] | None:
        """The newest reply, and the number of its call."""
        return next(((call.n, self.replies[call.n]) for call in reversed(self._answered())), None)

    def finished_with(self) -> dict[str, Any] | None:
        """Return the result with which the newest reply has called `finish`, if it has."""
        n, _ = self.last_reply or (0, None)
        for record in self.steps.values():
            if record.call == n and record.tool == FINISH and record.status is StepStatus.SUCCEEDED:
                return as_result(record.args.get("result"))
        return None

    def open_steps(self) -> Iterator[tuple[ToolCall, StepRecord]]:
        """Yield the calls of the newest reply that have not ended, in its order, as they are then."""
        n, reply = self.last_reply or (0, None)
        for k, call in enumerate(reply.calls if reply else ()):
            record = self.steps.get(step_id(n, k))
            if record is not None and _is_open(record):
                yield call, record

    def not_the_result(self) -> int:
        """Return how often the model has ended with something of another form than the result has to have."""
        words = sum(1 for call in self._answered() if not self.replies[call.n].calls)
        return words + sum(1 for record in self.steps.values() if record.policy == MISFIT)

    def empty_in_a_row(self) -> int:
        """Return how many of the last replies in a row had nothing to go on with: empty, or cut."""
        found = 0
        for call in reversed(self._answered()):
            reply = self.replies[call.n]
            if not (reply.empty or is_cut(reply)):
                break
            found += 1
        return found

    def unusable_in_a_row(self) -> int:
        """Return how many of the last calls of tools in a row could not be carried out as they were."""
        found = 0
        for record in sorted(self.steps.values(), key=lambda record: record.idx, reverse=True):
            if record.policy != UNUSABLE:
                break
            found += 1
        return found

    # -- write ----------------------------------------------------------------------------

    async def lose(self, now: int) -> list[CallRecord]:
        """Mark what earlier attempts sent and never settled; return it. May raise `StorageError`."""
        numbers = await self.stores.calls.lose(self.fence, now)
        self.calls = [
            replace(call, status=CallStatus.LOST, ended_at=now) if call.n in numbers else call
            for call in self.calls
        ]
        lost = [call for call in self.calls if call.n in numbers]
        for call in lost:
            MODEL_CALLS.labels(call.model, call.status).inc()
        return lost

    async def send(self, call: CallRecord) -> None:
        """Commit that a call is about to be made, however long it takes."""
        await self.log.stored(lambda: self.stores.calls.send(self.fence, call))
        self.calls.append(call)

    async def settle(
        self, call: CallRecord, reply: Reply | None = None, proposed: Sequence[StepRecord] = ()
    ) -> None:
        """Commit what became of a call, and the steps that its reply asks for, however long it takes."""
        hidden = [self.log.hidden(record) for record in proposed]
        await self.log.stored(lambda: self.stores.calls.settle(self.fence, call, hidden))
        self.calls = [call if each.n == call.n else each for each in self.calls]
        _count(call)
        if reply is not None:
            self.replies[call.n] = reply
        self.steps |= {record.step_id: record for record in proposed}

    async def ask(self, asked: Sequence[Approval]) -> None:
        """Commit what has to be approved, however long it takes."""
        await self.log.stored(lambda: self.stores.approvals.ask(self.fence, asked))

    async def tell_step(self, record: StepRecord, text: str) -> None:
        """Show what became of a step that no supervisor ran."""
        level = Level.INFO if record.status is StepStatus.WAITING else Level.WARNING
        data = {"tool": record.tool, "status": record.status, "n": record.idx + 1, "call": record.call}
        await self.log.event(EventType.STEP, level=level, step=record.step_id, content=text, data=data)

    async def save(self, record: StepRecord) -> None:
        """Put a step's record into the next transaction of the log."""
        self.steps[record.step_id] = record
        await self.log.save_step(record)

    def _answered(self) -> list[CallRecord]:
        return answered(self.calls, self.replies)


def as_result(found: Any) -> dict[str, Any]:
    """Return a result as a run's row keeps it: an object as it is, a text as `text`, else as `value`."""
    if isinstance(found, dict):
        return found
    return {"text": found} if isinstance(found, str) else {"value": found}


def is_cut(reply: Reply) -> bool:
    """Whether a reply was cut at its length limit within its words, so that it is no answer."""
    return reply.finish is Finish.LENGTH and not reply.calls


def _count(call: CallRecord) -> None:
    """Count a call that has ended."""
    MODEL_CALLS.labels(call.model, call.status).inc()
    MODEL_CALLS.labels(call.model, "retried").inc(max(0, call.tries - 1))
    MODEL_TOKENS.labels(call.model, "input").inc(call.input_tokens)
    MODEL_TOKENS.labels(call.model, "output").inc(call.output_tokens)
    if call.cost_u is not None:
        MODEL_COST.labels(call.model).inc(call.cost_u / _MICRO)
    if call.first_at is not None:
        MODEL_FIRST_SECONDS.labels(call.model).observe(max(0, call.first_at - call.sent_at) / _MICRO)


def _is_open(record: StepRecord) -> bool:
    """Whether something is left to do: also where what runs programs was away, and the run came back."""
    error = record.error or {}
    return not record.status.finished or bool(error.get("retried") and not error.get("tolerated"))
