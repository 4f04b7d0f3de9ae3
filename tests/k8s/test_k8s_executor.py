"""The Kubernetes executor keeps the executor's promises, on a cluster of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
from executor_conformance import IGNORES_SIGTERM, Alive, ExecutorConformance, stopped_at, tool
from fake_cluster.cluster import FakeCluster
from local_tools import programs_of

from app.execution.executor import Executor
from tailrun.process.stop import StopReason


@pytest.fixture
def alive() -> Alive:
    return programs_of


class TestKubernetesExecutor(ExecutorConformance):
    @pytest.mark.parametrize("reason", [StopReason.DRAIN, StopReason.LOST])
    async def test_drain_and_loss_kill_without_grace(
        self, executor: Executor, cwd: Path, reason: StopReason, cluster: FakeCluster
    ) -> None:
        """Here they leave the program to the next worker instead."""
        what = tool(cwd, "python3", "-u", "-c", IGNORES_SIGTERM)
        result, took_s = await stopped_at(executor, what, "ready", reason)
        assert (result.exit_code, result.stopped) == (None, reason)
        assert took_s < 30  # the program sleeps for longer
        assert [job["metadata"].get("deletionTimestamp") for job in cluster.of("jobs")] == [None]
        assert programs_of(what.run_id)

    async def test_loss_ends_the_grace_of_a_cancel(self, executor: Executor, cwd: Path) -> None:
        """The cancel has gone out; the successor waits for its end."""
        what = tool(cwd, "python3", "-u", "-c", IGNORES_SIGTERM)
        result, took_s = await stopped_at(executor, what, "ready", StopReason.CANCEL, StopReason.LOST)
        assert result.stopped is StopReason.LOST
        assert took_s < 30  # the program sleeps for longer

    @pytest.mark.skip(reason="a kubelet never stops a program at its pipe: the node's log takes everything")
    async def test_a_slow_sink_stops_the_program_at_its_pipe(self, executor: Executor, cwd: Path) -> None: ...
