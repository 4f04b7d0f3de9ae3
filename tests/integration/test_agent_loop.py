"""An agent's run from end to end: a model over HTTP, a worker process, files, and the rows that are left."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.agents import Agents, says

from app.core.agent_records import CallStatus
from app.core.events import EventType
from app.core.models import RunStatus, StepStatus

WRITE = ("file_write", {"path": "report.md", "content": "# Three"})
LIST = ("file_list", {})


@pytest.fixture
def working(agents: Agents) -> Agents:
    agents.start_worker()
    return agents


async def test_a_prompt_is_carried_out_by_calls_of_tools_until_the_model_answers(working: Agents) -> None:
    """The run keeps the answer and what it cost, and each step has its record."""
    working.model.script(says("I write it down.", WRITE), says("Done: see report.md.", usage=(40, 7)))
    run = await working.do("Write a report.")
    assert (run.status, run.exit_code, run.error) == (RunStatus.SUCCEEDED, 0, None)
    assert run.result == {"text": "Done: see report.md."}
    assert run.planner == "agent"
    assert run.spent_tokens == 10 + 5 + 40 + 7
    [step] = await working.steps(run.run_id)
    assert (step.step_id, step.tool, step.status, step.call) == (
        "c1-1",
        "file_write",
        StepStatus.SUCCEEDED,
        1,
    )
    [told] = working.told()
    assert "report.md (7 bytes)" in told
    assert [call.status for call in await working.calls_of(run.run_id)] == [CallStatus.ANSWERED] * 2
    first = working.model.asked[0].body["messages"]
    assert [each["role"] for each in first] == ["system", "user"]
    assert first[1]["content"] == "Write a report."


async def test_words_calls_and_usage_are_in_the_one_sequence(working: Agents) -> None:
    working.model.script(says("First line\nsecond line", LIST), says("The end."))
    run = await working.do("Look.")
    events = await working.events(run.run_id)
    assert [event.seq for event in events] == list(range(1, len(events) + 1))
    words = [(e.stream, e.content, e.data.get("call")) for e in events if e.stream == "model"]
    lines = "".join(
        f"{content}{'' if e.data.get('split') else chr(10)}"
        for e, (_, content, _) in zip((e for e in events if e.stream == "model"), words, strict=True)
    )
    assert lines == "First line\nsecond line\nThe end.\n"
    assert {call for _, _, call in words} == {1, 2}
    models = [(e.data["n"], e.data["status"]) for e in events if e.type is EventType.MODEL]
    assert models == [(1, "sent"), (1, "answered"), (2, "sent"), (2, "answered")]
    usage = [e.data for e in events if e.type is EventType.USAGE]
    assert [(each["spent_tokens"], each["spent_usd"]) for each in usage] == [(15, None), (30, None)]
    assert events[-1].type is EventType.END
    assert events[-1].data["result"] == {"text": "The end."}


async def test_finish_ends_the_run_with_its_result_and_what_stands_behind_it_is_not_run(
    working: Agents,
) -> None:
    working.model.script(says("", ("finish", {"result": "42"}), WRITE))
    run = await working.do("Compute.")
    assert run.result == {"text": "42"}
    assert [step.status for step in await working.steps(run.run_id)] == [
        StepStatus.SUCCEEDED,
        StepStatus.PROPOSED,
    ]


async def test_a_plan_is_an_event_and_no_step_of_the_stream(working: Agents) -> None:
    working.model.script(says("", ("plan", {"items": ["look", "write"], "done": 1})), says("ok"))
    run = await working.do("Plan.")
    [plan] = [e for e in await working.events(run.run_id) if e.type is EventType.PLAN]
    assert plan.data == {"items": ["look", "write"], "done": 1}


@pytest.mark.parametrize(
    ("call", "told"),
    [
        (("file_read", '{"path": '), "no JSON"),
        (("delete_all", {}), "There is no tool 'delete_all'"),
        (("file_read", {"path": 3}), "path must be a string"),
        (("file_read", {"path": "a", "color": "red"}), "color"),
        (("file_read", {"path": "../etc/passwd"}), "path can't be"),
        (("finish", {"answer": 1}), "result is required"),
    ],
)
async def test_a_call_that_cannot_be_carried_out_is_told_and_not_run(
    working: Agents, call: tuple[str, Any], told: str
) -> None:
    working.model.script(says("", call), says("I see."))
    run = await working.do("Try.")
    assert run.status is RunStatus.SUCCEEDED
    [step] = await working.steps(run.run_id)
    assert step.status is StepStatus.REFUSED
    assert re.search(told, working.told()[0])
    statuses = [e.data["status"] for e in await working.events(run.run_id) if e.type is EventType.STEP]
    assert statuses == ["refused"]


async def test_an_error_of_a_tool_is_told_and_the_run_goes_on(working: Agents) -> None:
    working.model.script(says("", ("file_read", {"path": "nowhere"})), says("There is no such file."))
    run = await working.do("Read.")
    assert run.status is RunStatus.SUCCEEDED
    assert working.told()[0].startswith("Failed: ")


async def test_replies_without_any_use_end_the_run(working: Agents) -> None:
    working.model.script(says(""))
    run = await working.do("Say nothing.")
    assert run.error is not None
    assert run.error["code"] == "model_bad_reply"
    assert len(working.model.asked) == 3


async def test_calls_that_are_wrong_again_and_again_end_the_run(working: Agents) -> None:
    working.model.script(says("", ("nothing", {})))
    run = await working.do("Be wrong.")
    assert run.error is not None
    assert run.error["code"] == "model_bad_reply"
    assert len(working.model.asked) == 5


async def test_a_large_result_is_a_file(working: Agents) -> None:
    working.model.script(says("word " * 10_000))
    run = await working.do("Say much.")
    assert run.result is not None
    assert (run.result["file"], run.result["size"]) == ("result.md", 49_999)
    assert len(run.result["text"]) < 2_000


async def test_the_model_is_told_that_a_file_is_longer_than_what_it_sees(working: Agents) -> None:
    write = ("file_write", {"path": "long.txt", "content": "x" * 70_000})
    working.model.script(says("", write, ("file_read", {"path": "long.txt"})), says("ok"))
    await working.do("Read.")
    assert "65536 of 70000 bytes are shown" in working.told()[1]
