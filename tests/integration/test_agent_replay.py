"""An agent's run is written down, and carried out again from that: without a model's server."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import orjson
import pytest
from support.agents import Agents, says
from support.api_server import TOKEN, Api, error_of, serving, settings_for
from support.servers import RedisServer

from app.core.agent_records import Decision
from app.core.models import Run, RunStatus, StepStatus

SECRET = "hunter2-of-the-run"
WRITE = ("file_write", {"path": "report.md", "content": "# Three\n"})
SHELL = ("shell", {"command": "pwd; date -u +%Y-%m-%dT%H:%M:%SZ; echo $API_PASSWORD; wc -c report.md"})
LIST = ("file_list", {})


@pytest.fixture
async def world(
    agents: Agents, tmp_path: Path, redis_server: RedisServer, migrated_url: str
) -> AsyncIterator[tuple[Agents, Api]]:
    """Workers, and an API without a model over the same database."""
    with serving(settings_for(tmp_path / "api", redis_server.url, migrated_url)) as api:
        agents.start_worker()
        yield agents, api


async def recorded(agents: Agents, **fields: Any) -> Run:
    """A run of a few calls and tools, of the API's admin."""
    agents.model.script(
        says(f"I write it down; {SECRET} is for me.", WRITE),
        says("Now I look.", SHELL, LIST),
        says("Done: see report.md."),
    )
    fields = {"agent": {"approve": []}, **fields}
    env = {"API_PASSWORD": SECRET}
    run = await agents.do("Write a report.", user_id="admin", spec={"env": env}, **fields)
    assert run.status is RunStatus.SUCCEEDED, run.error
    return run


def post(api: Api, **body: Any) -> httpx2.Response:
    with api.client(TOKEN) as http:
        return http.post("/v1/runs", json=body)


def message_of(answer: httpx2.Response) -> str:
    error_of(answer)
    return answer.json()["error"]["message"]


def transcript_of(api: Api, run_id: str) -> str:
    with api.client(TOKEN) as http:
        answer = http.get(f"/v1/runs/{run_id}/transcript")
    assert answer.status_code == 200, answer.text
    return answer.text


async def replayed(agents: Agents, api: Api, **body: Any) -> Run:
    answer = post(api, **body)
    assert answer.status_code == 201, answer.text
    return await agents.ended(answer.json()["run_id"])


def changed(text: str, kind: str, at: int = 0, **fields: Any) -> str:
    lines = [orjson.loads(line) for line in text.splitlines()]
    [line] = [line for line in lines if line.get("type") == kind][at : at + 1]
    line |= fields
    return "".join(orjson.dumps(each).decode() + "\n" for each in lines)


async def test_a_transcript_and_a_run_are_replayed_equally_and_without_a_model(
    world: tuple[Agents, Api],
) -> None:
    """The hashes of all requests are equal, whatever ids, paths and times tools print; nothing is sent."""
    agents, api = world
    run = await recorded(agents)
    text, asked = transcript_of(api, run.run_id), len(agents.model.asked)
    assert SECRET not in text
    assert "sk-very-secret" not in text
    agents.model.close()
    for body in ({"replay_of": run.run_id}, {"transcript": text, "env": {"API_PASSWORD": SECRET}}):
        again = await replayed(agents, api, **body)
        assert (again.status, again.error) == (RunStatus.SUCCEEDED, None)
        assert again.result == run.result
        hashes = [[call.request_hash for call in await agents.calls_of(r.run_id)] for r in (run, again)]
        assert hashes[0] == hashes[1]
        assert [call.cost_u for call in await agents.calls_of(again.run_id)] == [None] * 3
        steps = [[(s.step_id, s.status) for s in await agents.steps(r.run_id)] for r in (run, again)]
        assert steps[0] == steps[1]
        words = [e.content for e in await agents.events(again.run_id) if e.stream == "model"]
        assert "Done: see report.md." in "".join(w or "" for w in words)
    assert len(agents.model.asked) == asked


async def test_what_was_changed_is_named(world: tuple[Agents, Api]) -> None:
    agents, api = world
    run = await recorded(agents)
    text = transcript_of(api, run.run_id)
    told = "files written: another.md (1 bytes)"
    for body, named in (
        ({"replay_of": run.run_id, "prompt": "Write a poem."}, "Message 1 (the user's) differs"),
        ({"transcript": changed(text, "run", prompt="Write a poem.")}, "The prompt was changed"),
        ({"transcript": changed(text, "step", for_model=told), "tools": "recorded"}, "c1-1 was changed"),
        ({"transcript": changed(text, "step", for_model=told)}, "message 3 (what the call "),
    ):
        ended = await replayed(agents, api, **body)
        assert ended.error is not None, body
        assert ended.error["code"] == "replay_diverged"
        assert named.lower() in ended.error["message"].lower()
    loose = await replayed(agents, api, replay_of=run.run_id, prompt="Write a poem.", strict=False)
    assert loose.result == run.result
    warned = [e.content for e in await agents.events(loose.run_id) if e.level == "warning"]
    assert any("not strict" in (text or "") for text in warned)


async def test_recorded_tools_run_nothing(world: tuple[Agents, Api]) -> None:
    agents, api = world
    run = await recorded(agents)
    agents.model.close()
    again = await replayed(agents, api, replay_of=run.run_id, tools="recorded")
    assert again.status is RunStatus.SUCCEEDED, again.error
    assert [step.status for step in await agents.steps(again.run_id)] == [StepStatus.SUCCEEDED] * 3
    with api.client(TOKEN) as http:
        assert http.get(f"/v1/runs/{again.run_id}/files").json()["items"] == []
    ends = [e.content or "" for e in await agents.events(again.run_id) if e.step == "c1-1"]
    assert any("nothing was run" in text for text in ends)


async def test_what_people_said_comes_where_it_came_and_approves_nothing(world: tuple[Agents, Api]) -> None:
    """An answer, and a denied step: nobody is asked for either again; an approved step is asked for anew."""
    agents, api = world
    agents.model.script(
        says("", ("ask_user", {"question": "Which?"})),
        says("", ("shell", {"command": "echo no > no"}), ("shell", {"command": "echo yes"})),
        says("Done."),
    )
    fields: dict[str, Any] = {"user_id": "admin", "agent": {"approve": ["shell"]}}
    run_id = await agents.submit("Ask, then work.", **fields)
    await agents.waits(run_id)
    await agents.say(run_id, "The second.")

    async def asks() -> bool:
        return len(await agents.approvals.of_run(run_id)) == 2

    await agents.until(asks, "the questions")
    await agents.waits(run_id)
    first, second = await agents.approvals.of_run(run_id)
    await agents.decide(first, Decision.DENIED, "no")
    await agents.decide(second, Decision.APPROVED)
    run = await agents.ended(run_id)
    assert run.status is RunStatus.SUCCEEDED, run.error
    told = await replayed(agents, api, transcript=transcript_of(api, run_id), tools="recorded")
    assert (told.error, told.result) == (None, run.result)
    answer = post(api, replay_of=run_id)
    again = answer.json()["run_id"]
    await agents.waits(again)
    [asked] = await agents.approvals.of_run(again)
    assert asked.step_id == second.step_id
    with api.client(TOKEN) as http:
        refused = http.post(f"/v1/runs/{again}/messages", json={"content": "Hello."})
    assert error_of(refused) == (422, "is_replay")
    await agents.decide(asked, Decision.APPROVED)
    assert (await agents.ended(again)).error is None
    hashes = [[call.request_hash for call in await agents.calls_of(each)] for each in (run_id, again)]
    assert hashes[0] == hashes[1]


async def test_a_recording_that_ends_before_its_run_would_says_how_it_ended(
    world: tuple[Agents, Api],
) -> None:
    agents, api = world
    agents.model.script(says("", LIST))
    run = await agents.do("Look.", user_id="admin", agent={"budget": {"calls": 2}})
    assert run.error is not None
    again = await replayed(agents, api, replay_of=run.run_id)
    assert again.error is not None
    assert again.error["code"] == "replay_diverged"
    assert "budget" in again.error["message"]


async def test_calls_are_shown_as_they_were_asked(world: tuple[Agents, Api]) -> None:
    agents, api = world
    run = await recorded(agents)
    with api.client(TOKEN) as http:
        first = http.get(f"/v1/runs/{run.run_id}/calls?limit=2").json()
        assert [each["n"] for each in first["items"]] == [1, 2]
        rest = http.get(f"/v1/runs/{run.run_id}/calls?after={first['next']}").json()
        assert ([each["n"] for each in rest["items"]], rest["next"]) == ([3], None)
        call = http.get(f"/v1/runs/{run.run_id}/calls/2").json()
        assert http.get(f"/v1/runs/{run.run_id}/calls/9").status_code == 404
    roles = [each["role"] for each in call["request"]["messages"]]
    assert roles == ["user", "assistant", "tool"]
    sent = agents.model.asked[1].body["messages"]
    assert call["request"]["system"] == sent[0]["content"]
    assert call["request"]["messages"][2]["content"] == sent[3]["content"]
    assert [each["name"] for each in call["reply"]["calls"]] == ["shell", "file_list"]
    assert SECRET not in orjson.dumps(call).decode()


async def test_the_commands(world: tuple[Agents, Api], tmp_path: Path) -> None:
    """What was asked is shown, kept in a file, and replayed from it."""
    agents, api = world
    run = await recorded(agents)

    def tailrun(*words: str) -> str:
        env = {**os.environ, "TAILRUN_URL": api.url, "TAILRUN_TOKEN": TOKEN}
        command = [sys.executable, "-m", "tailrun", *words]
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    rows = (await asyncio.to_thread(tailrun, "calls", run.run_id)).splitlines()
    assert [row.split("\t")[:3] for row in rows] == [[str(n), "answered", "scripted"] for n in (1, 2, 3)]
    shown = await asyncio.to_thread(tailrun, "calls", run.run_id, "2")
    assert "== user\nWrite a report." in shown
    assert "-> file_list {}" in shown
    file = tmp_path / "run.ndjson"
    file.write_text(await asyncio.to_thread(tailrun, "transcript", run.run_id))
    secret = f"API_PASSWORD={SECRET}"
    out = await asyncio.to_thread(tailrun, "replay", str(file), "--env", secret)
    assert "Done: see report.md." in out


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("", "line 1: it has a line that is no JSON object"),
        ('{"a": 1}\n', "it is none"),
        ('{"tailrun_transcript": 9}\n', "version 9"),
        ('{"tailrun_transcript": 1}\n', "was cut"),
        ('{"tailrun_transcript": 1}\n{"type": "end", "lines": 1}\n', "line 2"),
        ('{"tailrun_transcript": 1}\n{"type": "run", "run_id": "r"}\n', "prompt"),
        ('{"tailrun_transcript": 1}\n{"type": "run"', "line 2: it has a line that is no JSON object"),
        ('{"tailrun_transcript": 1}\n{"x": ' + "[" * 60 + "]" * 60 + "}\n", "nested"),
        ('{"tailrun_transcript": 1}\n' + "{}\n" * 30_000, "lines"),
        ("x" * 1_000_001, "transcript"),
    ],
)
async def test_hostile_transcripts_are_refused(
    tmp_path: Path, redis_server: RedisServer, database_url: str, text: str, named: str
) -> None:
    with serving(settings_for(tmp_path, redis_server.url, database_url)) as api:
        answer = post(api, transcript=text)
        assert answer.status_code == 422
        assert named in message_of(answer)


async def test_what_goes_with_a_replay(world: tuple[Agents, Api]) -> None:
    agents, api = world
    run = await recorded(agents)
    theirs = await agents.do("Hello.", user_id="bob")
    for body, status in (
        ({"prompt": "x", "planner": "smoke", "strict": True}, 422),
        ({"replay_of": run.run_id, "transcript": "x"}, 422),
        ({"replay_of": run.run_id, "agent": {}}, 422),
        ({"replay_of": theirs.run_id}, 404),
        ({"replay_of": "nothing"}, 404),
    ):
        assert post(api, **body).status_code == status, body
    text = transcript_of(api, run.run_id)
    cut = "".join(text.splitlines(keepends=True)[:-2])
    assert "was cut" in message_of(post(api, transcript=cut))
    twice = text.replace('"n":2,', '"n":1,')
    assert "out of order" in message_of(post(api, transcript=twice))
