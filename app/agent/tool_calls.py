"""What a model asks for, carried out: the calls of its newest reply, one after the other.

    proposed ──┬── tool of the loop: done here
               ├── has to be approved: asked for, all of the reply at once, and the run is parked
               ├── the user wrote with mode `interrupt`: skipped
               └── run by the supervisor

A program that an earlier attempt started is not started again: the model is told that it was interrupted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import orjson

from app.agent.agent_tools import ASK_USER, LOOP_TOOLS, PLAN, plan_items
from app.agent.budget import BudgetSpent
from app.agent.model_tools import UnusableCall, step_of
from app.agent.order import AgentOrder
from app.agent.policy import asks
from app.agent.replay import RecordedRun
from app.agent.rows import FINISH, MISFIT, AgentRows
from app.agent.step_lines import started
from app.agent.supervisor import Supervision
from app.agent.tools.router import ToolRouter, runs_program
from app.config import Settings
from app.core.agent_records import Approval, Decision, WaitingFor
from app.core.clock import format_ts
from app.core.events import EventType
from app.core.models import Step, StepRecord, StepStatus
from app.execution.program_slots import ProgramSlots
from app.llm.model import ToolCall
from app.plan.result_schema import ResultSchema
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level, Line, Stream

_SECOND = 1_000_000
_SKIPPED = "Not run: the user wrote something first."
_ANSWERED, _UNANSWERED = "The answer follows.", "There was no answer in time. Go on as you think best."
_NOT_BEGUN = frozenset({StepStatus.PROPOSED, StepStatus.WAITING})


class Parked(Exception):
    """The run waits for an answer, at most until `until`; `inbox_upto` is the last message that was read."""

    def __init__(self, waiting_for: WaitingFor, until: int, inbox_upto: int) -> None:
        super().__init__(f"waits for {waiting_for}")
        self.waiting_for = waiting_for
        self.until = until
        self.inbox_upto = inbox_upto


@dataclass(frozen=True, slots=True)
class ToolCalls:
    """Carries out calls of tools for one attempt at a run."""

    rows: AgentRows
    order: AgentOrder
    supervision: Supervision
    tools: ToolRouter
    programs: ProgramSlots
    clock: Callable[[], int]
    settings: Settings
    replay: RecordedRun | None = None

    async def carry_out(self) -> None:
        """Carry out what is open of the newest reply, up to a `finish`.

        Raises:
            Parked: the run has to wait for an answer.
            RunFailure: a budget, or what ends any run.
        """
        for call, record in self.rows.open_steps():
            if self.rows.finished_with() is not None:
                return
            await self.rows.read_messages()
            then = None if self.replay is None else self.replay.outcome(record)
            if then is not None:
                await self._end_as_recorded(record, then)
            elif record.status in _NOT_BEGUN and self.rows.user_interrupts:
                await self._refuse(record, _SKIPPED)
            elif record.tool in LOOP_TOOLS:
                await self._done_here(record)
            elif self._was_interrupted(record):
                await self._end_interrupted(record)
            else:
                await self._perform(call, record)

    # -- the catalogue's tools --------------------------------------------------------------

    async def _perform(self, call: ToolCall, record: StepRecord) -> None:
        if record.status in _NOT_BEGUN:  # what has begun is counted
            self._hold_budget()
        step = self._step(call, record)
        if self._rule(step, record) is not None:
            asked = self.rows.approvals.get(step.id)
            if asked is None or asked.decision is None:
                await self._ask_for_approvals()
            elif asked.decision is not Decision.APPROVED or asked.args_sha256 != args_sha256(step):
                await self._refuse(record, _denied(asked))
                return
        await self._run(step, record)

    def _hold_budget(self) -> None:
        try:
            self.rows.ledger.next_tool(self.order.budget)
        except BudgetSpent as spent:
            raise RunFailure(ErrorCode.BUDGET, f"The budget of this run: {spent}") from spent

    async def _run(self, step: Step, record: StepRecord) -> None:
        """Run a step; a program in a slot of its worker."""
        if not runs_program(step):
            self.rows.steps[step.id] = await self.supervision.perform(record.idx, step, record)
            return
        if not await self.programs.wait(self.supervision.stop):
            self.supervision.go_on()
        try:
            self.rows.steps[step.id] = await self.supervision.perform(record.idx, step, record)
        finally:
            self.programs.give()

    def _step(self, call: ToolCall, record: StepRecord) -> Step:
        """Return the step as the reply asks for it: the row may be masked."""
        try:
            step = step_of(call, record.step_id, self.order.tools)
        except UnusableCall as error:  # the reply was accepted by another release
            raise RunFailure(ErrorCode.MODEL_BAD_REPLY, error.message) from error
        return replace(step, continue_on_error=True, wants=self.order.wants)

    async def _refuse(self, record: StepRecord, text: str) -> None:
        status, now = StepStatus.REFUSED, self.clock()
        ended = replace(record, status=status, for_model=text, ended_at=now)
        await self.rows.save(ended)
        await self.rows.tell_step(ended, f"✗ {record.step_id} {record.tool}: {text}")

    # -- approvals --------------------------------------------------------------------------

    def _rule(self, step: Step, record: StepRecord) -> str | None:
        """Return why a step has to be approved; what was asked once is, whatever the settings are now."""
        if record.status is StepStatus.RUNNING:
            return None
        if record.status is StepStatus.WAITING and record.policy:
            return record.policy
        return asks(step, self.order, self.settings)

    async def _ask_for_approvals(self) -> None:
        """Ask for all steps of the reply that have to be approved, and park the run."""
        now = self.clock()
        until = now + int(self.settings.agent.wait_s * _SECOND)
        new = list[Approval]()
        for call, record in self.rows.open_steps():
            if record.tool in LOOP_TOOLS or record.status not in _NOT_BEGUN:
                continue
            step = self._step(call, record)
            rule, earlier = self._rule(step, record), self.rows.approvals.get(step.id)
            if earlier is not None and earlier.decision is None:
                until = min(until, earlier.expires_at or until)
            if rule is None or earlier is not None:
                continue
            run_id, digest = self.rows.run.run_id, args_sha256(step)
            new.append(
                Approval(
                    run_id=run_id,
                    step_id=step.id,
                    args_sha256=digest,
                    rule=rule,
                    asked_at=now,
                    expires_at=until,
                )
            )
            await self.rows.save(replace(record, status=StepStatus.WAITING, policy=rule))
            await self._tell_asked(step, new[-1])
        await self.rows.log.flush()
        await self.rows.ask(new)
        raise Parked(WaitingFor.APPROVAL, until, self.rows.read_upto)

    async def _tell_asked(self, step: Step, asked: Approval) -> None:
        data = {
            "status": "asked",
            "tool": step.tool,
            "args_sha256": asked.args_sha256,
            "rule": asked.rule,
            "expires_at": format_ts(asked.expires_at or 0),
        }
        text = f"{started(step).removeprefix('▸ ')} has to be approved ({asked.rule})"
        await self.rows.log.event(
            EventType.APPROVAL, level=Level.WARNING, step=step.id, content=text, data=data
        )

    # -- tools of the loop ------------------------------------------------------------------

    async def _done_here(self, record: StepRecord) -> None:
        """Do what a tool of the loop does."""
        told = "noted"
        if record.tool == FINISH and (wrong := self._misfit(record.args.get("result"))):
            await self._refuse(replace(record, policy=MISFIT), f"Not accepted: {wrong}.")
            return
        if record.tool == PLAN:
            await self.rows.log.event(EventType.PLAN, level=Level.INFO, data=plan_items(record.args))
        elif record.tool == ASK_USER:
            told = await self._ask_user(record)
        now = self.clock()
        await self.rows.save(replace(record, status=StepStatus.SUCCEEDED, ended_at=now, for_model=told))

    def _misfit(self, result: Any) -> str:
        """Return what is wrong with a result, empty where it is as the run asks for."""
        if self.order.result_schema is None:
            return ""
        try:
            return ResultSchema(self.order.result_schema).errors(result)
        except ValueError as error:  # the API did not accept such a one
            raise RunFailure(ErrorCode.INVALID_RESULT, f"result_schema {error}") from error

    async def _ask_user(self, record: StepRecord) -> str:
        """Return what the model is told once there is an answer, or no hope for one; else park the run."""
        if self.rows.unread:
            return _ANSWERED
        now = self.clock()
        until = int((record.result or {}).get("until", 0)) or now + int(self.settings.agent.wait_s * _SECOND)
        if until <= now:
            return _UNANSWERED
        if record.status is StepStatus.PROPOSED:
            waiting = replace(record, status=StepStatus.WAITING, result={"until": until})
            await self.rows.save(waiting)
            question = str(record.args.get("question", ""))
            await self.rows.tell_step(waiting, f"? {record.step_id} {record.tool}: {question}")
        raise Parked(WaitingFor.ANSWER, until, self.rows.read_upto)

    # -- of a replay ------------------------------------------------------------------------

    async def _end_as_recorded(self, record: StepRecord, then: StepRecord) -> None:
        """Give a step the end that is recorded of it; nothing is run."""
        names = ("status", "for_model", "exit_code", "error", "policy")
        kept = {name: getattr(then, name) for name in names}
        await self.rows.save(replace(record, **kept, ended_at=self.clock()))
        lines = [Line(Stream.STDOUT, text) for text in (then.for_model or "").split("\n")]
        await self.rows.log.lines(lines, record.step_id)
        text = f"{record.step_id} {record.tool}: {then.status}, as recorded; nothing was run"
        data = {"tool": record.tool, "status": then.status, "call": record.call, "exit_code": then.exit_code}
        await self.rows.log.event(
            EventType.STEP, level=Level.INFO, step=record.step_id, content=text, data=data
        )

    # -- after a crash ----------------------------------------------------------------------

    def _was_interrupted(self, record: StepRecord) -> bool:
        """Whether the step is a program that was killed with its worker."""
        step = Step(record.step_id, record.tool, record.args)
        killed = record.status is StepStatus.RUNNING and runs_program(step)
        return killed and not self.tools.reattaches(step)

    async def _end_interrupted(self, record: StepRecord) -> None:
        ended = replace(record, status=StepStatus.INTERRUPTED, ended_at=self.clock())
        await self.rows.save(ended)
        text = f"✗ {record.step_id} {record.tool}: interrupted in attempt {record.attempt}, not run again"
        await self.rows.tell_step(ended, text)


def args_sha256(step: Step) -> str:
    """Return what an approval is bound to: the tool and its whole arguments."""
    asked: dict[str, Any] = {"tool": step.tool, "args": step.args}
    return hashlib.sha256(orjson.dumps(asked, option=orjson.OPT_SORT_KEYS)).hexdigest()


def _denied(decided: Approval) -> str:
    if decided.decision is Decision.EXPIRED:
        return "Not run: it was not approved in time."
    if decided.decision is Decision.APPROVED:
        return "Not run: what was approved is not what would run now."
    by = f" by {decided.by}" if decided.by else ""
    return f"Not run: denied{by}{f': {decided.note}' if decided.note else '.'}"
