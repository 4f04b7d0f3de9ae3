"""What goes wrong in a cluster, and what the executor makes of it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from executor_conformance import Recorder, ended, shell, stopped_at, tool
from fake_cluster.cluster import FakeCluster
from fake_cluster.faults import Fault
from fake_cluster.http import refusal
from support.api_server import changed

from app.core.models import ResourceRequest
from app.execution.executor import CannotRun, ToolRun
from app.k8s import monitor
from app.k8s.client import ClusterAway
from app.k8s.profile import Profiles
from app.k8s.spec import job_name
from tailrun.process.errors import ErrorCode, RunFailure
from tailrun.process.lines import Line, Stream
from tailrun.process.stop import StopReason, StopToken

BAD_GATEWAY = 502
FORBIDDEN = 403


@pytest.fixture
def hurried(executor: Any) -> Any:
    """An executor without much patience."""
    terms = executor._crew.terms
    short = terms.kubernetes.model_copy(update={"schedule_s": 0.5, "start_s": 0.5, "upload_s": 5})
    executor._crew = replace(executor._crew, terms=replace(terms, grace_s=1, kubernetes=short))
    return executor


async def failure(executor: Any, what: ToolRun, sink: Recorder | None = None) -> RunFailure:
    with pytest.raises(RunFailure) as caught:
        async with asyncio.timeout(60):
            await executor.run(what, sink or Recorder(), StopToken())
    return caught.value


async def at_line(executor: Any, what: ToolRun, line: str, act: Callable[[], Any]) -> asyncio.Task[Any]:
    """Start `what`, wait for a line, then do something to the cluster."""
    sink = Recorder()
    task = asyncio.create_task(executor.run(what, sink, StopToken()))
    await sink.until(line)
    await asyncio.to_thread(act)
    return task


async def test_quota_is_told_and_then_a_resource_limit(hurried: Any, cwd: Path, cluster: FakeCluster) -> None:
    cluster.quota = 'pods "x" is forbidden: exceeded quota: tools'
    sink = Recorder()
    found = await failure(hurried, shell(cwd, "true"), sink)
    assert found.code is ErrorCode.RESOURCE_LIMIT
    assert any("exceeded quota" in line for line in sink.of(Stream.SYSTEM))


async def test_quota_that_is_freed_lets_it_run(executor: Any, cwd: Path, cluster: FakeCluster) -> None:
    cluster.quota = 'pods "x" is forbidden: exceeded quota: tools'
    sink = Recorder()
    task = asyncio.create_task(executor.run(shell(cwd, "echo ran"), sink, StopToken()))
    while not sink.of(Stream.SYSTEM):
        await asyncio.sleep(0.01)
    cluster.quota = None
    async with asyncio.timeout(60):
        assert (await task).exit_code == 0
    assert sink.of(Stream.STDOUT) == ["ran"]


async def test_a_pod_that_policy_refuses_fails_for_good(
    executor: Any, cwd: Path, cluster: FakeCluster
) -> None:
    cluster.policy = 'pods "x" is forbidden: violates PodSecurity "restricted:latest"'
    found = await failure(executor, shell(cwd, "true"))
    assert (found.code, found.retried) == (ErrorCode.START_FAILED, False)


async def test_no_node_is_told_and_then_unschedulable(hurried: Any, cwd: Path, cluster: FakeCluster) -> None:
    cluster.node.unschedulable = True
    sink = Recorder()
    assert (await failure(hurried, shell(cwd, "true"), sink)).code is ErrorCode.UNSCHEDULABLE
    assert any("0/3 nodes are available" in line for line in sink.of(Stream.SYSTEM))


async def test_an_image_that_is_not_there_fails_for_good(
    executor: Any, cwd: Path, cluster: FakeCluster
) -> None:
    cluster.node.images_missing.add("toolbox")
    found = await failure(executor, shell(cwd, "true"))
    assert (found.code, found.retried) == (ErrorCode.IMAGE_PULL, False)


async def test_a_slow_start_is_waited_for(executor: Any, cwd: Path, cluster: FakeCluster) -> None:
    cluster.node.pull_s, cluster.node.start_s = 0.5, 0.5
    result, sink = await ended(executor, shell(cwd, "echo ran"))
    assert (result.exit_code, sink.of(Stream.STDOUT)) == (0, ["ran"])
    stages = list(result.stages.items())
    assert [name for name, _ in stages] == ["created", "scheduled", "pulled", "synced", "first_line", "ended"]
    assert [at for _, at in stages] == sorted(at for _, at in stages)


async def test_out_of_memory_keeps_its_lines_and_files(
    executor: Any, cwd: Path, cluster: FakeCluster
) -> None:
    what = shell(cwd, "echo made > file; echo ready; sleep 60")
    pod = f"{job_name(what)}"
    task = await at_line(executor, what, "ready", lambda: cluster.pod_of(pod).kill("OOMKilled"))
    with pytest.raises(RunFailure) as caught:
        async with asyncio.timeout(60):
            await task
    assert caught.value.code is ErrorCode.OOM_KILLED
    assert (cwd / "file").read_text() == "made\n"


async def test_a_pod_deleted_by_force_is_a_lost_worker(
    executor: Any, cwd: Path, cluster: FakeCluster
) -> None:
    what = shell(cwd, "echo ready; sleep 60")

    def delete() -> None:
        cluster.do(cluster.delete_pod(cluster.pod_of(job_name(what)).name, force=True))

    task = await at_line(executor, what, "ready", delete)
    with pytest.raises(RunFailure) as caught:
        async with asyncio.timeout(60):
            await task
    assert caught.value.code is ErrorCode.WORKER_LOST


async def test_an_eviction_has_its_own_name(executor: Any, cwd: Path, cluster: FakeCluster) -> None:
    what = shell(cwd, "echo ready; sleep 60")

    def evict() -> None:
        pod = cluster.pod_of(job_name(what))
        condition = {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}
        pod.pod["status"]["conditions"].append(condition)
        cluster.do(cluster.objects.changed("pods", "MODIFIED", pod.pod))
        pod.kill("Error")

    task = await at_line(executor, what, "ready", evict)
    with pytest.raises(RunFailure) as caught:
        async with asyncio.timeout(60):
            await task
    assert caught.value.code is ErrorCode.EVICTED


@pytest.mark.parametrize("status", [429, 500, BAD_GATEWAY, 503])
async def test_a_busy_api_server_is_asked_again(
    executor: Any, cwd: Path, cluster: FakeCluster, status: int
) -> None:
    def busy() -> Any:
        return refusal(status, "later", Retry_After="0")

    cluster.faults += [Fault("POST", path, answer=busy, times=2) for path in ("/jobs$", "/secrets$")]
    result, sink = await ended(executor, shell(cwd, "echo ran"))
    assert (result.exit_code, sink.of(Stream.STDOUT)) == (0, ["ran"])


async def test_a_create_whose_answer_is_lost_makes_one_job(
    executor: Any, cwd: Path, cluster: FakeCluster
) -> None:
    cluster.faults += [Fault("POST", path, cut_after=lambda: 0) for path in ("/jobs$", "/secrets$")]
    result, sink = await ended(executor, shell(cwd, "echo ran"))
    assert (result.exit_code, sink.of(Stream.STDOUT)) == (0, ["ran"])
    assert len(cluster.of("jobs")) == 1


async def test_a_token_that_was_replaced_is_read_again(
    executor: Any, cwd: Path, cluster: FakeCluster, tmp_path: Path
) -> None:
    cluster.token = "another-token"
    (tmp_path / "token").write_text("another-token")
    result, _ = await ended(executor, shell(cwd, "true"))
    assert result.exit_code == 0


async def test_watches_that_are_too_old_start_again(executor: Any, cwd: Path, cluster: FakeCluster) -> None:
    """410 in mid-run: the change that nobody saw is in the next list."""
    what = shell(cwd, "echo ready; while [ ! -e go ]; do sleep 0.05; done; echo end")
    sink = Recorder()
    task = asyncio.create_task(executor.run(what, sink, StopToken()))
    await sink.until("ready")
    cluster.objects.forget_history()
    (cluster.pod_of(job_name(what)).folder / "workspace/go").touch()
    async with asyncio.timeout(60):
        assert (await task).exit_code == 0
    assert sink.of(Stream.STDOUT) == ["ready", "end"]


async def test_cut_watches_are_taken_up(executor: Any, cwd: Path, cluster: FakeCluster) -> None:
    cluster.faults += [Fault("GET", f"/{kind}$", cut_after=lambda: 100, times=3) for kind in ("pods", "jobs")]
    result, sink = await ended(executor, shell(cwd, "echo ran"))
    assert (result.exit_code, sink.of(Stream.STDOUT)) == (0, ["ran"])


async def test_a_second_attempt_goes_on_where_the_first_one_was(
    executor: Any, cwd: Path, cluster: FakeCluster
) -> None:
    """From the `src` of its last line; the Job, its files and its result are the same."""
    wait = "while [ ! -e go ]; do sleep 0.05; done"
    what = shell(cwd, f"for i in 1 2 3; do echo $i; done; {wait}; echo 4 > f; echo 4")
    first, stop = Recorder(), StopToken()
    task = asyncio.create_task(executor.run(what, first, stop))
    await first.until("3")
    stop.stop(StopReason.LOST)
    assert (await task).stopped is StopReason.LOST
    src = next(line.src for line in first.lines if line.content == "2")
    (cluster.pod_of(job_name(what)).folder / "workspace/go").touch()
    result, sink = await ended(executor, replace(what, attempt=2, cursor=src))
    assert (result.exit_code, sink.of(Stream.STDOUT)) == (0, ["3", "4"])
    assert (cwd / "f").read_text() == "4\n"
    again, sink = await ended(executor, replace(what, attempt=3))
    assert (again.exit_code, sink.of(Stream.STDOUT)) == (0, ["1", "2", "3", "4"])
    assert len([r for r in cluster.requests if r.method == "POST" and r.path.endswith("/jobs")]) == 1


async def test_a_job_that_had_printed_and_is_gone_was_lost(executor: Any, cwd: Path) -> None:
    found = await failure(executor, replace(shell(cwd, "true"), attempt=2, cursor="1:7"))
    assert found.code is ErrorCode.WORKER_LOST


async def test_an_image_without_our_wrapper_runs_raw(executor: Any, cwd: Path, cluster: FakeCluster) -> None:
    """One stream, the kubelet's times; its files are there before it starts, and come back."""
    allowed = changed(executor.settings, tool_images_allowed="python:*")
    executor._crew = replace(executor._crew, profiles=Profiles(allowed.kubernetes))
    (cwd / "in").write_text("here")
    what = replace(
        shell(cwd, "cat in; echo; echo err >&2; echo out > f; exit 4"),
        wants=ResourceRequest(image="python:3"),
    )
    result, sink = await ended(executor, what)
    assert (result.exit_code, sink.of(Stream.STDOUT)) == (4, ["here", "err"])
    assert (cwd / "f").read_text() == "out\n"
    again, sink = await ended(executor, replace(what, attempt=2, cursor=sink.lines[0].src))
    assert (again.exit_code, sink.of(Stream.STDOUT)) == (4, ["err"])
    result, _ = await stopped_at(
        executor,
        replace(shell(cwd, "echo ready; exec sleep 60"), wants=ResourceRequest(image="python:3")),
        "ready",
        StopReason.CANCEL,
    )
    assert (result.exit_code, result.stopped) == (143, StopReason.CANCEL)
    silent = replace(tool(cwd, "sleep", "60", timeout_s=0.3), wants=ResourceRequest(image="python:3"))
    assert (await ended(executor, silent))[0].stopped is StopReason.TIMEOUT


async def test_what_a_step_may_not_have_is_refused(executor: Any, cwd: Path) -> None:
    for wants in (
        ResourceRequest(image="evil:latest"),
        ResourceRequest(cpu="64"),
        ResourceRequest(memory="1Ti"),
        ResourceRequest(network="internet"),
    ):
        found = await failure(executor, replace(shell(cwd, "true"), wants=wants))
        assert (found.code, found.retried) == (ErrorCode.START_FAILED, False)


async def test_dollars_reach_the_program_as_they_are(executor: Any, cwd: Path) -> None:
    """Kubernetes expands $(NAME) in commands, and takes $$ for an escape."""
    _, sink = await ended(executor, shell(cwd, "echo '$(HOME) $$ $(nope) $$$(HOME)'; echo $(echo sub)"))
    assert sink.of(Stream.STDOUT) == ["$(HOME) $$ $(nope) $$$(HOME)", "sub"]


async def test_a_worker_that_may_not_says_what_is_missing(executor: Any, cluster: FakeCluster) -> None:
    cluster.refused = {"create jobs", "get pods/log"}
    with pytest.raises(CannotRun, match=r"create jobs, get pods/log"):
        await executor.start()


async def test_nothing_is_left_when_the_result_is_kept(
    executor: Any, cwd: Path, cluster: FakeCluster
) -> None:
    what = shell(cwd, "true", COLOUR="a-secret-value")
    await ended(executor, what)
    sent = [r.body for r in cluster.requests if r.method == "POST" and r.path.endswith("/jobs")]
    assert [b"a-secret-value" in body for body in sent] == [False]
    await executor.on_committed(what)
    async with asyncio.timeout(60):
        while cluster.of("jobs") or cluster.of("pods") or cluster.of("secrets"):
            await asyncio.sleep(0.01)


async def test_no_view_is_left_of_the_jobs_that_are_gone(
    executor: Any, cwd: Path, cluster: FakeCluster
) -> None:
    """However a tool run ends: its Job was refused, deleted while followed, or deleted afterwards."""
    views = executor._crew.watch._views

    async def refused(what: ToolRun) -> None:
        cluster.faults.append(Fault("POST", r"/jobs$", lambda: refusal(FORBIDDEN, "not here")))
        assert (await failure(executor, what)).code is ErrorCode.EXECUTOR_UNAVAILABLE

    async def deleted(what: ToolRun) -> None:
        def delete() -> None:
            (job,) = (job for job in cluster.of("jobs") if job["metadata"]["name"] == job_name(what))
            cluster.do(cluster.delete_job(job))

        task = await at_line(executor, what, "ready", delete)
        with contextlib.suppress(RunFailure):
            async with asyncio.timeout(60):
                await task

    async def kept(what: ToolRun) -> None:
        await ended(executor, what)
        assert job_name(what) in views  # its Job is there
        await executor.on_committed(what)

    for n in range(3):
        for end in (refused, deleted, kept):
            what = shell(cwd, "echo ready; sleep 60" if end is deleted else "true")
            await end(replace(what, run_id=f"{end.__name__}-{n}"))
    async with asyncio.timeout(60):
        while cluster.of("jobs") or cluster.of("pods") or views:
            await asyncio.sleep(0.01)


async def test_what_our_own_order_of_creation_does_is_not_told(
    executor: Any, cwd: Path, cluster: FakeCluster
) -> None:
    """Our Secrets are made right behind their Job, so the kubelet may look too early."""
    what, sink = shell(cwd, "echo ready; sleep 2"), Recorder()
    name = job_name(what)
    running = asyncio.create_task(executor.run(what, sink, StopToken()))
    await sink.until("ready")
    pod = cluster.pod_of(name).name
    for secret in (f"{name}-files", f"{name}-env", "theirs"):
        text = f'MountVolume.SetUp failed for volume "x" : secret "{secret}" not found'
        cluster.do(cluster.objects.event("Pod", pod, "FailedMount", text))
    async with asyncio.timeout(60):
        await running
    assert [line.count('"theirs" not found') for line in sink.of(Stream.SYSTEM)] == [1]


async def test_a_node_that_does_not_answer_is_told_at_once(
    executor: Any, cwd: Path, cluster: FakeCluster
) -> None:
    go = cwd.parent / "go"
    what, sink = shell(cwd, f"echo ready; while [ ! -e {go} ]; do sleep 0.05; done"), Recorder()
    running = asyncio.create_task(executor.run(what, sink, StopToken()))
    await sink.until("ready")
    pod = cluster.pod_of(job_name(what)).pod

    def says(status: str) -> None:
        others = [each for each in pod["status"].get("conditions", ()) if each["type"] != "Ready"]
        pod["status"]["conditions"] = [*others, {"type": "Ready", "status": status}]
        cluster.do(cluster.objects.changed("pods", "MODIFIED", pod))

    for status, said in (("False", "does not answer; waiting"), ("True", "answers again")):
        await asyncio.to_thread(says, status)
        async with asyncio.timeout(60):
            while not any(said in line for line in sink.of(Stream.SYSTEM)):
                await asyncio.sleep(0.01)
    go.touch()
    async with asyncio.timeout(60):
        await running


async def test_an_api_server_that_is_away_is_not_the_runs_fault(
    executor: Any, cwd: Path, cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: Any, **__: Any) -> None:
        raise ClusterAway("the cluster's API server does not answer")

    monkeypatch.setattr(executor._crew.cluster, "create", away)
    found = await failure(executor, shell(cwd, "true"))
    assert (found.code, found.away) == (ErrorCode.EXECUTOR_UNAVAILABLE, True)


async def test_a_sink_that_is_slow_at_the_end_loses_nothing(
    executor: Any, cwd: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The database is away, say, when the container ends: lines that wait for it are no silence."""
    wait, look_s, looks, got = asyncio.wait, 0.0123, 0, Recorder()
    monkeypatch.setattr(monitor, "_LAST_LINES_S", look_s)

    async def counted(tasks: Any, *, timeout: float | None = None, **options: Any) -> Any:
        nonlocal looks
        looks += timeout == look_s
        return await wait(tasks, timeout=timeout, **options)

    async def slow(lines: Sequence[Line]) -> None:
        while looks < 2 * monitor._SILENT_LOOKS:
            await asyncio.sleep(0.01)
        monkeypatch.setattr(monitor, "_LAST_LINES_S", 60)
        await got(lines)

    monkeypatch.setattr(asyncio, "wait", counted)
    async with asyncio.timeout(60):
        result = await executor.run(shell(cwd, "seq 5000"), slow, StopToken())
    assert (result.exit_code, got.of(Stream.STDOUT)) == (0, [str(n) for n in range(1, 5001)])
