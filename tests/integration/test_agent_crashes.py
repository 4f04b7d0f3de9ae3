"""A worker that is killed: another one goes on, no committed reply is paid for again, no program runs twice.

Each test kills the first worker with SIGKILL at one point of a turn, and starts a second one.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from pathlib import Path

import pytest
from support.agents import Agents, says
from support.scripted_model import Answer, Stall, Until, chat_reply, chunk

from app.core.agent_records import CallStatus
from app.core.events import EventType
from app.core.models import Run, RunStatus, StepStatus

FREE = {"approve": []}


def appends(file: Path) -> tuple[str, dict[str, str]]:
    """A program whose every run is seen outside of the workspace."""
    return "shell", {"command": f"echo ran >> {file}; echo said it"}


async def killed_at(agents: Agents, point: str) -> Run:
    """Let a worker die at a point, then another one end the run; return the run."""
    first = agents.start_worker(FAILPOINT=point)
    run_id = await agents.submit("Go.", agent=FREE)
    await agents.died(first)
    agents.start_worker()
    return await agents.ended(run_id)


async def statuses(agents: Agents, run: Run) -> list[CallStatus]:
    return [call.status for call in await agents.calls_of(run.run_id)]


async def test_killed_before_a_call_is_written_down_it_is_made_once(agents: Agents, tmp_path: Path) -> None:
    agents.model.script(says("", appends(tmp_path / "ran")), says("done"))
    run = await killed_at(agents, "before_send:1")
    assert run.result == {"text": "done"}
    assert len(agents.model.asked) == 2
    assert (tmp_path / "ran").read_text() == "ran\n"


@pytest.mark.parametrize(("point", "seen"), [("sent", 2), ("reply_read", 3)])
async def test_killed_before_a_reply_is_kept_the_call_is_lost_and_made_again(
    agents: Agents, tmp_path: Path, point: str, seen: int
) -> None:
    """It counts as spent with what was reserved for it, and the stream says that its words are void."""
    asks = says("", appends(tmp_path / "ran"))
    agents.model.script(*[asks] * (seen - 1), says("done"))
    run = await killed_at(agents, f"{point}:1")
    assert run.result == {"text": "done"}
    assert len(agents.model.asked) == seen
    assert (tmp_path / "ran").read_text() == "ran\n"
    assert await statuses(agents, run) == [CallStatus.LOST, CallStatus.ANSWERED, CallStatus.ANSWERED]
    lost = (await agents.calls_of(run.run_id))[0]
    assert lost.tokens == lost.reserved_tokens
    assert run.spent_tokens == sum(call.tokens for call in await agents.calls_of(run.run_id))
    told = [e.data["n"] for e in await agents.events(run.run_id) if e.data.get("status") == "lost"]
    assert told == [1]


async def test_killed_after_a_reply_is_kept_it_is_not_paid_for_again(agents: Agents, tmp_path: Path) -> None:
    agents.model.script(says("", appends(tmp_path / "ran")), says("done"))
    run = await killed_at(agents, "answered:1")
    assert run.result == {"text": "done"}
    assert len(agents.model.asked) == 2
    assert await statuses(agents, run) == [CallStatus.ANSWERED] * 2
    assert (tmp_path / "ran").read_text() == "ran\n"


async def test_killed_as_a_program_starts_it_counts_as_interrupted(agents: Agents, tmp_path: Path) -> None:
    """It never began, which the next worker can't know: the model is told to look."""
    agents.model.script(says("", appends(tmp_path / "ran")), says("I look."))
    run = await killed_at(agents, "tool_starts:1")
    assert not (tmp_path / "ran").exists()
    [step] = await agents.steps(run.run_id)
    assert step.status is StepStatus.INTERRUPTED
    assert agents.told()[0].startswith("(interrupted")


async def test_killed_while_a_program_runs_it_is_not_started_again(agents: Agents, tmp_path: Path) -> None:
    file = tmp_path / "ran"
    command = {"command": f"echo ran >> {file}; sleep 60"}
    agents.model.script(says("", ("shell", command)), says("I look."))
    first = agents.start_worker()
    run_id = await agents.submit("Go.", agent=FREE)
    await agents.until(file.exists, "the program to run")
    first.kill()
    agents.start_worker()
    run = await agents.ended(run_id)
    assert run.status is RunStatus.SUCCEEDED
    assert file.read_text() == "ran\n"
    assert agents.told()[0].startswith("(interrupted")
    events = await agents.events(run_id)
    assert [e.data["status"] for e in events if e.type is EventType.STEP] == ["running", "interrupted"]
    assert [e.seq for e in events] == list(range(1, len(events) + 1))


async def test_killed_after_a_program_its_committed_end_is_used(agents: Agents, tmp_path: Path) -> None:
    agents.model.script(says("", appends(tmp_path / "ran")), says("done"))
    run = await killed_at(agents, "before_send:2")
    assert run.result == {"text": "done"}
    assert (tmp_path / "ran").read_text() == "ran\n"
    assert "said it" in agents.told()[0]
    [step] = await agents.steps(run.run_id)
    assert step.status is StepStatus.SUCCEEDED


async def test_killed_before_a_programs_end_is_committed_it_is_interrupted(
    agents: Agents, tmp_path: Path
) -> None:
    agents.model.script(says("", appends(tmp_path / "ran")), says("done"))
    run = await killed_at(agents, "tool_ended:1")
    assert (tmp_path / "ran").read_text() == "ran\n"
    [step] = await agents.steps(run.run_id)
    assert step.status is StepStatus.INTERRUPTED


async def test_of_several_calls_only_those_that_had_begun_are_not_repeated(
    agents: Agents, tmp_path: Path
) -> None:
    names = [tmp_path / name for name in "abc"]
    agents.model.script(says("", *map(appends, names)), says("done"))
    run = await killed_at(agents, "tool_starts:2")
    assert [name.exists() for name in names] == [True, False, True]
    assert names[0].read_text() == "ran\n"
    done = [step.status for step in await agents.steps(run.run_id)]
    assert done == [StepStatus.SUCCEEDED, StepStatus.INTERRUPTED, StepStatus.SUCCEEDED]


async def test_killed_in_a_file_tool_it_is_called_again(agents: Agents) -> None:
    agents.model.script(says("", ("file_write", {"path": "a", "content": "x"})), says("done"))
    run = await killed_at(agents, "tool_ended:1")
    [step] = await agents.steps(run.run_id)
    assert (step.status, step.attempt) == (StepStatus.SUCCEEDED, 2)


async def test_a_run_whose_calls_are_lost_again_and_again_ends(agents: Agents) -> None:
    agents.settings["LLM_LOST_MAX"] = "0"
    agents.model.script(says("done"))
    run = await killed_at(agents, "sent:1")
    assert run.error is not None
    assert run.error["code"] == "worker_lost"
    assert len(agents.model.asked) == 0


async def test_an_owner_that_was_frozen_writes_nothing_when_it_comes_back(agents: Agents) -> None:
    """Its connection to the model goes on where it was, and its reply lands nowhere."""
    go_on = threading.Event()
    whole = chat_reply("too late")
    agents.model.script(Answer(whole[:200], Until(go_on), whole[200:]), says("in time"))
    first = agents.start_worker()
    run_id = await agents.submit("Go.", agent=FREE)
    await agents.until(lambda: agents.model.asked and agents.model.asked[0].sent, "the first words")
    first.send_signal(signal.SIGSTOP)
    agents.start_worker()
    run = await agents.ended(run_id)
    go_on.set()
    first.send_signal(signal.SIGCONT)
    await asyncio.to_thread(agents.model.asked[0].ended.wait, 60)
    assert run.result == {"text": "in time"}
    assert await agents.run(run_id) == run
    assert await statuses(agents, run) == [CallStatus.LOST, CallStatus.ANSWERED]


async def test_a_worker_that_drains_ends_its_call_and_another_one_goes_on(agents: Agents) -> None:
    agents.model.script(Answer(chunk({"content": "half of "}), Stall()), says("whole"))
    first = agents.start_worker()
    run_id = await agents.submit("Go.", agent=FREE)
    await agents.until(lambda: agents.model.asked and agents.model.asked[0].sent, "the first words")
    first.terminate()
    await agents.died(first)
    assert agents.model.asked[0].hung_up
    agents.start_worker()
    run = await agents.ended(run_id)
    assert run.result == {"text": "whole"}
    assert await statuses(agents, run) == [CallStatus.CANCELLED, CallStatus.ANSWERED]
