"""What an agent may spend is held before it is spent: a call that would pass a limit is never sent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.agents import Agents, says

from app.core.models import RunStatus

PRICES = "scripted: {input: 1, output: 10}\n"


async def ended_by_budget(agents: Agents, budget: dict[str, Any], word: str) -> int:
    """Run an agent that never ends by itself; return how many calls its model's server saw."""
    agents.start_worker()
    agents.model.script(
        *(says("on and on", ("file_write", {"path": f"{n}.txt", "content": ""})) for n in range(100))
    )
    run = await agents.do("Go.", agent={"budget": budget})
    assert run.status is RunStatus.FAILED
    assert run.error is not None
    assert run.error["code"] == "budget"
    assert word in run.error["message"]
    return len(agents.model.asked)


@pytest.mark.parametrize("limit", ["usd", "tokens", "calls"])
async def test_nothing_is_sent_with_a_budget_of_nothing(agents: Agents, limit: str, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES)
    agents.settings["LLM_PRICES_FILE"] = str(tmp_path / "prices.yaml")
    assert await ended_by_budget(agents, {limit: 0}, limit) == 0


async def test_no_call_passes_the_limit_of_dollars(agents: Agents, tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text(PRICES)
    agents.settings["LLM_PRICES_FILE"] = str(tmp_path / "prices.yaml")
    assert await ended_by_budget(agents, {"usd": 0.003}, "usd") >= 1
    for asked in agents.model.asked:  # each is shortened to what was left: 10 millionths a token
        assert asked.body["max_tokens"] * 10 <= 3_000


async def test_no_call_passes_the_limit_of_tokens(agents: Agents) -> None:
    assert await ended_by_budget(agents, {"tokens": 2_000}, "tokens") >= 1
    spent = 0
    for asked in agents.model.asked:
        spent += 15
        assert asked.body["max_tokens"] <= 2_000 - spent + 15


async def test_as_many_calls_are_made_as_may_be(agents: Agents) -> None:
    assert await ended_by_budget(agents, {"calls": 3}, "calls") == 3


async def test_as_many_tools_are_called_as_may_be(agents: Agents) -> None:
    assert await ended_by_budget(agents, {"tool_calls": 2}, "calls of tools") == 3
    run_id = agents.submitted[-1]
    done = [step.status for step in await agents.steps(run_id)]
    assert done == ["succeeded", "succeeded", "proposed"]


async def test_a_run_never_gets_more_than_its_deployment_allows(agents: Agents) -> None:
    agents.settings["AGENT_MAX_CALLS"] = "2"
    assert await ended_by_budget(agents, {"calls": 100}, "calls") == 2


async def test_the_model_is_told_when_little_is_left(agents: Agents) -> None:
    assert await ended_by_budget(agents, {"calls": 5}, "calls") == 5
    last = [asked.body["messages"][-1]["content"] for asked in agents.model.asked]
    assert ["left for this task: 1 calls of the model" in text for text in last] == [False] * 4 + [True]
