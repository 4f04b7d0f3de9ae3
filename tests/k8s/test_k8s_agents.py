"""An agent's program in a pod outlives its worker: the next one finds it, and it runs once."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_cluster.cluster import FakeCluster
from fake_cluster.faults import Fault
from fake_cluster.http import refusal
from support.agents import Agents, says
from support.stack import Stack
from test_k8s_crashes import LINES, SCRIPT, Workers, created

from app.core.models import StepStatus


@pytest.fixture
async def agents(api: Stack, tmp_path: Path) -> AsyncIterator[Agents]:
    (tmp_path / "agents").mkdir()
    agents = Agents(tmp_path / "agents", api.redis.url, api.database_url)
    yield agents
    await agents.close()


@pytest.fixture
def workers(api: Stack, cluster: FakeCluster, tmp_path: Path, agents: Agents) -> Iterator[Workers]:
    workers = Workers(api, cluster, tmp_path)
    workers.env |= {name: agents.settings[name] for name in ("LLM_URL", "LLM_MODEL", "LLM_KEY")}
    yield workers
    workers.stop()


@pytest.mark.parametrize(("method", "path", "done"), [("POST", "/jobs$", False), ("GET", "/log$", True)])
async def test_a_worker_that_is_killed_leaves_one_job_and_one_result(
    workers: Workers, agents: Agents, method: str, path: str, done: bool
) -> None:
    """Before the Job was made, and while its lines come."""
    first = workers.add()

    def die() -> Any:
        first.popen.kill()
        return refusal(503, "too late")

    killed = Fault(method, path, after=first.popen.kill) if done else Fault(method, path, answer=die)
    workers.cluster.faults.append(killed)
    agents.model.script(says("I print.", ("shell", {"command": SCRIPT})), says("done"))
    run_id = await agents.submit("Print.")
    await agents.until(lambda: first.popen.poll() is not None, "the worker's death")
    workers.add()
    run = await agents.ended(run_id)
    assert run.result == {"text": "done"}
    assert len(agents.model.asked) == 2
    assert len({request.json()["metadata"]["name"] for request in created(workers.cluster, "jobs")}) == 1
    assert len(workers.cluster.pods) == 1
    lines = [e.content for e in await agents.events(run_id) if e.stream == "stdout"]
    assert lines == LINES
    [step] = await agents.steps(run_id)
    assert step.status is StepStatus.SUCCEEDED
    assert "line 30" in agents.told()[0]
