"""An agent that waits for somebody holds no worker, and goes on exactly where it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.agents import Agents, says

from app.core.agent_records import Decision
from app.core.events import EventType
from app.core.models import Run, RunStatus, StepStatus

ASK = {"approve": ["shell"]}


def appends(file: Path) -> tuple[str, dict[str, Any]]:
    return "shell", {"command": f"echo ran >> {file}"}


async def waiting(agents: Agents, agent: dict[str, Any] | None = None) -> str:
    """Submit a run, and wait until it waits."""
    run_id = await agents.submit("Go.", agent=ASK if agent is None else agent)
    await agents.waits(run_id)
    return run_id


@pytest.fixture
def working(agents: Agents) -> Agents:
    agents.start_worker()
    return agents


async def test_a_program_that_has_to_be_approved_runs_once_it_is(working: Agents, tmp_path: Path) -> None:
    file = tmp_path / "ran"
    working.model.script(says("I run it.", appends(file)), says("done"))
    run_id = await waiting(working)
    assert not file.exists()
    run = await working.run(run_id)
    assert (run.worker_id, run.waiting_for) == (None, "approval")
    [asked] = await working.approvals.of_run(run_id)
    await working.decide(asked, Decision.APPROVED)
    run = await working.ended(run_id)
    assert run.result == {"text": "done"}
    assert file.read_text() == "ran\n"
    assert len(working.model.asked) == 2
    approvals = [e for e in await working.events(run_id) if e.type is EventType.APPROVAL]
    assert [e.data["status"] for e in approvals] == ["asked", "approved"]
    assert len({e.data["args_sha256"] for e in approvals}) == 1


async def test_by_default_programs_of_the_workers_own_machine_have_to_be_approved(
    working: Agents, tmp_path: Path
) -> None:
    file = tmp_path / "ran"
    code = ("code", {"language": "bash", "source": f"echo ran >> {file}"})
    working.model.script(says("", ("file_list", {}), code, appends(file)), says("done"))
    run_id = await waiting(working, {})
    assert [asked.step_id for asked in await working.approvals.of_run(run_id)] == ["c1-2", "c1-3"]
    done = [step.status for step in await working.steps(run_id)]
    assert done == [StepStatus.SUCCEEDED, StepStatus.WAITING, StepStatus.WAITING]


async def test_what_is_denied_is_told_and_not_run(working: Agents, tmp_path: Path) -> None:
    """Two are asked for at once, each is decided by itself, and the last one sends the run on."""
    files = [tmp_path / "a", tmp_path / "b"]
    working.model.script(says("", *map(appends, files)), says("I see."))
    run_id = await waiting(working)
    first, second = await working.approvals.of_run(run_id)
    await working.decide(first, Decision.DENIED, note="not that one")
    assert (await working.run(run_id)).status is RunStatus.WAITING
    await working.decide(second, Decision.APPROVED)
    run = await working.ended(run_id)
    assert run.status is RunStatus.SUCCEEDED
    assert [file.exists() for file in files] == [False, True]
    assert working.told()[0] == "Not run: denied by bob: not that one"


async def test_what_nobody_decides_in_time_is_told_as_not_approved(agents: Agents, tmp_path: Path) -> None:
    agents.settings["AGENT_WAIT_S"] = "0.5"
    agents.start_worker()
    agents.model.script(says("", appends(tmp_path / "ran")), says("A pity."))
    run = await agents.do("Go.", agent=ASK)
    assert run.result == {"text": "A pity."}
    assert agents.told() == ["Not run: it was not approved in time."]


async def test_a_waiting_run_takes_no_place_of_its_worker(agents: Agents, tmp_path: Path) -> None:
    agents.settings |= {"WORKER_CONCURRENCY": "1", "WORKER_AGENTS": "1"}
    agents.start_worker()
    agents.model.script(says("", appends(tmp_path / "ran")), says("other"))
    await waiting(agents)
    assert (await agents.do("Another.")).result == {"text": "other"}


@pytest.mark.parametrize("point", ["tool_starts:1", "tool_ended:1"])
async def test_an_approved_program_whose_worker_is_killed_is_not_started_again(
    agents: Agents, tmp_path: Path, point: str
) -> None:
    agents.model.script(says("", appends(tmp_path / "ran")), says("done"))
    first = agents.start_worker(FAILPOINT=point)
    run_id = await waiting(agents)
    [asked] = await agents.approvals.of_run(run_id)
    await agents.decide(asked, Decision.APPROVED)
    await agents.died(first)
    agents.start_worker()
    run = await agents.ended(run_id)
    assert run.result == {"text": "done"}
    assert (tmp_path / "ran").exists() is point.startswith("tool_ended")
    assert agents.told()[0].startswith("(interrupted")


async def test_a_question_is_answered_by_a_message(working: Agents) -> None:
    working.model.script(says("", ("ask_user", {"question": "Which colour?"})), says("Blue it is."))
    run_id = await waiting(working, {})
    assert (await working.run(run_id)).waiting_for == "answer"
    await working.say(run_id, "blue")
    run = await working.ended(run_id)
    assert run.result == {"text": "Blue it is."}
    roles = [(m["role"], m["content"]) for m in working.model.asked[1].body["messages"][-2:]]
    assert roles == [("tool", "The answer follows."), ("user", "blue")]
    events = [e.content for e in await working.events(run_id) if e.step == "c1-1"]
    assert events == ["? c1-1 ask_user: Which colour?"]


async def test_a_question_without_an_answer_does_not_hold_the_run_for_ever(agents: Agents) -> None:
    agents.settings["AGENT_WAIT_S"] = "0.5"
    agents.start_worker()
    agents.model.script(says("", ("ask_user", {"question": "Well?"})), says("I chose."))
    run = await agents.do("Go.")
    assert run.result == {"text": "I chose."}
    assert agents.told() == ["There was no answer in time. Go on as you think best."]


async def test_a_message_is_read_with_the_next_call(working: Agents, tmp_path: Path) -> None:
    fifo = tmp_path / "go"
    hold = ("shell", {"command": f"touch {tmp_path}/in; while [ ! -e {fifo} ]; do sleep 0.05; done"})
    working.model.script(says("", hold), says("As you wish."))
    run_id = await working.submit("Go.", agent={"approve": []})
    await working.until((tmp_path / "in").exists, "the program to run")
    await working.say(run_id, "in green, please")
    fifo.touch()
    run: Run = await working.ended(run_id)
    assert run.result == {"text": "As you wish."}
    assert working.model.asked[1].body["messages"][-1] == {"role": "user", "content": "in green, please"}
    [told] = [e for e in await working.events(run_id) if e.type is EventType.MESSAGE]
    assert (told.content, told.data["by"]) == ("in green, please", "bob")
