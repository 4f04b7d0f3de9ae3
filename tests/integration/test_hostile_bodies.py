"""Bodies and numbers that are meant to cost: what they cost is bounded, and they are refused by name."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
import websockets
from support.api_server import TOKEN, Api, error_of, serving, settings_for
from support.servers import RedisServer
from websockets.asyncio.client import connect

from app.agent.planner import plan
from app.core.errors import TailrunError
from app.core.models import Run, RunKind, RunStatus
from app.plan.steps import parse_steps
from app.routes.body import MAX_KEYS, MAX_VALUES, check, parse_object
from app.routes.projects import NewProject
from app.routes.queue import DeadRetry
from app.routes.schedules import NewSchedule
from app.routes.schemas import NewOperation, NewRun, NewTask, NewToken
from tailrun.process.errors import RunFailure

LONG = "9" * 5000
NUMBERS = [LONG, "-" + LONG, LONG + ".0", "1e" + LONG, "0x" + LONG, "٣" * 20, "1" * 19, "1_0"]


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, shared_redis: RedisServer) -> Iterator[Api]:
    folder: Path = tmp_path_factory.mktemp("api")
    url = f"sqlite:///{folder / 'tailrun.db'}"
    settings = settings_for(folder, shared_redis.url, url, webhook_secret=None)
    with serving(settings) as api:
        yield api


def many(template: str, count: int) -> str:
    return ",".join(template % n for n in range(count))


BODIES: dict[str, Callable[[int], str]] = {
    "unknown fields": lambda n: "{" + many('"x%d":1', n) + "}",
    "one unknown field": lambda n: '{"' + "promp" * n + '":1}',
    "an unknown tool": lambda n: '{"steps":[{"tool":"' + "shel" * n + '","args":{}}]}',
    "unknown arguments": lambda n: '{"steps":[{"tool":"shell","args":{' + many('"x%d":1', n) + "}}]}",
    "a wrong choice": lambda n: '{"argv":["a"],"priority":"' + "hig" * n + '"}',
    "a wrong choice, a list": lambda n: '{"argv":["a"],"priority":[' + many('"%d"', n) + "]}",
    "env": lambda n: '{"argv":["true"],"env":{' + many('"x%d":1', n) + "}}",
    "a name in env": lambda n: '{"argv":["true"],"env":{"' + "x-" * n + '":"1"}}',
    "labels": lambda n: '{"argv":["true"],"labels":{' + many('"x%d":1', n) + "}}",
    "argv": lambda n: '{"argv":[' + many("%d", n) + "]}",
    "argv of lists": lambda n: '{"argv":[' + many("[%d]", n) + "]}",
    "params": lambda n: '{"type":"agent","command":"run","params":{' + many('"x%d":1', n) + "}}",
    "a parameter": lambda n: '{"type":"agent","command":"run","params":{"' + "inpu" * n + '":1}}',
    "a time": lambda n: '{"argv":["a"],"run_at":"' + "2" * n + '"}',
    "a pattern": lambda n: '{"steps":[{"tool":"shell","args":{"command":"a"},"id":"' + "-" * n + ' "}]}',
    "codes": lambda n: '{"argv":["a"],"retry_on":[' + many('"x%d"', n) + "]}",
    "ids": lambda n: '{"run_ids":[' + many('"x%d"', n) + "]}",
}
MODELS = (NewRun, NewTask, NewOperation, NewProject, NewSchedule, NewToken, DeadRetry)


def refusal_s(raw: bytes) -> float:
    """Return the CPU time in which every model refuses a body, as a route would."""
    began, said = time.process_time(), ""
    for model in MODELS:
        try:
            body = check(model, parse_object(raw))
            if isinstance(body, NewRun) and body.steps is not None:
                parse_steps(body.steps)
        except TailrunError as error:
            said = max(said, error.message, key=len)
    took = time.process_time() - began
    assert 0 < len(said) < 2000, "nothing was refused, or what was sent stands in the answer"
    return took


@pytest.mark.parametrize("make", BODIES.values(), ids=list(BODIES))
def test_what_a_refusal_costs_does_not_grow_faster_than_the_body(make: Callable[[int], str]) -> None:
    """16 times the body costs at most that much more, with room for noise; by CPU time, not the clock."""
    refusal_s(make(10).encode())
    small = min(refusal_s(make(2_000).encode()) for _ in range(3))
    large = min(refusal_s(make(32_000).encode()) for _ in range(2))
    assert large < 0.02 + 16 * 6 * small


def test_a_body_has_only_so_many_values() -> None:
    """However they are put together; the most that are allowed are taken."""
    for raw in (
        b'{"a":[' + b"1," * MAX_VALUES + b"1]}",
        b"{" + many('"x%d":1', MAX_VALUES + 1).encode() + b"}",
        b'{"a":[{}, {' + many('"x%d":1', MAX_KEYS + 1).encode() + b"}]}",
        b'{"a":[' + b"[1]," * (MAX_VALUES // 2) + b"1]}",
    ):
        with pytest.raises(TailrunError, match=r"values|fields"):
            parse_object(raw)
    assert parse_object(b'{"a":[' + b"1," * (MAX_VALUES - 2) + b"1]}")
    steps = [{"tool": "code", "args": {"language": "bash", "source": "a", "args": ["b"] * 100}}] * 100
    assert parse_object(orjson.dumps({"steps": steps}))


def plan_s(prompt: str) -> float:
    """Return the CPU time in which a prompt becomes a plan, or is refused."""
    run = Run(
        run_id="r",
        user_id="ann",
        kind=RunKind.PROMPT,
        status=RunStatus.RUNNING,
        spec={"prompt": prompt},
        created_at=1,
    )
    began, said = time.process_time(), ""
    try:
        plan(run)
    except RunFailure as failure:
        said = failure.message
    took = time.process_time() - began
    assert len(said) < 2000, "what was sent stands in the error"
    return took


FENCED = "```yaml\n{}\n```\n"
PROMPTS: dict[str, Callable[[int], str]] = {
    "a long fence": lambda n: "~" * n + "`",
    "long fences": lambda n: ("~" * 500 + "`\n") * (n // 500),
    "a fence with spaces": lambda n: "~~~" + " " * n + "x`",
    "fences": lambda n: "```yaml\n```\n" * (n // 12),
    "fences that do not close": lambda n: "```yaml\n~~~\n" * (n // 12),
    "base 60": lambda n: FENCED.format("- x: 1" + ":1" * (n // 2)),
    "base 60 with a point": lambda n: FENCED.format("- x: 1" + ":1" * (n // 2) + ".5"),
    "a number": lambda n: FENCED.format("- x: " + "9" * n),
    "a number with lines": lambda n: FENCED.format("- x: 9" + "_9" * (n // 2)),
    "base 2": lambda n: FENCED.format("- timeout_s: 0b" + "1" * n),
    "base 16": lambda n: FENCED.format("- tool: 0x" + "f" * n),
    "brackets": lambda n: FENCED.format("[" * n),
    "braces": lambda n: FENCED.format("{" * n),
    "dashes": lambda n: FENCED.format("- " * (n // 2)),
    "questions": lambda n: FENCED.format("? " * (n // 2)),
    "aliases": lambda n: FENCED.format("- &a [b]\n" + "- *a\n" * (n // 5)),
    "keys": lambda n: FENCED.format("- {" + ",".join(f"x{i}: 1" for i in range(n // 10)) + "}"),
    "tabs": lambda n: FENCED.format("\t" * n),
    "quotes": lambda n: FENCED.format('- "' + "\\" * n),
    "comments": lambda n: FENCED.format("#" * n + "\n- a"),
    "json numbers": lambda n: '```json\n[{"timeout_s": ' + "9" * n + "}]\n```\n",
    "json depth": lambda n: "```json\n" + "[" * n + "\n```\n",
    "json keys": lambda n: "```json\n[{" + ",".join(f'"x{i}":1' for i in range(n // 10)) + "}]\n```\n",
}


@pytest.mark.parametrize("make", PROMPTS.values(), ids=list(PROMPTS))
def test_what_a_prompt_costs_does_not_grow_faster_than_the_prompt(make: Callable[[int], str]) -> None:
    """It is read on the worker's loop, beside other runs."""
    plan_s(make(100))
    small = min(plan_s(make(6_000)) for _ in range(3))
    large = min(plan_s(make(96_000)) for _ in range(2))
    assert large < 0.03 + 16 * 6 * small


@pytest.mark.parametrize("number", NUMBERS)
def test_a_number_that_is_none_is_a_4xx_wherever_it_stands(api: Api, number: str) -> None:
    """In a query, a header, a cursor, a body: never a 500, and never taken for another one."""
    client = api.user("ann")
    run_id = client.post("/v1/runs", json={"argv": ["true"], "start": False}).json()["run_id"]
    for path, names in {
        "/v1/runs": ("limit", "cursor"),
        "/v1/schedules": ("limit", "cursor"),
        "/v1/dead": ("limit", "cursor"),
        f"/v1/runs/{run_id}": ("logs",),
        f"/v1/runs/{run_id}/logs": ("after", "limit"),
        f"/v1/runs/{run_id}/stream": ("after", "tail"),
        f"/v1/runs/{run_id}/files": ("limit", "cursor"),
        f"/api/v1/operations/{run_id}": ("logs",),
    }.items():
        for name in names:
            for value in (number, f"{number}.{run_id}"):
                asked = client.get(path, params={name: value, "follow": "0"})  # 0: a stream ends
                assert asked.status_code < 500, (path, name)
    follow = f"/v1/runs/{run_id}/stream?follow=0"
    assert error_of(client.get(follow, headers={"Last-Event-ID": number.encode()}))[0] == 422
    client.put(f"/v1/runs/{run_id}/files/a", content=b"hello")
    for value in (f"bytes={number}-", f"bytes=-{number}", f"bytes=0-{number}"):
        header = {"Range": value.encode()}
        assert client.get(f"/v1/runs/{run_id}/files/a", headers=header).status_code in {200, 206, 416}


@pytest.mark.parametrize(
    "field", ["timeout_s", "max_attempts", "priority", "run_at", "labels", "argv", "prompt"]
)
def test_a_long_number_in_a_body_is_a_4xx(api: Api, field: str) -> None:
    """orjson reads it as a float, or not at all; what holds it says so."""
    body = '{"argv":["true"],"%s":%s}' if field != "prompt" else '{"%s":%s}'
    for number in (LONG, "-" + LONG, "1e400", "1" * 30):
        answer = api.admin.post("/v1/runs", content=body % (field, number))
        assert 400 <= answer.status_code < 500
        assert len(answer.text) < 2000
    request = {"app_signature": "seed-db", "operation_request_json": '{"reset": ' + LONG + "}"}
    assert 400 <= api.admin.post("/api/v1/operations", json=request).status_code < 500


def test_a_long_content_length_is_a_4xx(api: Api) -> None:
    """The parser refuses what it cannot count, before anything else sees it."""
    for number in (LONG, "1" * 25, str(2**64)):
        with socket.create_connection(("127.0.0.1", int(api.url.rsplit(":", 1)[1]))) as sock:
            sock.sendall(f"POST /v1/runs HTTP/1.1\r\nHost: x\r\nContent-Length: {number}\r\n\r\n".encode())
            assert sock.recv(100).startswith(b"HTTP/1.1 400 ")


async def test_a_long_number_in_a_socket_is_told(api: Api) -> None:
    """As a parameter, and as what to resume from."""
    made = await asyncio.to_thread(api.admin.post, "/v1/runs", json={"argv": ["true"], "start": False})
    url = f"{api.url.replace('http', 'ws')}/v1/runs/{made.json()['run_id']}/stream"
    bearer: Any = {"Authorization": f"Bearer {TOKEN}"}
    async with connect(f"{url}?after={LONG}", additional_headers=bearer) as ws:
        with pytest.raises(websockets.ConnectionClosed):
            await ws.recv()
        assert ws.close_code == 4422
    async with connect(url, additional_headers=bearer) as ws:
        await ws.send('{"resume": ' + "1" * 30 + "}")  # one that is longer is no JSON here, and ignored
        with contextlib.suppress(websockets.ConnectionClosedError):
            async for _ in ws:
                pass
        assert ws.close_code == 4422


def test_a_warning_of_a_library_quotes_nobody(api: Api, recwarn: pytest.WarningsRecorder) -> None:
    """An idempotency key's hash is made of the body; pydantic had warned of it, with what was in it."""
    steps = [{"tool": "shell", "args": {"command": "echo sk-live-1"}}]
    body = {"steps": steps, "start": False}
    assert api.admin.post("/v1/runs", json=body, headers={"Idempotency-Key": "w"}).status_code == 201
    assert [str(warning.message) for warning in recwarn if "sk-live" in str(warning.message)] == []
