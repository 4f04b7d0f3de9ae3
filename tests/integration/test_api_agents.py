"""What users say to agents over HTTP (approvals, messages), and what is asked of an agent at first."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import orjson
import pytest
from support.api_server import TOKEN, Api, error_of, serving, settings_for
from support.servers import RedisServer
from support.waiting_run import HASH, STEP, waiting_run

from app.core.agent_records import WaitingFor
from app.core.clock import now_us
from app.core.errors import StorageError
from app.core.models import RunStatus
from app.db.run_store import RunStore
from app.maintenance.reconciler import SETTLE_US, Reconciler
from app.redis.clients import RedisClients
from app.redis.publisher import Publisher
from app.redis.queue import Queue
from app.runs.waiting import OverdueWaits

YES = {"decision": "approved", "args_sha256": HASH}
NO = {"decision": "denied", "args_sha256": HASH}


@pytest.fixture
def api(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[Api]:
    settings = settings_for(
        tmp_path, redis_server.url, database_url, llm_model="some-model", agent_budget_usd=2
    )
    with serving(settings) as api:
        yield api


@pytest.fixture
def bare(tmp_path: Path, redis_server: RedisServer, database_url: str) -> Iterator[Api]:
    """A server without a model."""
    with serving(settings_for(tmp_path, redis_server.url, database_url)) as api:
        yield api


def waits(api: Api, user_id: str = "admin", **fields: Any) -> str:
    async def make() -> str:
        return await waiting_run(api.settings.data.effective_database_url, user_id, **fields)

    return anyio.run(make)


def approval(run_id: str, step: str = STEP) -> str:
    return f"/v1/runs/{run_id}/approvals/{step}"


def pending(redis: RedisServer) -> list[str]:
    """The runs that are taken next, first the next."""
    with redis.client() as client:
        found: Any = client.lrange("jobs:pending", 0, -1)
    return [orjson.loads(raw)["run_id"] for raw in reversed(found)]


def status(api: Api, run_id: str) -> tuple[str, str | None]:
    run = api.admin.get(f"/v1/runs/{run_id}").json()
    return run["status"], run["waiting_for"]


def test_an_approval_shows_what_it_is_about_and_sends_the_run_on(api: Api, redis_server: RedisServer) -> None:
    """To the queue's front: others that wait came later than this run."""
    queued = api.admin.post("/v1/runs", json={"argv": ["true"]}).json()["run_id"]
    run_id = waits(api)
    assert status(api, run_id) == ("waiting", "approval")
    [listed] = api.admin.get("/v1/approvals").json()["items"]
    assert (listed["tool"], listed["args"], listed["decision"]) == ("shell", {"command": "rm -r build"}, None)
    assert api.admin.get(approval(run_id)).json() == listed
    made = api.admin.post(approval(run_id), json={**YES, "note": "go on"})
    assert (made.status_code, made.json()["decision"], made.json()["by"]) == (200, "approved", "admin")
    assert made.json()["note"] == "go on"
    assert (status(api, run_id), pending(redis_server)) == (("queued", None), [run_id, queued])
    assert api.admin.get("/v1/approvals").json()["items"] == []
    events = api.admin.get(f"/v1/runs/{run_id}/logs").json()["events"]
    assert [event["type"] for event in events[-3:]] == ["status", "approval", "status"]
    assert events[-2]["status"] == "approved"


def test_only_what_was_looked_at_is_approved_once_and_by_whom_it_may(api: Api) -> None:
    """Other arguments, another user, twice, and no such step."""
    ann, bob = api.user("ann"), api.user("bob")
    run_id = waits(api, "ann", steps=2)
    assert error_of(bob.post(approval(run_id), json=YES)) == (404, "not_found")
    assert error_of(bob.get(approval(run_id))) == (404, "not_found")
    assert bob.get("/v1/approvals").json()["items"] == []
    assert error_of(bob.get("/v1/approvals?all=1")) == (403, "forbidden")
    assert error_of(ann.post(approval(run_id), json=YES | {"args_sha256": "b"})) == (409, "args_changed")
    assert error_of(ann.post(approval(run_id, "c9-9"), json=YES)) == (404, "not_found")
    assert error_of(ann.post(approval(run_id), json={"decision": "maybe", "args_sha256": HASH}))[0] == 422
    assert ann.post(approval(run_id), json=NO).status_code == 200
    assert error_of(ann.post(approval(run_id), json=YES)) == (409, "decided")
    assert status(api, run_id) == ("waiting", "approval")
    assert len(api.admin.get("/v1/approvals?all=1").json()["items"]) == 1
    assert api.admin.post(approval(run_id, "c1-1"), json=NO).json()["by"] == "admin"
    assert status(api, run_id) == ("queued", None)


def test_many_answers_at_once_push_a_run_once(api: Api, redis_server: RedisServer) -> None:
    run_id = waits(api, steps=6)
    client = api.admin
    with ThreadPoolExecutor(12) as threads:
        steps = [f"c1-{k}" for k in range(6)] * 2
        made = list(threads.map(lambda step: client.post(approval(run_id, step), json=YES), steps))
    assert sorted(each.status_code for each in made) == [200] * 6 + [409] * 6
    assert pending(redis_server) == [run_id]


def test_a_message_is_kept_once_and_answers_a_question(api: Api, redis_server: RedisServer) -> None:
    run_id = waits(api, kind=WaitingFor.ANSWER)
    path, key = f"/v1/runs/{run_id}/messages", {"Idempotency-Key": "k"}
    first = api.admin.post(path, json={"content": "blue"}, headers=key)
    again = api.admin.post(path, json={"content": "blue"}, headers=key)
    assert (first.status_code, again.status_code, first.json()) == (202, 202, again.json())
    assert (first.json()["k"], first.json()["mode"], first.json()["by"]) == (1, "next", "admin")
    assert (status(api, run_id), pending(redis_server)) == (("queued", None), [run_id])
    reused = api.admin.post(path, json={"content": "red"}, headers=key)
    assert error_of(reused) == (409, "idempotency_key_reused")


def test_a_message_reaches_an_agent_alone_and_not_after_its_end(api: Api) -> None:
    plain = api.admin.post("/v1/runs", json={"argv": ["true"]}).json()["run_id"]
    text = {"content": "hello"}
    assert error_of(api.admin.post(f"/v1/runs/{plain}/messages", json=text)) == (422, "no_agent")
    run_id = waits(api)
    for wrong in ("", " ", "x" * 64_001, "a\0"):
        assert error_of(api.admin.post(f"/v1/runs/{run_id}/messages", json={"content": wrong}))[0] == 422
    assert status(api, run_id) == ("waiting", "approval")
    loud = text | {"mode": "interrupt"}
    assert api.admin.post(f"/v1/runs/{run_id}/messages", json=loud).status_code == 202
    assert status(api, run_id) == ("queued", None)
    assert api.admin.get(approval(run_id)).json()["decision"] == "denied"
    api.admin.post(f"/v1/runs/{run_id}/cancel")
    late = api.admin.post(f"/v1/runs/{run_id}/messages", json=text)
    assert error_of(late) == (409, "finished")
    assert "continue_of" in late.json()["error"]["message"]


def test_a_waiting_run_is_cancelled_at_once(api: Api) -> None:
    run_id = waits(api)
    cancelled = api.admin.post(f"/v1/runs/{run_id}/cancel").json()
    [never] = api.admin.get(f"/v1/runs/{run_id}/steps").json()["items"]
    assert (never["status"], never["ended_at"]) == ("cancelled", cancelled["ended_at"])
    assert (cancelled["status"], cancelled["waiting_for"]) == ("cancelled", None)
    assert error_of(api.admin.post(approval(run_id), json=YES)) == (409, "finished")


@pytest.mark.parametrize("kind", list(WaitingFor))
def test_a_wait_that_is_over_is_ended_by_the_leader(
    api: Api, redis_server: RedisServer, kind: WaitingFor
) -> None:
    late, patient = waits(api, kind=kind, patience_us=0), waits(api, kind=kind)

    async def look(runs: RunStore) -> int:
        clients = RedisClients(api.settings.redis.effective_url, "")
        try:
            return await OverdueWaits(Queue(clients), runs, Publisher(clients), now_us).look()
        finally:
            await clients.close()

    assert api.store(look) == 1
    assert (status(api, late), pending(redis_server)) == (("queued", None), [late])
    assert status(api, patient) == ("waiting", kind)
    assert error_of(api.admin.post(approval(late), json=YES))[0] == (409 if kind == "approval" else 404)


def test_a_push_that_is_lost_is_made_by_the_reconciler_and_waiting_runs_are_left(
    api: Api, redis_server: RedisServer
) -> None:
    """With Redis away the decision is taken all the same."""
    answered, patient = waits(api), waits(api)
    redis_server.stop()
    assert api.admin.post(approval(answered), json=YES).json()["decision"] == "approved"
    redis_server.start()

    async def reconcile(runs: RunStore) -> int:
        clients = RedisClients(api.settings.redis.effective_url, "")
        try:
            while True:
                try:
                    return await Reconciler(runs, Queue(clients), lambda: now_us() + SETTLE_US).reconcile()
                except StorageError:
                    await anyio.sleep(0.05)
        finally:
            await clients.close()

    assert api.store(reconcile) == 1
    assert pending(redis_server) == [answered]
    assert status(api, patient) == ("waiting", "approval")


# -- what is asked of an agent ----------------------------------------------------------------


def test_a_bare_prompt_is_an_agents_where_there_is_a_model(api: Api) -> None:
    asked = {
        "instructions": "Be short.",
        "tools": ["file_read"],
        "approve": [],
        "on_expiry": "fail",
        "budget": {"usd": 0.5, "tokens": 0},
        "result_schema": {"type": "object", "properties": {"n": {"type": "integer"}}},
    }
    run = api.admin.post("/v1/runs", json={"prompt": "count", "agent": asked}).json()
    assert run["spec"] == {"prompt": "count", "planner": "agent"}
    assert (run["agent"], run["result"], run["usage"]) == (asked, None, None)
    plain = api.admin.post("/v1/runs", json={"prompt": "count"}).json()
    assert (plain["spec"]["planner"], plain["agent"]) == ("agent", None)
    old = api.admin.post("/agent/execute", json={"action": "create", "prompt": "count"}).json()
    assert (old["spec"]["planner"], "warning" in old) == ("agent", False)
    steps = {"prompt": "```yaml\n- tool: file_list\n```"}
    assert "planner" not in api.admin.post("/v1/runs", json=steps).json()["spec"]
    for more in ({"planner": "agent"}, {"agent": {}}):
        assert api.admin.post("/v1/runs", json=steps | more).json()["spec"]["planner"] == "agent"
    [model] = api.admin.get("/v1/models").json()["items"]
    assert model == {"name": "some-model", "model": "some-model", "dialect": "chat", "default": True}


@pytest.mark.parametrize(
    ("fields", "code", "words"),
    [
        ({"agent": {"model": "other"}}, "unknown_model", "some-model"),
        ({"agent": {"budget": {"usd": 3}}}, "invalid", "AGENT_BUDGET_USD"),
        ({"agent": {"budget": {"tokens": 2_000_001}}}, "invalid", "AGENT_BUDGET_TOKENS"),
        ({"agent": {"budget": {"usd": -1}}}, "invalid", "usd"),
        ({"agent": {"budget": {"euros": 1}}}, "invalid", "euros"),
        ({"agent": {"tools": ["browser"]}}, "invalid", "file_read"),
        ({"agent": {"url": "http://evil.example"}}, "invalid", "url"),
        ({"agent": {"instructions": "x" * 32_001}}, "invalid", "instructions"),
        ({"agent": {"result_schema": {"type": "array"}}}, "invalid", "object"),
        ({"agent": {"result_schema": {"type": "object", "x": "y" * 16_000}}}, "invalid", "long"),
        ({"agent": {}, "planner": "smoke"}, "invalid", "smoke"),
        ({"continue_of": "x" * 36}, "not_found", "continue_of"),
    ],
)
def test_what_an_agent_may_not_be_asked_names_the_field(
    api: Api, fields: dict[str, Any], code: str, words: str
) -> None:
    made = api.admin.post("/v1/runs", json={"prompt": "count", **fields})
    assert error_of(made)[1] == code
    assert words in made.json()["error"]["message"]


def test_an_agents_fields_go_with_a_prompt(api: Api) -> None:
    for fields in ({"agent": {}}, {"planner": "agent"}, {"continue_of": "x"}):
        made = api.admin.post("/v1/runs", json={"argv": ["true"], **fields})
        assert error_of(made) == (422, "invalid")


def test_without_a_model_no_prompt_is_carried_out(bare: Api) -> None:
    for fields in ({}, {"planner": "agent"}, {"agent": {"model": "some"}}):
        assert error_of(bare.admin.post("/v1/runs", json={"prompt": "x", **fields})) == (422, "no_model")
    assert bare.admin.get("/v1/models").json()["items"] == []
    old = bare.admin.post("/agent/execute", json={"action": "create", "prompt": "x"}).json()
    assert (old["planner"], "warning" in old) == ("smoke", True)


def test_a_run_goes_on_from_one_of_ones_own_that_has_ended(api: Api) -> None:
    """Its files come along; the agent is told which conversation is before its own."""
    ann, bob = api.user("ann"), api.user("bob")
    run_id = waits(api, "ann")
    body = {"prompt": "and now?", "continue_of": run_id}
    assert error_of(ann.post("/v1/runs", json=body)) == (409, "not_finished")
    ann.post(f"/v1/runs/{run_id}/cancel")
    assert error_of(bob.post("/v1/runs", json=body)) == (404, "not_found")
    made = ann.post("/v1/runs", json=body).json()
    assert (made["workspace_from"], made["agent"]) == (run_id, {"continue_of": run_id})
    assert error_of(ann.post("/v1/runs", json=body | {"workspace_from": run_id})) == (422, "invalid")
    plain = ann.post("/v1/runs", json={"argv": ["true"]}).json()["run_id"]
    assert error_of(ann.post("/v1/runs", json=body | {"continue_of": plain})) == (422, "invalid")
    schedule = {"cron": "@daily", "run": body}
    assert error_of(ann.post("/v1/schedules", json=schedule)) == (422, "invalid")


def test_what_an_agent_spent_is_shown(api: Api) -> None:
    """An unknown price is no price of 0."""
    run_id = api.admin.post("/v1/runs", json={"prompt": "x"}).json()["run_id"]

    def spend(**values: int) -> dict[str, Any]:
        sets = ", ".join(f"{name} = {value}" for name, value in values.items())

        async def work(runs: RunStore) -> None:
            from sqlalchemy import text  # noqa: PLC0415

            statement = text(f"UPDATE runs SET {sets} WHERE run_id = :id")
            await runs._db.write(lambda connection: connection.execute(statement, {"id": run_id}))

        api.store(work)
        return api.admin.get(f"/v1/runs/{run_id}").json()["usage"]

    assert spend(spent_tokens=70) == {"tokens": 70, "cost_usd": None}
    assert spend(spent_u=1_500_000) == {"tokens": 70, "cost_usd": 1.5}


def test_the_queue_counts_waiting_runs(api: Api) -> None:
    waits(api)
    assert 'tailrun_runs{state="waiting"} 1.0' in api.client().get("/metrics").text
    assert [run["status"] for run in api.admin.get("/v1/runs?status=waiting").json()["items"]] == [
        RunStatus.WAITING
    ]


# -- in the terminal --------------------------------------------------------------------------


def tailrun(api: Api, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "tailrun", *args, "--url", api.url, "--token", TOKEN]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def test_the_command_line_decides_and_writes(api: Api) -> None:
    run_id = waits(api, steps=2)
    listed = tailrun(api, "approvals")
    assert "shell: rm -r build" in listed.stdout, listed.stderr
    both = tailrun(api, "approve", run_id)
    assert (both.returncode, "c1-0, c1-1 wait" in both.stderr) == (2, True)
    assert tailrun(api, "approve", run_id[:8], STEP).stdout == "c1-0 approved: shell: rm -r build\n"
    assert tailrun(api, "deny", run_id, "--note", "no").returncode == 0
    assert [each["decision"] for each in api.admin.get(f"/v1/runs/{run_id}/approvals").json()["items"]] == [
        *("approved", "denied")
    ]
    none = tailrun(api, "approve", run_id)
    assert (none.returncode, "no step waits" in none.stderr) == (1, True)
    said = tailrun(api, "say", run_id, "go on", "--interrupt")
    assert said.stdout == f"message 1 to {run_id}\n"


def test_the_terminal_that_follows_is_asked(api: Api) -> None:
    """y runs the step; the run goes on, and its end is the command's."""
    command = [sys.executable, "-m", "tailrun", "run", "clean up", "--url", api.url, "--token", TOKEN]
    pid, terminal = pty.fork()
    if pid == 0:
        os.execve(sys.executable, command, {**os.environ, "TERM": "xterm"})
    try:
        read_until(terminal, "queued")
        [made] = api.admin.get("/v1/runs").json()["items"]
        waits(api, run_id=made["run_id"])
        read_until(terminal, "[y/N]")
        os.write(terminal, b"y\n")
        read_until(terminal, "approved by admin")
        assert status(api, made["run_id"]) == ("queued", None)
        api.admin.post(f"/v1/runs/{made['run_id']}/cancel")
        read_until(terminal, "cancelled")
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 130
    finally:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        os.close(terminal)


def read_until(terminal: int, text: str) -> None:
    seen, ends = b"", time.monotonic() + 60
    while text.encode() not in seen:
        assert select.select([terminal], [], [], max(0, ends - time.monotonic()))[0], (text, seen)
        seen += os.read(terminal, 65536)
