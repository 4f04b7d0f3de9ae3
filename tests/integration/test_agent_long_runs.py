"""Long conversations are cut down so that they fit; an agent that gets nowhere is ended, and why is told."""

from __future__ import annotations

from typing import Any

import pytest
from support.agents import Agents, says
from support.scripted_model import error

from app.core.agent_records import CallStatus
from app.core.models import RunStatus

FREE = {"approve": []}
LOUD = "for i in $(seq 400); do echo line $i of a long output {n}; done"


def size(body: dict[str, Any]) -> int:
    return sum(len(str(each.get("content") or "")) for each in body["messages"])


async def test_old_results_are_shortened_and_then_left_out_before_the_window_is_full(
    agents: Agents,
) -> None:
    """Every request fits into the window; the prompt and the newest results are always in it."""
    agents.settings |= {"LLM_CONTEXT_TOKENS": "16000", "LLM_MAX_OUTPUT_TOKENS": "1000"}
    agents.start_worker()
    agents.model.script(
        *[says(f"{n}", ("shell", {"command": LOUD.format(n=n)})) for n in range(20)], says("solved")
    )
    run = await agents.do("Solve it.", agent=FREE)
    assert run.result == {"text": "solved"}
    bodies = [asked.body for asked in agents.model.asked]
    assert max(size(body) for body in bodies) / 4 < 16_000
    for n, body in enumerate(bodies[1:]):
        assert body["messages"][1]["content"].startswith("Solve it.")
        assert f"line 400 of a long output {n}" in body["messages"][-1]["content"]
    views = [call.view or {} for call in await agents.calls_of(run.run_id)]
    assert views[-1]["dropped"] > 0
    assert [view.get("stubs", 0) for view in views] == sorted(view.get("stubs", 0) for view in views)


async def test_what_the_server_finds_too_long_is_cut_down_and_sent_again(agents: Agents) -> None:
    agents.start_worker()
    loud = ("shell", {"command": LOUD.format(n=0)})
    too_long = error(
        400, "This model's maximum context length is 4096 tokens", code="context_length_exceeded"
    )
    agents.model.script(says("", loud), says("", loud), too_long, says("solved"))
    run = await agents.do("Solve it.", agent=FREE)
    assert run.status is RunStatus.SUCCEEDED
    sizes = [size(asked.body) for asked in agents.model.asked]
    assert sizes[3] < sizes[2] * 0.6
    statuses = [call.status for call in await agents.calls_of(run.run_id)]
    assert statuses == [CallStatus.ANSWERED, CallStatus.ANSWERED, CallStatus.FAILED, CallStatus.ANSWERED]


async def test_what_never_fits_ends_the_run(agents: Agents) -> None:
    agents.start_worker()
    agents.model.script(error(400, "too long", code="context_length_exceeded"))
    run = await agents.do("Solve it.")
    assert run.error is not None
    assert run.error["code"] == "context_overflow"
    assert len(agents.model.asked) == 4


@pytest.mark.parametrize("pair", [False, True])
async def test_an_agent_that_repeats_itself_is_told_so_and_then_ended(agents: Agents, pair: bool) -> None:
    agents.start_worker()
    calls = [("file_list", {}), ("file_read", {"path": "nowhere"})][: 2 if pair else 1]
    agents.model.script(*[says("again", calls[n % len(calls)]) for n in range(30)])
    run = await agents.do("Go.")
    assert run.error is not None
    assert run.error["code"] == "stuck_loop"
    told = ["times in" in asked.body["messages"][-1]["content"] for asked in agents.model.asked]
    assert told == [n >= 3 * len(calls) for n in range(5 * len(calls))]


SCHEMA = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


async def test_a_result_of_another_form_is_told_and_may_be_mended(agents: Agents) -> None:
    agents.start_worker()
    agents.model.script(
        says("It is four."),
        says("", ("finish", {"result": {"n": "four"}})),
        says("", ("finish", {"result": {"n": 4}})),
    )
    run = await agents.do("Count.", agent={"result_schema": SCHEMA})
    assert run.result == {"n": 4}
    assert "Call `finish`" in agents.model.asked[1].body["messages"][-1]["content"]
    assert "is not of type" in agents.told()[0]


@pytest.mark.parametrize("call", [[], [("finish", {"result": {"n": "four"}})]])
async def test_a_result_that_never_has_its_form_ends_the_run(agents: Agents, call: list[Any]) -> None:
    agents.start_worker()
    agents.model.script(says("four", *call))
    run = await agents.do("Count.", agent={"result_schema": SCHEMA})
    assert run.error is not None
    assert run.error["code"] == "invalid_result"
    assert len(agents.model.asked) == 3


async def test_a_run_that_continues_another_has_its_conversation(agents: Agents) -> None:
    agents.start_worker()
    agents.model.script(
        says("I look.", ("file_list", {})), says("It is blue."), says("Because of the sky."), says("Still.")
    )
    first = await agents.do("Which colour?")
    second = await agents.do("Why?", agent={"continue_of": first.run_id})
    assert second.result == {"text": "Because of the sky."}
    third = await agents.do("Sure?", agent={"continue_of": second.run_id})
    assert third.result == {"text": "Still."}
    roles = [each["role"] for each in agents.model.asked[-1].body["messages"]]
    assert roles == ["system", "user", "assistant", "tool", "assistant", "user", "assistant", "user"]


async def test_a_conversation_is_not_continued_for_another_user(agents: Agents) -> None:
    agents.start_worker()
    agents.model.script(says("a secret"), says("Who are you?"))
    first = await agents.do("Tell me.")
    await agents.do("Go on.", agent={"continue_of": first.run_id}, user_id="eve")
    roles = [each["role"] for each in agents.model.asked[-1].body["messages"]]
    assert roles == ["system", "user"]
