"""The agent: a model is called, what it asks for is done, and it is told what came of it, until it ends.

        ┌──────────────────────────────────────────────────────────┐
        v                                                          │
    call the model ──> reply ──┬── calls of tools ──> steps, in order
                               ├── words alone, or `finish` ──> the run's result
                               └── nothing of use ──> again, a few times

Each arrow is committed before it is followed (`app.agent.rows`), so an attempt begins wherever the last one
was ended, and asks the rows alone what is next.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import orjson

from app.agent.agent_tools import specs_of
from app.agent.budget import RunBudget
from app.agent.model_turn import ModelTurn, Prefix
from app.agent.order import AgentOrder, ceiling
from app.agent.output import ToolOutput
from app.agent.prompt import system_prompt
from app.agent.replay import RecordedRun, RequestHash
from app.agent.rows import MISFIT, AgentLog, AgentRows
from app.agent.stuck import Circle, judge
from app.agent.supervisor import Supervision
from app.agent.tool_calls import ToolCalls
from app.agent.tools.router import ToolRouter
from app.config import Settings
from app.core.events import EventType
from app.execution.program_slots import ProgramSlots
from app.llm.client import ModelClient
from app.llm.model import Finish
from app.llm.pool import ModelPool, NoSuchModel
from app.llm.prices import Prices
from app.llm.recorded import RecordedModel
from app.storage.workspace import Workspace
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Level
from tailrun.process.stop import StopToken

_EMPTY_MOST, _UNUSABLE_MOST, _REPAIRS = 3, 5, 2
_RESULT_BYTES, _HEAD_CHARS = 16_000, 1_000
_LOST_MESSAGE = (
    "call {n} of the model was lost with its worker: what it has written is void, and it counts as spent"
)


@dataclass(frozen=True, slots=True)
class AgentBench:
    """What the agents of one attempt work with."""

    rows: AgentRows
    log: AgentLog
    output: ToolOutput
    tools: ToolRouter
    models: ModelPool
    programs: ProgramSlots
    stop: StopToken
    news: asyncio.Event
    clock: Callable[[], int]
    settings: Settings
    replay: RecordedRun | None = None


class Agent:
    """One attempt at an agent's run; `rows` are loaded."""

    def __init__(self, bench: AgentBench) -> None:
        self._bench, self._rows, self._log = bench, bench.rows, bench.log
        run = bench.rows.run
        self._prompt = bench.rows.prompt
        self._order = AgentOrder.of(run.agent, bench.settings.agent)
        if bench.replay is not None:  # nothing is paid, so only what its tools do is bounded
            bounded = RunBudget(tool_calls=ceiling(bench.settings.agent).tool_calls)
            self._order = replace(self._order, budget=bounded)
        self._supervision = Supervision(
            run, None, bench.output, bench.tools, bench.stop, bench.clock, output=bench.output
        )
        self._tools = ToolCalls(
            bench.rows,
            self._order,
            self._supervision,
            bench.tools,
            bench.programs,
            bench.clock,
            bench.settings,
            bench.replay,
        )
        self._turn = ModelTurn(
            bench.rows,
            self._model(),
            bench.models.prices if bench.replay is None else Prices({}),
            self._order.budget,
            self._prefix(),
            self._order.result_schema is not None,
            bench.stop,
            bench.news,
            bench.clock,
            bench.replay,
            RequestHash(bench.log.hide),
        )

    async def run(self) -> dict[str, Any]:
        """Work until there is a result; return it.

        Raises:
            RunFailure: a budget, the model's failure, or what ends any run.
            Drained: the worker is shutting down.
            LostOwnership: another attempt owns the run.
            Parked: the run has to wait for an answer.
        """
        await self._take_note_of_lost_calls()
        while True:
            await self._tools.carry_out()
            await self._rows.read_messages()
            result = self._result()
            if result is not None and not self._rows.unread:
                return result
            note = self._check_sense()
            self._supervision.go_on()
            await self._log.flush()
            await self._turn.call(self._prompt, note)
            self._supervision.go_on()

    # -- before ---------------------------------------------------------------------------

    def _model(self) -> ModelClient | RecordedModel:
        if self._bench.replay is not None:
            return self._bench.replay.model
        try:
            return self._bench.models.model(self._order.model)
        except NoSuchModel as error:
            # another worker may have it: this one gives the run back, for a while
            raise RunFailure(ErrorCode.NO_MODEL, str(error), retried=True, away=True) from error

    def _prefix(self) -> Prefix:
        kept = next((call.prefix for call in self._rows.calls if call.prefix), None)
        if self._bench.replay is not None:
            kept = self._bench.replay.recording.prefix
        if kept is not None:
            return Prefix.of(kept)
        order = self._order
        text = system_prompt(
            instructions=order.instructions,
            network=order.wants.network,
            schema=order.result_schema is not None,
        )
        return Prefix(text, specs_of(order))

    async def _take_note_of_lost_calls(self) -> None:
        """Count what earlier attempts had on its way when they ended, and go on only so often."""
        if self._rows.run.attempt == 1:
            return
        for call in await self._log.stored(lambda: self._rows.lose(self._bench.clock())):
            text = _LOST_MESSAGE.format(n=call.n)
            data = {"n": call.n, "status": call.status, "model": call.model}
            await self._log.event(EventType.MODEL, level=Level.WARNING, content=text, data=data)
        most = self._bench.settings.llm.lost_max
        if self._rows.lost > most:
            raise RunFailure(
                ErrorCode.WORKER_LOST,
                f"{self._rows.lost} calls of the model were lost with their workers, "
                f"and each may have been paid for; at most {most} are made again (LLM_LOST_MAX)",
                retried=False,
            )

    # -- the end --------------------------------------------------------------------------

    def _result(self) -> dict[str, Any] | None:
        """Return the result, if the newest reply holds one."""
        _, reply = self._rows.last_reply or (0, None)
        if reply is None or reply.empty:
            return None
        if not reply.calls:
            words_do = self._order.result_schema is None and reply.finish is not Finish.LENGTH
            return {"text": reply.text.strip()} if words_do else None
        return self._rows.finished_with()

    def _check_sense(self) -> str:
        """End the run when the model does nothing of use, again and again; return what to tell it before."""
        if self._bench.replay is not None:
            return ""  # it goes as far as its recording
        if self._rows.empty_in_a_row() >= _EMPTY_MOST:
            n, reply = self._rows.last_reply or (0, None)
            cut = reply is not None and reply.finish is Finish.LENGTH
            what = "were cut at their length limit (LLM_MAX_OUTPUT_TOKENS)" if cut else "were empty"
            raise RunFailure(
                ErrorCode.MODEL_BAD_REPLY, f"The last {_EMPTY_MOST} replies of the model, up to {n}, {what}."
            )
        if self._rows.unusable_in_a_row() >= _UNUSABLE_MOST:
            last = max(self._rows.steps.values(), key=lambda record: record.idx)
            raise RunFailure(
                ErrorCode.MODEL_BAD_REPLY,
                f"The last {_UNUSABLE_MOST} calls of tools could not be carried out. {last.for_model}",
            )
        if self._order.result_schema is not None and self._rows.not_the_result() > _REPAIRS:
            misfits = [record for record in self._rows.steps.values() if record.policy == MISFIT]
            last = max(misfits, key=lambda record: record.idx, default=None)
            text = (last and last.for_model) or "The model ended with words alone."
            raise RunFailure(ErrorCode.INVALID_RESULT, f"No result of the form that was asked for. {text}")
        judgement = judge(sorted(self._rows.steps.values(), key=lambda record: record.idx))
        if judgement.circle is Circle.STUCK:
            raise RunFailure(ErrorCode.STUCK_LOOP, judgement.text)
        return f"({judgement.text})" if judgement.circle is Circle.NUDGE else ""


async def within_a_row(result: dict[str, Any], workspace: Workspace) -> dict[str, Any]:
    """Return a result as the run's row and its last event hold it; one that is large becomes a file."""
    raw = orjson.dumps(result, option=orjson.OPT_INDENT_2)
    if len(raw) <= _RESULT_BYTES:
        return result
    text = result["text"] if result.keys() == {"text"} and isinstance(result["text"], str) else None
    name, content = ("result.json", raw) if text is None else ("result.md", text.encode())
    file = await workspace.write(name, content)
    return {
        "text": f"{(text or '')[:_HEAD_CHARS]}… (the whole result is in {name})",
        "file": name,
        "size": file.size,
    }
