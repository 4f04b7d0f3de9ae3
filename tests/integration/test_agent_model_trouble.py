"""What goes wrong between an agent and its model, and what is done about a reply on its way."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from support.agents import Agents, says
from support.scripted_model import Answer, Cut, Repeat, Stall, Until, chat_reply, chunk, error

from app.core.agent_records import CallStatus, MessageMode
from app.core.clock import now_us
from app.core.events import EventType
from app.core.models import RunStatus

WORDS = chunk({"content": "and "})
ENDLESS = Answer(WORDS, Repeat(WORDS, 0.02))
BROKEN: dict[str, Answer] = {
    "500": error(500, "out of order"),
    "an error in the stream": Answer(WORDS, b'data: {"error": {"message": "overloaded"}}\n\n'),
    "cut": Answer(WORDS, Cut()),
    "silent": Answer(WORDS, Stall()),
    "ended early": Answer(WORDS),
}


async def first_words(agents: Agents, run_id: str) -> None:
    await agents.until(lambda: agents.model.asked and agents.model.asked[-1].sent > len(WORDS), "words")


async def models(agents: Agents, run_id: str) -> list[dict[str, Any]]:
    return [e.data for e in await agents.events(run_id) if e.type is EventType.MODEL]


async def test_a_cancel_in_the_middle_of_a_reply_ends_the_generation(agents: Agents) -> None:
    """The run ends soon, the call is counted, and the server is not left sending."""
    agents.start_worker()
    agents.model.script(ENDLESS)
    run_id = await agents.submit("Go.")
    await first_words(agents, run_id)
    began = time.monotonic()
    await agents.cancel(run_id)
    assert await asyncio.to_thread(agents.model.asked[0].ended.wait, 60)
    run = await agents.ended(run_id)
    assert time.monotonic() - began < 20
    assert agents.model.asked[0].hung_up
    assert run.status is RunStatus.CANCELLED
    [call] = await agents.calls_of(run_id)
    assert (call.status, call.estimated) == (CallStatus.CANCELLED, True)
    assert 0 < call.tokens < call.reserved_tokens
    assert run.spent_tokens == call.tokens


async def test_what_does_not_wait_cuts_a_reply_off_and_is_read_at_once(agents: Agents) -> None:
    agents.start_worker()
    agents.model.script(ENDLESS, says("Stopped."))
    run_id = await agents.submit("Go.")
    await first_words(agents, run_id)
    await agents.say(run_id, "Later.")
    await agents.say(run_id, "Stop that.", MessageMode.INTERRUPT)
    run = await agents.ended(run_id)
    assert run.result == {"text": "Stopped."}
    assert agents.model.asked[0].hung_up
    last = [m["content"] for m in agents.model.asked[1].body["messages"] if m["role"] == "user"]
    assert "Later." in last[-1] + last[-2]
    assert "Stop that." in last[-1]
    statuses = [call.status for call in await agents.calls_of(run_id)]
    assert statuses == [CallStatus.CANCELLED, CallStatus.ANSWERED]


@pytest.mark.parametrize("trouble", BROKEN)
async def test_what_breaks_is_tried_again_and_the_words_so_far_are_void(agents: Agents, trouble: str) -> None:
    agents.settings["LLM_IDLE_S"] = "0.5"
    agents.start_worker()
    agents.model.script(BROKEN[trouble], says("fine"))
    run = await agents.do("Go.")
    assert run.result == {"text": "fine"}
    assert [each["status"] for each in await models(agents, run.run_id)] == ["sent", "retry", "answered"]
    [call] = await agents.calls_of(run.run_id)
    assert call.tries == 2
    assert call.estimated is (trouble != "500")


async def test_a_model_that_stays_away_ends_the_attempt_after_as_many_requests_as_said(
    agents: Agents,
) -> None:
    agents.settings["LLM_RETRIES"] = "1"
    agents.start_worker()
    agents.model.script(error(503, "away"))
    run = await agents.do("Go.")
    assert run.error is not None
    assert run.error["code"] == "model_unavailable"
    assert len(agents.model.asked) == 2


async def test_what_the_server_refuses_is_final(agents: Agents) -> None:
    agents.start_worker()
    agents.model.script(error(401, "wrong key sk-very-secret-key-of-the-model"))
    run = await agents.do("Go.", max_attempts=3)
    assert run.error is not None
    assert (run.error["code"], run.attempt) == ("model_rejected", 1)
    assert "very-secret" not in str(run.error)


async def test_a_short_pause_is_waited_for(agents: Agents) -> None:
    agents.start_worker()
    agents.model.script(error(429, "slow down", retry_after=1), says("thanks"))
    run = await agents.do("Go.")
    assert (run.result, run.attempt) == ({"text": "thanks"}, 1)


async def test_a_long_pause_frees_the_worker_and_counts_no_try(agents: Agents) -> None:
    agents.settings |= {"WORKER_AGENTS": "1", "LLM_PAUSE_MAX_S": "3600"}
    agents.start_worker()
    agents.model.script(error(429, "slow down", retry_after=300), says("never asked"))
    run_id = await agents.submit("Go.")

    async def given_back() -> bool:
        run = await agents.run(run_id)
        return run.status is RunStatus.QUEUED and run.next_attempt_at is not None

    await agents.until(given_back, "the run to be given back")
    run = await agents.run(run_id)
    assert (run.retries, run.worker_id) == (0, None)
    assert 200 < ((run.next_attempt_at or 0) - now_us()) / 1_000_000 <= 300
    [call] = await agents.calls_of(run_id)
    assert (call.status, call.tokens) == (CallStatus.FAILED, 0)


async def test_a_worker_without_the_model_gives_the_run_back_to_one_that_has_it(agents: Agents) -> None:
    """So does one of a release that does not know how the run is planned."""
    agents.model.script(says("here I am"))
    without = agents.start_worker(LLM_URL="", LLM_MODEL="", LLM_KEY="")
    run_id = await agents.submit("Go.")

    async def given_back() -> bool:
        return (await agents.run(run_id)).attempt >= 1

    await agents.until(given_back, "the first worker to give it back")
    without.terminate()
    await agents.died(without)
    agents.start_worker()
    run = await agents.ended(run_id)
    assert run.result == {"text": "here I am"}
    assert (run.retries, run.redeliveries) == (0, 0)


async def test_a_planner_of_a_newer_release_is_given_back(agents: Agents) -> None:
    agents.start_worker()
    run_id = await agents.submit("Go.", spec={"planner": "oracle"})

    async def given_back() -> bool:
        run = await agents.run(run_id)
        return run.status is RunStatus.QUEUED and run.attempt >= 1

    await agents.until(given_back, "the run to be given back")
    run = await agents.run(run_id)
    assert run.retries == 0
    assert run.error is not None
    assert "planner 'oracle'" in run.error["message"]


async def test_secrets_are_in_nothing_that_a_run_leaves(agents: Agents) -> None:
    """Neither those of the run's environment, which a program prints, nor the model's key."""
    secret = "hunter2-of-the-run"
    agents.start_worker()
    agents.model.script(
        says(
            f"It is {secret} and sk-very-secret-key-of-the-model.", ("shell", {"command": "echo $MY_TOKEN"})
        ),
        says(f"The token is {secret}."),
    )
    run = await agents.do("Go.", agent={"approve": []}, spec={"env": {"MY_TOKEN": secret}})
    left = [
        str(run.result),
        str(await agents.events(run.run_id)),
        str(await agents.steps(run.run_id)),
        *agents.told(),
    ]
    assert [text for text in left if secret in text or "very-secret-key" in text] == []
    assert "***" in agents.told()[0]


async def test_agents_that_wait_for_their_model_take_no_place_of_a_program(agents: Agents) -> None:
    """There is one place, and three agents are at their model at once, but never more than may be."""
    agents.settings |= {"WORKER_CONCURRENCY": "1", "WORKER_AGENTS": "3"}
    agents.start_worker()
    go_on = threading.Event()
    agents.model.script(Answer(Until(go_on), chat_reply("done")))
    runs = [await agents.submit("Go.") for _ in range(5)]
    await agents.until(lambda: len(agents.model.asked) == 3, "three at once")
    assert sum([(await agents.run(run_id)).status is RunStatus.RUNNING for run_id in runs]) == 3
    go_on.set()
    ended = [await agents.ended(run_id) for run_id in runs]
    assert {run.status for run in ended} == {RunStatus.SUCCEEDED}


async def test_programs_of_agents_run_as_many_at_once_as_there_are_places(agents: Agents) -> None:
    agents.settings |= {"WORKER_CONCURRENCY": "1"}
    agents.start_worker()
    marks = agents.folder / "marks"
    program = f"echo in >> {marks}; sleep 0.3; echo out >> {marks}"
    agents.model.script(*[says("", ("shell", {"command": program}))] * 3, says("done"))
    runs = [await agents.submit("Go.", agent={"approve": []}) for _ in range(3)]
    ended = [await agents.ended(run_id) for run_id in runs]
    assert {run.status for run in ended} == {RunStatus.SUCCEEDED}
    assert marks.read_text().split() == ["in", "out"] * 3
