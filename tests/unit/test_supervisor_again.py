"""Where programs outlive their worker: an interrupted step goes on, a failed one starts afresh."""

from __future__ import annotations

from test_supervisor import Answer, Case, Tools, record, shell

from app.agent.tools.program import ToolOutcome
from app.core.events import EventType
from app.core.models import Step, StepStatus
from app.execution.executor import Resume
from tailrun.process.stop import StopToken


class Lasting(Tools):
    """Tools whose programs outlive workers; remembers how each step was called, and what was settled when."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case
        self.again: list[Resume] = []
        self.on_committed: list[StepStatus] = []

    def reattaches(self, step: Step) -> bool:
        return True

    async def call(self, step: Step, stop: StopToken, again: Resume = Resume()) -> ToolOutcome:  # noqa: B008 - frozen
        self.again.append(again)
        self.unsettled = True
        return await super().call(step, stop, again)

    async def settle(self) -> None:
        assert self.case.log.trace[-1] == ("flush", None)
        self.on_committed += [record.status for record in self.case.log.records.values()]
        self.unsettled = False


class LastingCase(Case):
    def make_tools(self, **answers: Answer) -> Tools:
        return self.lasting

    def __init__(self, *steps: Step, attempt: int) -> None:
        super().__init__(*steps, attempt=attempt)
        self.lasting = Lasting(self)


def lasting(*steps: Step, attempt: int) -> tuple[LastingCase, Lasting]:
    case = LastingCase(*steps, attempt=attempt)
    return case, case.lasting


async def test_an_interrupted_step_goes_on_from_its_last_line() -> None:
    case, tools = lasting(shell("s1"), attempt=3)
    case.log.sources["s1"] = "2:17"
    await case.go(record("s1", StepStatus.RUNNING, result={"step_run": 2}))
    assert tools.again == [Resume(2, resumed=True, cursor="2:17")]
    assert case.log.said == []
    begun = case.log.of(EventType.STEP)[0]
    assert begun[3]["resumed"] is True
    assert case.log.records["s1"].started_at == 0


async def test_a_failed_step_that_is_tried_again_is_a_fresh_run_of_it() -> None:
    case, tools = lasting(shell("s1"), attempt=2)
    error = {"code": "evicted", "message": "", "retried": True, "tolerated": False}
    await case.go(record("s1", StepStatus.FAILED, error=error, result={"step_run": 1}))
    assert tools.again == [Resume(2)]
    assert case.log.records["s1"].result == {"step_run": 2}


async def test_what_ran_is_settled_once_its_record_is_kept() -> None:
    case, tools = lasting(shell("s1"), attempt=1)
    await case.go()
    assert tools.on_committed == [StepStatus.SUCCEEDED]
