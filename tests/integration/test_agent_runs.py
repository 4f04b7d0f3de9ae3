"""Whole runs: from what was asked for, over its steps, to files and records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from support.agent_context import Place, open_place

from app.agent.planner import NOT_CARRIED_OUT, plan
from app.agent.supervisor import Drained, supervise
from app.core.events import EventType
from app.core.models import StepStatus
from tailrun.process.lines import Level
from tailrun.process.stop import StopReason, StopToken


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with open_place(tmp_path) as place:
        yield place


async def test_a_smoke_run_warns_first_and_succeeds(place: Place) -> None:
    place.run.spec.update(prompt="Schreibe ein Gedicht über Bäume\r\n", planner="smoke")
    assert await place.go() == 0
    assert place.log.trace[0] == ("say", (None, Level.WARNING, NOT_CARRIED_OUT))
    assert await place.content("prompt.txt") == "Schreibe ein Gedicht über Bäume\r\n".encode()
    assert "prompt: 35 bytes in prompt.txt" in place.log.text
    assert {record.status for record in place.log.records.values()} == {StepStatus.SUCCEEDED}


async def test_a_fenced_run_with_a_tolerated_failure_succeeds(place: Place) -> None:
    place.run.spec["prompt"] = """Please:
```yaml
- tool: file_write
  args: {path: words.txt, content: "eins zwei drei"}
- id: oops
  tool: file_read
  args: {path: nowhere.txt}
  continue_on_error: true
- tool: shell
  args:
    command: |
      wc -w < words.txt | tee count.txt
```
"""
    assert await place.go() == 0
    statuses = {step_id: record.status for step_id, record in place.log.records.items()}
    assert statuses == {
        "s1": StepStatus.SUCCEEDED,
        "oops": StepStatus.FAILED,
        "s3": StepStatus.SUCCEEDED,
    }
    artifacts = [data["path"] for _, _, _, data in place.log.of(EventType.ARTIFACT)]
    assert artifacts == ["words.txt", "count.txt"]


async def test_a_run_that_is_drained_in_mid_step_goes_on_from_that_step(place: Place) -> None:
    """What the first attempt finished is not done twice."""
    place.run.spec["steps"] = [
        {"tool": "shell", "args": {"command": "echo once >> log.txt"}},
        {"tool": "shell", "args": {"command": "[ -e again ] || { touch again; echo ready; sleep 100; }"}},
    ]
    first = asyncio.create_task(place.go())
    await place.log.printed("ready")
    place.stop.stop(StopReason.DRAIN)
    with pytest.raises(Drained):
        await first
    place.stop, earlier = StopToken(), dict(place.log.records)
    exit_code = await supervise(
        place.run,
        plan(place.run),
        done=earlier,
        log=place.log,
        tools=place.router,
        stop=place.stop,
        clock=lambda: 0,
    )
    assert exit_code == 0
    assert await place.content("log.txt") == b"once\n"
    assert [text for _, text in place.log.said] == [
        "s1 succeeded in attempt 1: not run again",
        "s2 was interrupted in attempt 1: it starts again",
    ]
