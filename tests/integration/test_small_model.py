"""A real model's server: tokens as they come, its own counts, a stop that it sees, a full window."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from support.agents import Agents
from support.small_model import SmallModel, missing

from app.agent.model_tools import tool_specs
from app.core.models import RunStatus, StepStatus
from app.llm.client import ModelClient
from app.llm.failures import ContextOverflow
from app.llm.model import Delta, Finish, ModelRequest, Piece, Reply, ToolTurn, UserTurn
from app.llm.models_file import ModelConfig

pytestmark = [pytest.mark.deep, pytest.mark.skipif(bool(missing()), reason=missing() or "-")]

CONTEXT = 4096
TOOLS = tool_specs(("file_write", "file_read"))


@pytest.fixture(scope="module")
def server() -> Iterator[SmallModel]:
    with SmallModel(CONTEXT) as server:
        yield server


@pytest.fixture
async def model(server: SmallModel) -> AsyncIterator[ModelClient]:
    body: dict[str, Any] = {"temperature": 0}
    client = ModelClient(
        ModelConfig(name="small", model="small", url=server.url, context_tokens=CONTEXT, extra_body=body)
    )
    yield client
    await client.aclose()


async def call(model: ModelClient, request: ModelRequest) -> list[Piece]:
    async with model.stream(request) as pieces:
        return [piece async for piece in pieces]


async def test_words_come_one_by_one_and_the_server_counts_them(model: ModelClient) -> None:
    request = ModelRequest("You are helpful.", (UserTurn("Name three fruits."),), max_output_tokens=40)
    *deltas, reply = await call(model, request)
    assert isinstance(reply, Reply)
    words = [delta.text for delta in deltas if isinstance(delta, Delta)]
    assert len(words) >= 5
    assert "".join(words).strip() == reply.text.strip()
    assert not reply.usage.estimated
    assert 1 < reply.usage.output <= 40
    assert reply.usage.input > 10


async def test_a_call_of_a_tool_is_one_of_its_schema_and_its_result_is_answered(model: ModelClient) -> None:
    asked = UserTurn("Write hello into the file note.txt")
    request = ModelRequest("You are helpful.", (asked,), TOOLS, max_output_tokens=200)
    reply = (await call(model, request))[-1]
    assert isinstance(reply, Reply)
    assert reply.finish is Finish.CALLS
    [written] = reply.calls
    assert (written.name, written.problem) == ("file_write", "")
    assert written.arguments == {"path": "note.txt", "content": "hello"}
    turns = (asked, reply, ToolTurn(written.id, "wrote 5 bytes"))
    answer = (await call(model, ModelRequest("You are helpful.", turns, TOOLS, max_output_tokens=40)))[-1]
    assert isinstance(answer, Reply)
    assert (answer.finish, answer.calls) == (Finish.STOP, ())
    assert answer.text


async def test_who_leaves_a_reply_ends_its_generation(model: ModelClient, server: SmallModel) -> None:
    request = ModelRequest("You are helpful.", (UserTurn("Tell a long story."),), max_output_tokens=1500)
    async with model.stream(request) as pieces:
        await anext(pieces)
        assert await asyncio.to_thread(lambda: server.generating)
    left = time.monotonic()
    while await asyncio.to_thread(lambda: server.generating):
        assert time.monotonic() - left < 1, "it goes on a second after its reader has left"
        await asyncio.sleep(0.02)


async def test_a_conversation_that_is_too_long_is_said_to_be(model: ModelClient) -> None:
    long = ModelRequest("You are helpful.", (UserTurn("word " * 2 * CONTEXT),), max_output_tokens=10)
    with pytest.raises(ContextOverflow, match="exceeds the available context size"):
        await call(model, long)


async def test_a_whole_run_of_an_agent(agents: Agents, server: SmallModel) -> None:
    """A real reply asks for a file, the file is there, and a real reply ends the run."""
    agents.start_worker(
        LLM_URL=server.url,
        LLM_CONTEXT_TOKENS=str(CONTEXT),
        LLM_MAX_OUTPUT_TOKENS="100",
        LLM_EXTRA_BODY='{"temperature": 0}',
    )
    run_id = await agents.submit(
        "Write hello into the file note.txt", agent={"tools": ["file_write", "file_read"]}
    )
    run = await agents.ended(run_id, 300)
    assert (run.status, run.error) == (RunStatus.SUCCEEDED, None)
    first, *_ = await agents.steps(run_id)
    assert (first.tool, first.status) == ("file_write", StepStatus.SUCCEEDED)
    calls = await agents.calls_of(run_id)
    assert all(call.input_tokens > 100 and not call.estimated for call in calls)
    words = [event for event in await agents.events(run_id) if event.stream == "model"]
    assert words
